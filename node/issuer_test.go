package node_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/muster-registry/muster/audit"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/node"
	"github.com/muster-registry/muster/pki"
)

// signing is a signing request and its key.
type signing struct {
	key crypto.Signer
	csr string
}

func ask(t *testing.T, key crypto.Signer, r x509.CertificateRequest, ids ...string) signing {
	t.Helper()
	if key == nil {
		var err error
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(t, err)
	}
	for _, id := range ids {
		u, err := url.Parse(id)
		must(t, err)
		r.URIs = append(r.URIs, u)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &r, key)
	must(t, err)
	return signing{key, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))}
}

func (s signing) body(t *testing.T, more ...string) string {
	t.Helper()
	m := map[string]string{"csr": s.csr}
	for i := 0; i < len(more); i += 2 {
		m[more[i]] = more[i+1]
	}
	b, err := json.Marshal(m)
	must(t, err)
	return string(b)
}

// signingRequest is the body of a call that asks for a good certificate.
func signingRequest(t *testing.T) string {
	t.Helper()
	return ask(t, nil, x509.CertificateRequest{}, cartID).body(t)
}

// handed is the answer that brings a certificate.
type handed struct {
	ID, Serial, Certificate string
	Hosts                   []string
	NotAfter                time.Time `json:"not_after"`
}

func (a *answer) certificate(t *testing.T) (*handed, []*x509.Certificate) {
	t.Helper()
	if a.status != 201 {
		t.Fatalf("no certificate: %d %s", a.status, a.body)
	}
	h := new(handed)
	must(t, json.Unmarshal(a.body, h))
	chain, err := pki.DecodeCertificates([]byte(h.Certificate))
	must(t, err)
	return h, chain
}

// shows makes a client that shows a certificate that was handed out.
func (e *edge) shows(t *testing.T, key crypto.Signer, chain []*x509.Certificate) *shower {
	t.Helper()
	pair := tls.Certificate{PrivateKey: key}
	for _, c := range chain {
		pair.Certificate = append(pair.Certificate, c.Raw)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: e.pool, Certificates: []tls.Certificate{pair}}}
	t.Cleanup(transport.CloseIdleConnections)
	return &shower{pair: pair, http: &http.Client{Transport: transport, Timeout: 30 * time.Second}}
}

// issuing configures nodes to issue by an intermediate.
func issuing(t *testing.T, tr *trial, more string) {
	t.Helper()
	ca, err := tr.ca.NewIntermediate("muster", "", 0, time.Now())
	must(t, err)
	must(t, ca.Write(tr.file("issuing.crt"), tr.file("issuing.key")))
	tr.configure(t, "certificates: {signer: file, cert: issuing.crt, key: issuing.key, ttl: 30m"+more+"}\n")
}

const (
	cartID   = "spiffe://muster/ns/shop/svc/cart"
	cartHost = "cart.shop.svc.muster"
	issue    = "/v1/certificates"
)

