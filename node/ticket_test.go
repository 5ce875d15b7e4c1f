package node_test

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/muster-registry/muster/pki"
)

// visitor is a client that remembers its TLS sessions and makes a connection
// for each call.
type visitor struct {
	t      *testing.T
	client *http.Client
}

func newVisitor(t *testing.T, tr *trial, req pki.Request) *visitor {
	t.Helper()
	pool := x509.NewCertPool()
	pem, err := os.ReadFile(tr.file("ca.crt"))
	must(t, err)
	pool.AppendCertsFromPEM(pem)
	pair, err := tr.ca.Issue("muster", req, time.Now())
	must(t, err)
	must(t, pair.Write(tr.file(req.Name+".crt"), tr.file(req.Name+".key")))
	cert, err := tls.LoadX509KeyPair(tr.file(req.Name+".crt"), tr.file(req.Name+".key"))
	must(t, err)
	return &visitor{t, &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
		RootCAs: pool, Certificates: []tls.Certificate{cert}, ServerName: "127.0.0.1", ClientSessionCache: tls.NewLRUClientSessionCache(8),
	}}}}
}

func (v *visitor) get(address, path string) (status int, resumed bool, err error) {
	resp, err := v.client.Get(address + path)
	if err != nil {
		return 0, false, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, resp.TLS.DidResume, err
}

// TestSessionsResumeOnOtherNodes: a client that comes back to another node,
// on any of its ports, resumes its TLS session, also after the node it knew is
// gone; it is who it was, and no longer than its certificate.
func TestSessionsResumeOnOtherNodes(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	tr.startAll()
	for i := range tr.nodes {
		tr.awaitReady(i)
	}
	v := newVisitor(t, tr, pki.Request{Role: "viewer", Name: "guest"})
	resumes := func(from, to string) {
		t.Helper()
		for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
			if _, _, err := v.get(from, "/v1/services"); err != nil {
				t.Fatal(err)
			}
			status, resumed, err := v.get(to, "/v1/services")
			if err != nil || status == http.StatusUnauthorized {
				t.Fatalf("%s, then %s: %d, %v", from, to, status, err)
			}
			if resumed {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("a session of %s is not resumed by %s", from, to)
			}
		}
	}
	for _, n := range tr.nodes[1:] {
		resumes(tr.nodes[0].control, n.control)
		resumes(n.control, tr.nodes[0].control)
		resumes(tr.nodes[0].control, n.policy)
	}
	if status, _, err := v.get(tr.nodes[1].control, "/v1/services"); err != nil || status != http.StatusOK {
		t.Errorf("a viewer's look-up: %d, %v", status, err)
	}
	if status, resumed, err := v.get(tr.nodes[2].control, "/v1/tokens"); err != nil || status != http.StatusForbidden || !resumed {
		t.Errorf("a viewer asks for tokens: %d, %v, resumed: %v", status, err, resumed)
	}

	// The node that sealed the ticket stops; its session goes on elsewhere, and
	// there again when it is back with no key of its own.
	if _, _, err := v.get(tr.nodes[0].control, "/v1/services"); err != nil {
		t.Fatal(err)
	}
	tr.stop(0)
	if _, resumed, err := v.get(tr.nodes[1].control, "/livez"); err != nil || !resumed {
		t.Errorf("the session of a node that is gone, on another: resumed %v, %v", resumed, err)
	}
	tr.start(0)
	for i := range tr.nodes {
		tr.awaitReady(i)
	}
	resumes(tr.nodes[1].control, tr.nodes[0].control)

	// A certificate's end is the end of its sessions.
	short := newVisitor(t, tr, pki.Request{Role: "viewer", Name: "short", Validity: 5 * time.Second})
	if status, _, err := short.get(tr.nodes[0].control, "/v1/services"); err == nil && status != http.StatusOK && status != http.StatusUnauthorized {
		t.Errorf("while it is good: %d", status)
	}
	deadline := time.Now().Add(time.Minute)
	for ; time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		status, resumed, err := short.get(tr.nodes[1].control, "/v1/services")
		if err != nil || status == http.StatusUnauthorized {
			return
		}
		if status != http.StatusOK {
			t.Fatalf("%d, resumed: %v", status, resumed)
		}
	}
	t.Error("the session outlived its certificate by far")
}
