package node_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/node"
	"github.com/muster-registry/muster/pki"
)

// presented is the serial number of the certificate that a listener shows.
func presented(address string, own *tls.Certificate, protocols ...string) (string, error) {
	cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: protocols}
	if own != nil {
		cfg.Certificates = []tls.Certificate{*own}
	}
	conn, err := tls.Dial("tcp", address, cfg)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.String(), nil
}

// replace puts files in the place of others, as a tool that renews does.
func (tr *trial) replace(name string, content []byte) {
	tr.t.Helper()
	must(tr.t, os.WriteFile(tr.file(name+".new"), content, 0o600))
	must(tr.t, os.Rename(tr.file(name+".new"), tr.file(name)))
}

// issued makes a certificate of a node and its key as PEM.
func (tr *trial) issued(ca *pki.Pair, r pki.Request) (pair *pki.Pair, crt, key []byte) {
	tr.t.Helper()
	pair, err := ca.Issue("muster", r, time.Now())
	must(tr.t, err)
	base := tr.file(fmt.Sprintf("issued-%x", pair.Certificate.SerialNumber))
	must(tr.t, pair.Write(base+".crt", base+".key"))
	crt, err = os.ReadFile(base + ".crt")
	must(tr.t, err)
	key, err = os.ReadFile(base + ".key")
	must(tr.t, err)
	return pair, crt, key
}

func tlsPair(p *pki.Pair) *tls.Certificate {
	c := &tls.Certificate{Certificate: [][]byte{p.Certificate.Raw}, PrivateKey: p.Key}
	for _, i := range p.Chain {
		c.Certificate = append(c.Certificate, i.Raw)
	}
	return c
}

func readyz(tr *trial, node int) (string, error) {
	res, err := http.Get(tr.nodes[node].metrics + "/readyz?verbose")
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return string(b), err
}

// New certificates count on every listener without a restart; connections that
// are open stay; what is broken is refused and told of.
func TestCertificatesAreReloaded(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	tr.startAll()
	self := tr.nodes[0]
	ctx := t.Context()
	control, policyPort := strings.TrimPrefix(self.control, "https://"), strings.TrimPrefix(self.policy, "https://")
	member, _, _ := tr.issued(tr.ca, pki.Request{Node: "n9"})
	everywhere := func(want string) error {
		for _, l := range []struct {
			address string
			own     *tls.Certificate
			proto   string
		}{{control, nil, "h2"}, {policyPort, nil, "http/1.1"}, {self.peer, tlsPair(member), "h2"}} {
			if got, err := presented(l.address, l.own, l.proto); err != nil || got != want {
				return fmt.Errorf("%s presents %s, not %s (%v)", l.address, got, want, err)
			}
		}
		return nil
	}

	// One connection, opened before everything that follows.
	dialled := 0
	kept := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pki.Pool([]*x509.Certificate{tr.ca.Certificate}),
		VerifyConnection: func(tls.ConnectionState) error { dialled++; return nil }}, ForceAttemptHTTP2: true}}
	still := func() {
		t.Helper()
		res, err := kept.Get(self.control + "/livez")
		must(t, err)
		_, _ = io.Copy(io.Discard, res.Body)
		res.Body.Close()
		if res.StatusCode != 200 || res.ProtoMajor != 2 || dialled != 1 {
			t.Errorf("status %d, HTTP/%d, %d connections", res.StatusCode, res.ProtoMajor, dialled)
		}
	}
	still()

	renewed, crt, key := tr.issued(tr.ca, pki.Request{Node: "n1", Algorithm: pki.Ed25519, Validity: 48 * time.Hour})
	// Half of a pair, for as long as the node cares to look.
	tr.replace("n1.crt", crt)
	must(t, syscall.Kill(os.Getpid(), syscall.SIGHUP))
	tr.eventually("half a pair is refused", func() error {
		line, err := tr.metric(0, "muster_tls_certificate_refused")
		if err != nil || line != "muster_tls_certificate_refused 1" {
			return fmt.Errorf("%q, %v", line, err)
		}
		body, err := readyz(tr, 0)
		if err != nil || !strings.Contains(body, "[!] new certificates are refused: tls.cert, tls.key: ") || !strings.HasSuffix(body, "ok\n") {
			return fmt.Errorf("readyz: %s, %v", body, err)
		}
		return nil
	})
	still()
	tr.replace("n1.key", key)
	// Without a signal: the files are looked at.
	tr.eventually("the renewed certificate is presented", func() error { return everywhere(renewed.Certificate.SerialNumber.String()) })
	still()

	for name, broken := range map[string][]byte{
		"of another node": func() []byte { _, crt, key := tr.issued(tr.ca, pki.Request{Node: "n2"}); return append(crt, key...) }(),
		"of a client": func() []byte {
			_, crt, key := tr.issued(tr.ca, pki.Request{Role: "operator"})
			return append(crt, key...)
		}(),
		"garbage": []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
		"empty":   nil,
		"of another CA with the same name": func() []byte {
			other, err := pki.NewCA("muster", "", time.Hour, time.Now())
			must(t, err)
			_, crt, key := tr.issued(other, pki.Request{Node: "n1"})
			return append(crt, key...)
		}(),
	} {
		tr.replace("n1.crt", broken)
		tr.replace("n1.key", broken)
		must(t, syscall.Kill(os.Getpid(), syscall.SIGHUP))
		tr.eventually(name+" is refused", func() error {
			if line, err := tr.metric(0, "muster_tls_certificate_refused"); err != nil || line != "muster_tls_certificate_refused 1" {
				return fmt.Errorf("%q, %v", line, err)
			}
			return nil
		})
		must(t, everywhere(renewed.Certificate.SerialNumber.String()))
		tr.replace("n1.crt", crt)
		tr.replace("n1.key", key)
		must(t, syscall.Kill(os.Getpid(), syscall.SIGHUP))
		tr.eventually("it is well again after "+name, func() error {
			if line, err := tr.metric(0, "muster_tls_certificate_refused"); err != nil || line != "muster_tls_certificate_refused 0" {
				return fmt.Errorf("%q, %v", line, err)
			}
			return nil
		})
	}

	body, err := readyz(tr, 0)
	must(t, err)
	for _, want := range []string{"[+] certificate of control expires in ", "certificate of peer expires in ", "certificate of ca expires in "} {
		if !strings.Contains(body, want) {
			t.Errorf("readyz lacks %q: %s", want, body)
		}
	}
	line, err := tr.metric(0, `muster_tls_certificate_not_after_seconds{listener="peer"}`)
	must(t, err)
	var end float64
	if _, err := fmt.Sscanf(line, `muster_tls_certificate_not_after_seconds{listener="peer"} %g`, &end); err != nil || int64(end) != renewed.Certificate.NotAfter.Unix() {
		t.Errorf("%s, want %d (%v)", line, renewed.Certificate.NotAfter.Unix(), err)
	}
	if logs, err := os.ReadFile(tr.file("n1.log")); err != nil || !strings.Contains(string(logs), "new certificates are refused") {
		t.Errorf("the log does not tell of what was refused: %v", err)
	}

	// A client of a CA that is no longer trusted is refused from then on.
	next, err := pki.NewCA("muster", "", time.Hour, time.Now())
	must(t, err)
	both := append(tr.ca.PEM(), next.PEM()...)
	tr.replace("ca.crt", both)
	_, crt, key = tr.issued(next, pki.Request{Node: "n1"})
	tr.replace("n1.key", key)
	tr.replace("n1.crt", crt)
	newOperator, _, _ := tr.issued(next, pki.Request{Role: "operator"})
	oldOperator, _, _ := tr.issued(tr.ca, pki.Request{Role: "operator"})
	use := func(p *pki.Pair) error {
		base := tr.file(fmt.Sprintf("issued-%x", p.Certificate.SerialNumber))
		c, err := client.New(client.Config{Addresses: []string{self.control}, CACert: tr.file("ca.crt"), ClientCert: base + ".crt", ClientKey: base + ".key"})
		must(t, err)
		defer c.Close()
		_, err = c.Status(ctx)
		return err
	}
	tr.eventually("both authorities are trusted", func() error {
		if err := use(newOperator); err != nil {
			return err
		}
		return use(oldOperator)
	})
	connections := 0
	open := &http.Client{Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: pki.Pool([]*x509.Certificate{next.Certificate}),
		Certificates: []tls.Certificate{*tlsPair(oldOperator)}, VerifyConnection: func(tls.ConnectionState) error { connections++; return nil }}}}
	over := func() int {
		t.Helper()
		res, err := open.Get(self.control + "/v1/cluster/status")
		must(t, err)
		_, _ = io.Copy(io.Discard, res.Body)
		res.Body.Close()
		return res.StatusCode
	}
	if status := over(); status != 200 {
		t.Errorf("the old operator: %d", status)
	}
	tr.replace("ca.crt", next.PEM())
	tr.eventually("the old authority is not", func() error {
		if use(oldOperator) == nil {
			return fmt.Errorf("its client is served")
		}
		return use(newOperator)
	})
	// Nor over a connection from before.
	if status := over(); status != 401 || connections != 1 {
		t.Errorf("over an open connection: %d, %d connections", status, connections)
	}
}