// A service gets a certificate by a token, works with it, renews it by showing
// it, and loses it by its serial number; the trail has all of it.
func TestWorkloadCertificates(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	issuing(t, tr, `, addresses: ["10.7.0.0/16"]`)
	tr.startAll()
	e := newEdge(t, tr)
	e.mustDo(t, "PUT", "/v1/roles/workloads", `{"role":"viewer","namespaces":["shop"],"match":{"spiffe_id":"spiffe://muster/ns/shop/**"}}`)
	publisher := e.credential(t, "publisher", "shop")
	e.states(t)

	first := ask(t, nil, x509.CertificateRequest{DNSNames: []string{cartHost}, IPAddresses: []net.IP{net.ParseIP("10.7.1.2")}}, cartID)
	h, chain := e.as(t, publisher, 1, "POST", issue, first.body(t)).certificate(t)
	leaf := chain[0]
	if h.ID != cartID || h.Serial != leaf.SerialNumber.Text(16) || !slices.Equal(h.Hosts, []string{cartHost, "10.7.1.2"}) || len(chain) != 2 {
		t.Errorf("answered %+v with %d certificates", h, len(chain))
	}
	if left := time.Until(leaf.NotAfter); left > 30*time.Minute || left < 20*time.Minute {
		t.Errorf("it lasts %s", left)
	}
	for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: e.pool, Intermediates: pki.Pool(chain[1:]), DNSName: cartHost, KeyUsages: []x509.ExtKeyUsage{use}}); err != nil {
			t.Error(err)
		}
	}
	line := tr.awaitLine(1, "the certificate", func(l *audit.Entry) bool { return l.Type == audit.Issued })
	if line.Serial != h.Serial || !strings.HasPrefix(line.Principal, "token:") || !slices.Equal(line.Names, []string{cartID, cartHost, "10.7.1.2"}) || !line.NotAfter.Equal(leaf.NotAfter) {
		t.Errorf("the trail says %+v", line)
	}
	if m := e.metricsOf(t, 1); !strings.Contains(m, `muster_certificates_total{outcome="issued"} 1`) || !strings.Contains(m, `muster_tls_certificate_not_after_seconds{listener="issuer"}`) {
		t.Error("the metrics do not have it")
	}
	if body, err := readyz(tr, 1); err != nil || !strings.Contains(body, "certificate of issuer expires in") {
		t.Errorf("readyz: %s, %v", body, err)
	}

	// It is somebody, on every node, and renews for a new key and less time.
	pod := e.shows(t, first.key, chain)
	for _, n := range tr.nodes {
		if a := pod.do(t, n.control, "GET", "/v1/services", ""); a.status != 200 {
			t.Fatalf("%s: %d %s", n.id, a.status, a.body)
		}
	}
	next := ask(t, nil, x509.CertificateRequest{DNSNames: []string{cartHost}})
	renewed, chain := pod.do(t, tr.nodes[2].control, "POST", issue, next.body(t, "ttl", "10m")).certificate(t)
	if renewed.ID != cartID || time.Until(renewed.NotAfter) > 10*time.Minute {
		t.Errorf("renewed: %+v", renewed)
	}
	line = tr.awaitLine(2, "the renewal", func(l *audit.Entry) bool { return l.Type == audit.Issued })
	if line.Principal != cartID || line.Shown != h.Serial {
		t.Errorf("the trail says %+v", line)
	}
	after := e.shows(t, next.key, chain)

	e.revoke(t, "serial", h.Serial)
	for _, n := range tr.nodes {
		if a := pod.do(t, n.control, "POST", issue, next.body(t)); a.status != 401 {
			t.Errorf("%s, with a revoked certificate: %d %s", n.id, a.status, a.body)
		}
		if a := after.do(t, n.control, "GET", "/v1/services", ""); a.status != 200 {
			t.Errorf("%s, with the renewed one: %d %s", n.id, a.status, a.body)
		}
	}
	e.revoke(t, "spiffe", cartID)
	if a := after.do(t, tr.nodes[0].control, "POST", issue, next.body(t)); a.status != 401 {
		t.Errorf("with a revoked id: %d %s", a.status, a.body)
	}
	a := e.as(t, publisher, 0, "POST", issue, first.body(t)).want(t, 403, fault.Forbidden)
	if !strings.Contains(a.Detail, "revoked") {
		t.Errorf("a certificate for a revoked id: %s", a.Detail)
	}
	if _, err := audit.Verify(tr.trail(1)); err != nil {
		t.Errorf("the trail: %v", err)
	}
}

