package node_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/muster-registry/muster/pki"
)

// Clients of another trust domain are known by their ids, and by no authority
// but that domain's.
func TestClientsOfOtherTrustDomains(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	foreign, err := pki.NewCA("a.example", "", time.Hour, time.Now())
	must(t, err)
	must(t, os.WriteFile(tr.file("a.pem"), foreign.PEM(), 0o600))
	b, err := os.ReadFile(tr.nodes[0].config)
	must(t, err)
	tr.replace("n1.yaml", append(b, []byte("identity: {spiffe: {audiences: [muster], trust_domains: [{name: a.example, bundle_file: a.pem}]}}\n")...))
	tr.startAll()
	issue := func(ca *pki.Pair, domain string, r pki.Request) *pki.Pair {
		p, err := ca.Issue(domain, r, time.Now())
		must(t, err)
		return p
	}
	for name, c := range map[string]struct {
		pair *pki.Pair
		says string // part of the answer; "": refused in the handshake
	}{
		"a member of the other":                {issue(foreign, "a.example", pki.Request{ID: "spiffe://a.example/ns/x/sa/y"}), "spiffe://a.example/ns/x/sa/y"},
		"the other's operator has no role":     {issue(foreign, "a.example", pki.Request{Role: "operator"}), "spiffe://a.example/muster/role/operator"},
		"the other claims an operator of ours": {issue(foreign, "muster", pki.Request{Role: "operator"}), ""},
		"we claim a member of the other":       {issue(tr.ca, "a.example", pki.Request{ID: "spiffe://a.example/ns/x/sa/y"}), ""},
		"our own operator":                     {issue(tr.ca, "muster", pki.Request{Role: "operator"}), "state_hash"},
	} {
		for _, address := range []string{tr.nodes[0].control + "/v1/cluster/status", tr.nodes[0].policy + "/v1/data/x"} {
			h := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
				RootCAs: pki.Pool([]*x509.Certificate{tr.ca.Certificate}), Certificates: []tls.Certificate{*tlsPair(c.pair)}}}}
			res, err := h.Get(address)
			if c.says == "" {
				if err == nil {
					res.Body.Close()
					t.Errorf("%s at %s: status %d", name, address, res.StatusCode)
				}
				continue
			}
			must(t, err)
			body, err := io.ReadAll(res.Body)
			must(t, err)
			res.Body.Close()
			if want := 403; strings.Contains(address, "status") && name != "our own operator" && (res.StatusCode != want || !strings.Contains(string(body), "forbidden")) {
				t.Errorf("%s at %s: %d %s", name, address, res.StatusCode, body)
			}
			if name == "our own operator" && res.StatusCode != 200 {
				t.Errorf("%s at %s: %d %s", name, address, res.StatusCode, body)
			}
		}
	}
	trail, err := os.ReadFile(tr.file("n1/audit/audit.log"))
	must(t, err)
	for _, id := range []string{"spiffe://a.example/ns/x/sa/y", "spiffe://a.example/muster/role/operator"} {
		if !strings.Contains(string(trail), id) {
			t.Errorf("the trail does not name %s", id)
		}
	}
	tr.eventually("health tells of the domain", func() error {
		body, err := readyz(tr, 0)
		if err != nil || !strings.Contains(body, "trust domain a.example has 1 X.509 and 0 JWT authorities") {
			return fmt.Errorf("%s, %v", body, err)
		}
		return nil
	})
}