// A node does not start with a certificate that its peers would refuse.
func TestNodeRefusesWrongCertificate(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]pki.Request{"another node's": {Node: "n7"}, "a client's": {Role: "operator"}} {
		tr := newTrial(t, 1)
		_, crt, key := tr.issued(tr.ca, r)
		tr.replace("n1.crt", crt)
		tr.replace("n1.key", key)
		cfg, err := node.Load(tr.nodes[0].config, func(string) string { return "" })
		must(t, err)
		if err := node.Run(t.Context(), cfg, "test", slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "spiffe://muster/muster/node/n1") {
			t.Errorf("with %s certificate: %v", name, err)
		}
	}
}

// TLS 1.3 is the rule; 1.2 is for clients, only where it is set.
func TestOlderTLSOnlyWhereItIsSet(t *testing.T) {
	t.Parallel()
	for _, min := range []string{"1.3", "1.2"} {
		t.Run(min, func(t *testing.T) {
			tr := newTrial(t, 1)
			b, err := os.ReadFile(tr.nodes[0].config)
			must(t, err)
			tr.replace("n1.yaml", []byte(strings.Replace(string(b), "tls: {", "tls: {min_version: '"+min+"', ", 1)))
			tr.startAll()
			member, _, _ := tr.issued(tr.ca, pki.Request{Node: "n9"})
			for name, l := range map[string]struct {
				address string
				served  bool
			}{
				"control": {strings.TrimPrefix(tr.nodes[0].control, "https://"), min == "1.2"},
				"policy":  {strings.TrimPrefix(tr.nodes[0].policy, "https://"), min == "1.2"},
				"peer":    {tr.nodes[0].peer, false},
			} {
				conn, err := tls.Dial("tcp", l.address, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12,
					NextProtos: []string{"h2"}, Certificates: []tls.Certificate{*tlsPair(member)}})
				if err == nil {
					conn.Close()
				}
				if (err == nil) != l.served {
					t.Errorf("%s with TLS 1.2: %v, want it served: %t", name, err, l.served)
				}
			}
		})
	}
}