// What would make somebody more than it is, it does not get, and the refusal
// stands in the trail.
func TestCertificatesThatNobodyGets(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	issuing(t, tr, `, hosts: ["{service}.{namespace}.svc.muster", "{service}.{namespace}"], addresses: ["0.0.0.0/0"]`)
	tr.startAll()
	e := newEdge(t, tr)
	e.mustDo(t, "PUT", "/v1/roles/all", `{"role":"viewer","match":{"spiffe_id":"spiffe://muster/ns/wide/**"}}`)
	e.mustDo(t, "PUT", "/v1/roles/root", `{"role":"operator","match":{"spiffe_id":"spiffe://muster/ns/shop/svc/root"}}`)
	e.mustDo(t, "PUT", "/v1/roles/cn", `{"role":"operator","match":{"cn":"boss"}}`)
	e.mustDo(t, "PUT", "/v1/roles/bank", `{"role":"publisher","namespaces":["bank"],"match":{"spiffe_id":"spiffe://muster/ns/shop/svc/teller"}}`)
	publisher, viewer := e.credential(t, "publisher", "shop", "wide"), e.credential(t, "viewer", "shop")
	everywhere := e.credential(t, "publisher")
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	must(t, err)
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	must(t, err)
	authority, err := asn1.Marshal(struct{ CA bool }{true})
	must(t, err)
	signs, err := asn1.Marshal(asn1.BitString{Bytes: []byte{0x04}, BitLength: 6})
	must(t, err)
	type csr = x509.CertificateRequest
	extension := func(id int, value []byte) csr {
		return csr{ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, id}, Value: value}}}
	}
	const svc = "spiffe://muster/ns/shop/svc/"
	good := ask(t, nil, csr{}, cartID)
	for name, c := range map[string]struct {
		token, body string
		code        fault.Code
		says        string
	}{
		"a node's id":             {tr.token, ask(t, nil, csr{}, "spiffe://muster/muster/node/n1").body(t), fault.Forbidden, "node or a role"},
		"a role's id":             {tr.token, ask(t, nil, csr{}, "spiffe://muster/muster/role/operator").body(t), fault.Forbidden, "node or a role"},
		"the CA's id":             {tr.token, ask(t, nil, csr{}, "spiffe://muster").body(t), fault.InvalidField, "not a SPIFFE id"},
		"another trust domain":    {tr.token, ask(t, nil, csr{}, "spiffe://other/ns/shop/svc/cart").body(t), fault.Forbidden, "trust domain"},
		"no URI of SPIFFE":        {tr.token, ask(t, nil, csr{}, "https://muster/ns/shop/svc/cart").body(t), fault.InvalidField, "not a SPIFFE id"},
		"dots":                    {tr.token, ask(t, nil, csr{}).body(t, "id", svc+"../../bank/svc/x"), fault.InvalidField, "not a SPIFFE id"},
		"no id at all":            {tr.token, ask(t, nil, csr{}).body(t), fault.InvalidField, "which SPIFFE id"},
		"two ids":                 {tr.token, ask(t, nil, csr{}, cartID, svc+"other").body(t), fault.InvalidField, "asks for " + svc + "other"},
		"another id than asked":   {tr.token, good.body(t, "id", svc+"other"), fault.InvalidField, "asks for " + cartID},
		"CA:TRUE":                 {tr.token, ask(t, nil, extension(19, authority), cartID).body(t), fault.InvalidField, "CA:TRUE"},
		"signing certificates":    {tr.token, ask(t, nil, extension(15, signs), cartID).body(t), fault.InvalidField, "key usages"},
		"a short RSA key":         {tr.token, ask(t, weak, csr{}, cartID).body(t), fault.InvalidField, "1024 bits"},
		"a weak curve":            {tr.token, ask(t, p224, csr{}, cartID).body(t), fault.InvalidField, "P-224"},
		"an e-mail address":       {tr.token, ask(t, nil, csr{EmailAddresses: []string{"a@b.example"}}, cartID).body(t), fault.InvalidField, "e-mail"},
		"the host of a node":      {tr.token, ask(t, nil, csr{DNSNames: []string{"n1"}}, cartID).body(t), fault.Forbidden, "does not follow"},
		"a host of another":       {tr.token, ask(t, nil, csr{DNSNames: []string{"pay.shop.svc.muster"}}, cartID).body(t), fault.Forbidden, "does not follow"},
		"a wildcard":              {tr.token, ask(t, nil, csr{DNSNames: []string{"*.shop.svc.muster"}}, cartID).body(t), fault.Forbidden, "does not follow"},
		"a node's address":        {tr.token, ask(t, nil, csr{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}, cartID).body(t), fault.Forbidden, "a node's own"},
		"an address out of range": {tr.token, ask(t, nil, csr{IPAddresses: []net.IP{net.ParseIP("2001:db8::1")}}, cartID).body(t), fault.Forbidden, "ranges"},
		"longer than is issued":   {tr.token, good.body(t, "ttl", "31m"), fault.InvalidField, "30m"},
		"for no time":             {tr.token, good.body(t, "ttl", "1s"), fault.InvalidField, "30m"},
		"no CSR":                  {tr.token, `{}`, fault.InvalidField, "signing request"},
		"a certificate":           {tr.token, signing{csr: string(pki.EncodeCertificates(tr.ca.Certificate))}.body(t), fault.InvalidField, "signing request"},
		"two CSRs":                {tr.token, signing{csr: good.csr + good.csr}.body(t), fault.InvalidField, "behind"},
		"a changed CSR":           {tr.token, forged(t, good).body(t), fault.InvalidField, "not signed by its own key"},
		"too long a CSR":          {tr.token, signing{csr: good.csr + strings.Repeat("\n", 40<<10)}.body(t), fault.InvalidField, "bytes"},
		"another namespace":       {publisher, ask(t, nil, csr{}, "spiffe://muster/ns/bank/svc/cart").body(t), fault.Forbidden, "limited to the namespaces"},
		"as a viewer":             {viewer, good.body(t), fault.Forbidden, "registering instances"},
		"outside all namespaces":  {tr.token, ask(t, nil, csr{}, "spiffe://muster/web").body(t), fault.Forbidden, "no namespace"},
		"a rule's operator":       {tr.token, ask(t, nil, csr{}, svc+"root").body(t), fault.Forbidden, "operator"},
		"an operator by its name": {everywhere, ask(t, nil, csr{}, svc+"boss").body(t), fault.Forbidden, "operator"},
		"a rule's bank":           {publisher, ask(t, nil, csr{}, svc+"teller").body(t), fault.Forbidden, "more than its caller has"},
		"a rule for everywhere":   {publisher, ask(t, nil, csr{}, "spiffe://muster/ns/wide/svc/x").body(t), fault.Forbidden, "more than its caller has"},
	} {
		a := e.as(t, c.token, 0, "POST", issue, c.body)
		if a.Code != c.code || !strings.Contains(string(a.body), c.says) {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	if n := len(tr.lines(0, func(l *audit.Entry) bool { return l.Type == audit.Refusal && l.Operation == "issueCertificate" })); n < 20 {
		t.Errorf("%d refusals are on record", n)
	}
	if n := len(tr.lines(0, func(l *audit.Entry) bool { return l.Type == audit.Issued })); n != 0 {
		t.Errorf("%d certificates were issued", n)
	}
	// Who may have more itself may hand it on.
	e.as(t, everywhere, 0, "POST", issue, ask(t, nil, csr{}, svc+"teller").body(t)).certificate(t)
}

// forged is a request with a bit turned in the name that it asks for.
func forged(t *testing.T, s signing) signing {
	t.Helper()
	block, _ := pem.Decode([]byte(s.csr))
	at := strings.Index(string(block.Bytes), "svc/cart")
	block.Bytes[at+4] ^= 2
	return signing{csr: string(pem.EncodeToMemory(block))}
}

// Callers whose own credential is over, or of another domain's making, get none.
func TestCertificatesForCallersThatAreOver(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	issuing(t, tr, "")
	tr.startAll()
	e := newEdge(t, tr)
	e.mustDo(t, "PUT", "/v1/roles/workloads", `{"role":"viewer","match":{"spiffe_id":"spiffe://muster/ns/shop/**"}}`)
	own := ask(t, nil, x509.CertificateRequest{})
	brief := e.certified(t, pki.Request{ID: cartID, Validity: 2 * time.Second})
	until(t, "an expired certificate is refused", func() error {
		req, err := http.NewRequestWithContext(t.Context(), "POST", tr.nodes[0].control+issue, strings.NewReader(own.body(t)))
		must(t, err)
		res, err := brief.http.Do(req)
		if err != nil { // the handshake, where it was a new connection
			return nil
		}
		if a := read(t, res); a.status != 401 {
			return fmt.Errorf("%d %s", a.status, a.body)
		}
		return nil
	})
	member := e.certified(t, pki.Request{Node: "n9"})
	member.do(t, tr.nodes[0].control, "POST", issue, own.body(t)).want(t, 403, fault.Forbidden)
	stranger := e.certified(t, pki.Request{ID: "spiffe://muster/ns/bank/svc/x"})
	stranger.do(t, tr.nodes[0].control, "POST", issue, own.body(t)).want(t, 403, fault.Forbidden)
	if a := e.as(t, "muster_0123456789abcdef_nonsense", 0, "POST", issue, own.body(t)); a.status != 401 {
		t.Errorf("with a bad token: %d %s", a.status, a.body)
	}
}

// The policy decides about each certificate; break-glass does not lift that.
func TestThePolicyDecidesAboutCertificates(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	issuing(t, tr, "")
	tr.startAll()
	e := newEdge(t, tr)
	module := `package api.registry.authz

import rego.v1

default allow := false

allow if input.action != "issue"

allow if {
	input.resource.kind == "certificate"
	input.resource.payload.key_algorithm == "ECDSA"
	input.resource.payload.ttl_seconds <= 600
	every name in input.resource.payload.dns_names { name == "cart.shop.svc.muster" }
}

deny contains "no certificates for the bank" if {
	input.action == "issue"
	input.resource.namespace == "bank"
}

filtered := object.union(input.resource.payload, {"ttl_seconds": 1}) if input.resource.payload.service == "filtered"
`
	push, err := json.Marshal(map[string]any{"modules": map[string]string{"authz.rego": module}})
	must(t, err)
	e.mustDo(t, "POST", "/v1/policy/revisions?activate=true", string(push))
	short := func(id string) string { return ask(t, nil, x509.CertificateRequest{}, id).body(t, "ttl", "10m") }
	a := e.as(t, tr.token, 0, "POST", issue, short(cartID))
	a.certificate(t)
	if a.header.Get("Muster-Decision-Id") == "" {
		t.Error("the answer names no decision")
	}
	line := tr.awaitLine(0, "the certificate", func(l *audit.Entry) bool { return l.Type == audit.Issued })
	if line.DecisionID != a.header.Get("Muster-Decision-Id") || line.PolicyRevision != 1 {
		t.Errorf("the trail says %+v", line)
	}
	long := ask(t, nil, x509.CertificateRequest{}, cartID).body(t)
	denied := e.as(t, tr.token, 0, "POST", issue, long).want(t, 403, fault.PolicyDenied)
	if denied.DecisionID == "" || denied.PolicyRevision != 1 {
		t.Errorf("%s", denied.body)
	}
	const bank = "spiffe://muster/ns/bank/svc/cart"
	denied = e.as(t, tr.token, 0, "POST", issue, short(bank)).want(t, 403, fault.PolicyDenied)
	if !slices.Contains(denied.Reasons, "no certificates for the bank") {
		t.Errorf("%s", denied.body)
	}
	e.as(t, tr.token, 0, "POST", issue, short("spiffe://muster/ns/shop/svc/filtered")).want(t, 403, fault.PolicyDenied)

	breaker := e.credential(t, "break-glass")
	if a := e.as(t, breaker, 0, "POST", "/v1/break-glass", `{"namespace":"bank","ttl":"10m","reason":"a test"}`); a.status != 201 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	e.as(t, tr.token, 0, "POST", issue, short(bank)).want(t, 403, fault.PolicyDenied)
}

// Without the setting there is nothing to be had; with a broken one the node
// does not start.
func TestCertificatesAreOffUnlessConfigured(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	tr.startAll()
	e := newEdge(t, tr)
	e.as(t, tr.token, 0, "POST", issue, ask(t, nil, x509.CertificateRequest{}, cartID).body(t)).want(t, 404, fault.NotFound)
	tr.stop(0)
	plain, err := os.ReadFile(tr.nodes[0].config)
	must(t, err)
	other, err := pki.NewCA("muster", "", time.Hour, time.Now())
	must(t, err)
	must(t, other.Write(tr.file("other.crt"), tr.file("other.key")))
	open, err := pki.NewCA("muster", "", time.Hour, time.Now())
	must(t, err)
	must(t, open.Write(tr.file("open.crt"), tr.file("open.key")))
	must(t, os.Chmod(tr.file("open.key"), 0o644))
	for settings, says := range map[string]string{
		"signer: hsm":   `certificates.signer: "hsm" is none of`,
		"signer: file":  "certificates.cert: the signer file needs it",
		"signer: agent": "certificates.socket: the signer agent needs it",
		"signer: vault": "certificates.vault.address: must be https",
		"signer: vault, vault: {address: 'http://vault.example:8200', role: a, token_file: t}": "certificates.vault.address: must be https",
		"signer: file, cert: ca.crt, key: ca.key, socket: /run/a":                              "certificates.socket: the signer file does not use it",
		"signer: file, cert: ca.crt, key: ca.key, ttl: 10s":                                    "certificates.ttl: 10s is out of range",
		"signer: file, cert: ca.crt, key: ca.key, hosts: ['{service}.example.org']":            "certificates.hosts[0]: ",
		"signer: file, cert: ca.crt, key: ca.key, addresses: ['10.0.0.1']":                     "certificates.addresses[0]: ",
		"signer: file, cert: n1.crt, key: n1.key":                                              "is not a CA's",
		"signer: file, cert: ca.crt, key: other.key":                                           "certificates.cert, certificates.key: ",
		"signer: file, cert: open.crt, key: open.key":                                          "others than its owner may have it",
		"signer: file, cert: ca.crt, key: none.key":                                            "certificates.key: ",
	} {
		must(t, os.WriteFile(tr.nodes[0].config, append(slices.Clone(plain), "certificates: {"+settings+"}\n"...), 0o600))
		if err := tr.startError(0); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", settings, err)
		}
	}
}

// With an authority that tls.ca does not lead to a node works, says so, and hands
// nothing out; with the right one in its place it does, without a restart.
func TestAnAuthorityThatNobodyBelieves(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	other, err := pki.NewCA("muster", "", time.Hour, time.Now())
	must(t, err)
	must(t, other.Write(tr.file("issuing.crt"), tr.file("issuing.key")))
	tr.configure(t, "certificates: {signer: file, cert: issuing.crt, key: issuing.key}\n")
	tr.startAll()
	e := newEdge(t, tr)
	body := ask(t, nil, x509.CertificateRequest{}, cartID).body(t)
	a := e.as(t, tr.token, 0, "POST", issue, body).want(t, 503, fault.NotReady)
	if !strings.Contains(a.Detail, "cannot be handed out") {
		t.Error(a.Detail)
	}
	if body, err := readyz(tr, 0); err != nil || !strings.Contains(body, "[!] no certificates are issued: certificates.cert is not an authority that tls.ca or tls.workload_ca leads to") || !strings.HasSuffix(body, "ok\n") {
		t.Errorf("readyz: %s, %v", body, err)
	}
	if m := e.metricsOf(t, 0); !strings.Contains(m, `muster_certificates_total{outcome="failed"} 1`) {
		t.Error("the metrics do not have it")
	}
	good, err := tr.ca.NewIntermediate("muster", pki.Ed25519, time.Minute*5, time.Now())
	must(t, err)
	must(t, good.Write(tr.file("good.crt"), tr.file("good.key")))
	for _, name := range []string{"crt", "key"} {
		b, err := os.ReadFile(tr.file("good." + name))
		must(t, err)
		tr.replace("issuing."+name, b)
	}
	_, chain := e.as(t, tr.token, 0, "POST", issue, body).certificate(t)
	if chain[0].NotAfter.After(good.Certificate.NotAfter) {
		t.Error("it outlives its authority")
	}
	if n := len(tr.lines(0, func(l *audit.Entry) bool { return l.Type == audit.Issued })); n != 1 {
		t.Errorf("%d certificates are on record", n)
	}
}

// An authority in tls.workload_ca signs workloads that every node believes, and
// whoever has its key signs nothing else: no operator, no node, nobody without an
// id, no listener of the cluster's.
func TestTheAuthorityOfWorkloadsSignsNothingElse(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	work, err := pki.NewCA("muster", "", time.Hour, time.Now())
	must(t, err)
	must(t, work.Write(tr.file("work.crt"), tr.file("work.key")))
	b, err := os.ReadFile(tr.nodes[0].config)
	must(t, err)
	must(t, os.WriteFile(tr.nodes[0].config, []byte(strings.Replace(string(b), "tls: {", "tls: {workload_ca: work.crt, ", 1)), 0o600))
	tr.configure(t, "certificates: {signer: file, cert: work.crt, key: work.key}\n")
	tr.startAll()
	e := newEdge(t, tr)
	self := tr.nodes[0]
	e.mustDo(t, "PUT", "/v1/roles/workloads", `{"role":"viewer","match":{"spiffe_id":"spiffe://muster/ns/shop/**"}}`)
	e.mustDo(t, "PUT", "/v1/roles/boss", `{"role":"operator","match":{"cn":"boss"}}`)
	mine := ask(t, nil, x509.CertificateRequest{}, cartID)
	a := e.as(t, tr.token, 0, "POST", issue, mine.body(t))
	_, chain := a.certificate(t)
	if !strings.Contains(string(a.body), `"authority":"-----BEGIN`) {
		t.Errorf("%s", a.body)
	}
	if a := e.shows(t, mine.key, chain).do(t, self.control, "GET", "/v1/services", ""); a.status != 200 {
		t.Errorf("a workload: %d %s", a.status, a.body)
	}

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "boss"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, work.Certificate, key.Public(), work.Key)
	must(t, err)
	boss, err := x509.ParseCertificate(der)
	must(t, err)
	// Another name beside a workload's id is no more than decoration.
	id, err := url.Parse(cartID)
	must(t, err)
	der, err = x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(8), Subject: pkix.Name{CommonName: "boss"}, URIs: []*url.URL{id},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, work.Certificate, key.Public(), work.Key)
	must(t, err)
	decorated, err := x509.ParseCertificate(der)
	must(t, err)
	s := e.shows(t, key, []*x509.Certificate{decorated, work.Certificate})
	if a := s.do(t, self.control, "GET", "/v1/services", ""); a.status != 200 {
		t.Errorf("a workload with an operator's name: %d %s", a.status, a.body)
	}
	s.do(t, self.control, "GET", "/v1/tokens", "").want(t, 403, fault.Forbidden)

	forged := map[string]*pki.Pair{"nobody with an operator's name": {Certificate: boss, Key: key}}
	for name, r := range map[string]pki.Request{
		"an operator": {Role: "operator"}, "a node": {Node: "n2"}, "this node": {Node: "n1"},
	} {
		forged[name], err = work.Issue("muster", r, time.Now())
		must(t, err)
	}
	member, _, _ := tr.issued(tr.ca, pki.Request{Node: "n9"})
	if err := e.speak(t, 0, *tlsPair(member), "h2"); err != nil {
		t.Errorf("a node of the cluster's authority: %v", err)
	}
	for name, p := range forged {
		for _, base := range []string{self.control + "/v1/services", self.policy + "/v1/data"} {
			s := e.shows(t, p.Key, []*x509.Certificate{p.Certificate, work.Certificate})
			res, err := s.http.Get(base)
			if err == nil {
				if a := read(t, res); a.status != 401 && a.status != 403 {
					t.Errorf("%s of the workloads' authority at %s: %d %s", name, base, a.status, a.body)
				}
			}
		}
		if err := e.speak(t, 0, *tlsPair(p), "h2"); err == nil {
			t.Errorf("%s of the workloads' authority speaks on the peer port", name)
		}
	}
	if _, err := forged["this node"].Certificate.Verify(x509.VerifyOptions{Roots: e.pool}); err == nil {
		t.Error("clients of the cluster would take it for a node")
	}
	if body, err := readyz(tr, 0); err != nil || !strings.Contains(body, "certificate of workload_ca expires in") {
		t.Errorf("readyz: %s, %v", body, err)
	}
}

// startError is why a node does not start.
func (tr *trial) startError(i int) error {
	tr.t.Helper()
	if _, err := node.Load(tr.nodes[i].config, func(string) string { return "" }); err != nil {
		return err
	}
	tr.start(i)
	select {
	case err := <-tr.nodes[i].done:
		tr.nodes[i].stop = nil
		return err
	case <-time.After(time.Minute):
		tr.t.Fatal("the node goes on")
		return nil
	}
}
