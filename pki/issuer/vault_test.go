package issuer

import (
	"crypto/x509"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/pki"
)

// standIn answers as Vault's PKI does, as far as muster asks: no real Vault can
// be had here. What it signs can be bent.
type standIn struct {
	t      *testing.T
	ca     *pki.Pair
	token  string
	bend   func(r *pki.Request, ask map[string]string)
	answer func(w http.ResponseWriter) bool // in the place of the rest
}

func (s *standIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	fail := func(status int, why string) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, `{"errors":[`+strconv.Quote(why)+`]}`)
	}
	if r.Method != "POST" || r.URL.Path != "/v1/pki_int/sign/workloads" {
		fail(404, "no handler for route")
		return
	}
	if r.Header.Get("X-Vault-Token") != s.token {
		fail(403, "permission denied")
		return
	}
	if s.answer != nil && s.answer(w) {
		return
	}
	b, err := io.ReadAll(r.Body)
	must(s.t, err)
	var ask map[string]string
	must(s.t, json.Unmarshal(b, &ask))
	csr, err := pki.ParseCSR([]byte(ask["csr"]))
	must(s.t, err)
	ttl, err := time.ParseDuration(ask["ttl"])
	must(s.t, err)
	if ask["common_name"] == "" || ask["exclude_cn_from_sans"] != "true" || ask["alt_names"] != "cart.shop.svc.muster" || ask["ip_sans"] != "10.1.2.3" {
		s.t.Errorf("asked for %v", ask)
	}
	req := pki.Request{ID: ask["uri_sans"], CSR: csr, Validity: ttl}
	if s.bend != nil {
		s.bend(&req, ask)
	}
	p, err := s.ca.Issue("muster", req, time.Now())
	if err != nil {
		fail(400, err.Error())
		return
	}
	answer := map[string]any{"data": map[string]any{
		"certificate": strings.TrimSpace(string(pki.EncodeCertificates(p.Certificate))),
		"issuing_ca":  string(pki.EncodeCertificates(s.ca.Certificate)),
		"ca_chain":    []string{strings.TrimSpace(string(pki.EncodeCertificates(s.ca.Certificate)))},
	}}
	b, err = json.Marshal(answer)
	must(s.t, err)
	_, _ = w.Write(b)
}

func (s *standIn) serve(t *testing.T, h *house) Config {
	t.Helper()
	srv := httptest.NewTLSServer(s)
	t.Cleanup(srv.Close)
	must(t, os.WriteFile(h.file("vault.token"), []byte(s.token+"\n"), 0o600))
	must(t, os.WriteFile(h.file("vault.ca"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600))
	return Config{Signer: Vault, Vault: VaultConfig{Address: srv.URL, Mount: "pki_int", Role: "workloads", TokenFile: h.file("vault.token"), CAFile: h.file("vault.ca")}}
}

// Vault signs, by its HTTP API (a stand-in's here), and its token can be renewed.
func TestVaultSigns(t *testing.T) {
	h := newHouse(t)
	ca, err := h.root.NewIntermediate("muster", "", 0, time.Now())
	must(t, err)
	s := &standIn{t: t, ca: ca, token: "hvs.first"}
	i := h.issuer(t, s.serve(t, h))
	c, err := i.Issue(t.Context(), order(t, i))
	must(t, err)
	h.good(t, c)
	s.token = "hvs.second"
	_, err = i.Issue(t.Context(), order(t, i))
	refused(t, err, fault.NotReady, "status 403 from Vault: permission denied")
	must(t, os.WriteFile(h.file("vault.token"), []byte(s.token), 0o600))
	c, err = i.Issue(t.Context(), order(t, i))
	must(t, err)
	h.good(t, c)
}

// What comes back that was not asked for, or from nobody whom callers believe,
// is not handed out.
func TestVaultAnswersSomethingElse(t *testing.T) {
	h := newHouse(t)
	ca, err := h.root.NewIntermediate("muster", "", 0, time.Now())
	must(t, err)
	stranger, err := pki.NewCA("muster", "", time.Hour, time.Now())
	must(t, err)
	csr, _, err := pki.NewCSR(nil, "", cartID, []string{"cart.shop.svc.muster", "10.1.2.3"})
	must(t, err)
	fewer, _, err := pki.NewCSR(nil, "", cartID, nil)
	must(t, err)
	says := func(status int, body string) func(http.ResponseWriter) bool {
		return func(w http.ResponseWriter) bool {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
			return true
		}
	}
	own, err := ca.Issue("muster", pki.Request{ID: cartID}, time.Now())
	must(t, err)
	authority := string(pki.EncodeCertificates(ca.Certificate))
	quoted := func(cert *x509.Certificate) string { return strconv.Quote(string(pki.EncodeCertificates(cert))) }
	for name, c := range map[string]struct {
		ca     *pki.Pair
		bend   func(*pki.Request, map[string]string)
		answer func(http.ResponseWriter) bool
		code   fault.Code
		says   string
	}{
		"another key": {ca, func(r *pki.Request, _ map[string]string) { r.CSR = csr }, nil, fault.NotReady, "another key"},
		"another id": {ca, func(r *pki.Request, _ map[string]string) {
			r.CSR, r.ID, r.Hosts = nil, "spiffe://muster/ns/shop/svc/pay", nil
		}, nil, fault.NotReady, "another key"},
		"further names": {ca, func(r *pki.Request, _ map[string]string) { r.Hosts = []string{"pay.shop.svc.muster"} }, nil, fault.NotReady, "it names"},
		"fewer names":   {ca, func(r *pki.Request, _ map[string]string) { r.CSR = fewer }, nil, fault.NotReady, "another key"},
		"longer":        {ca, func(r *pki.Request, _ map[string]string) { r.Validity = 30 * time.Minute }, nil, fault.NotReady, "longer than was asked"},
		"of a stranger": {stranger, nil, nil, fault.NotReady, "do not lead to it"},
		"its refusal":   {ca, nil, says(400, `{"errors":["uri sans are not allowed by this role"]}`), fault.Forbidden, "outside the cluster refuses"},
		"its seal":      {ca, nil, says(503, `{"errors":["Vault is sealed"]}`), fault.NotReady, "Vault is sealed"},
		"a redirect": {ca, nil, func(w http.ResponseWriter) bool {
			w.Header().Set("Location", "http://127.0.0.1:1/")
			w.WriteHeader(307)
			return true
		}, fault.NotReady, "status 307"},
		"an empty answer":   {ca, nil, says(200, `{}`), fault.NotReady, "no certificate"},
		"no JSON":           {ca, nil, says(200, `<html>`), fault.NotReady, "not what it should be"},
		"without its chain": {ca, nil, says(200, `{"data":{"certificate":`+quoted(own.Certificate)+`}}`), fault.NotReady, "chain"},
		"the CA itself":     {ca, nil, says(200, `{"data":{"certificate":`+strconv.Quote(authority)+`,"issuing_ca":`+strconv.Quote(authority)+`}}`), fault.NotReady, "another key"},
		"endlessly": {ca, nil, func(w http.ResponseWriter) bool {
			for range 3 << 10 {
				if _, err := w.Write(make([]byte, 1<<10)); err != nil {
					return true
				}
			}
			return true
		}, fault.NotReady, "1048576 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &standIn{t: t, ca: c.ca, token: "hvs.x", bend: c.bend, answer: c.answer}
			i := h.issuer(t, s.serve(t, h))
			_, err := i.Issue(t.Context(), order(t, i))
			refused(t, err, c.code, c.says)
		})
	}
}

// Each thing that is compared is enough to keep a certificate back.
func TestWhatIsCompared(t *testing.T) {
	h := newHouse(t)
	must(t, h.root.Write(h.file("ca.crt"), h.file("ca.key")))
	i := h.issuer(t, Config{Signer: File, Cert: h.file("ca.crt"), Key: h.file("ca.key")})
	o := order(t, i)
	c, err := i.Issue(t.Context(), o)
	must(t, err)
	for name, bend := range map[string]func(*x509.Certificate){
		"id": func(l *x509.Certificate) {
			l.URIs = []*url.URL{{Scheme: "spiffe", Host: "muster", Path: "/muster/role/operator"}}
		},
		"two ids":     func(l *x509.Certificate) { l.URIs = append(l.URIs, l.URIs[0]) },
		"no id":       func(l *x509.Certificate) { l.URIs = nil },
		"host":        func(l *x509.Certificate) { l.DNSNames = append(l.DNSNames, "n1") },
		"address":     func(l *x509.Certificate) { l.IPAddresses = append(l.IPAddresses, net.IPv4(127, 0, 0, 1)) },
		"mail":        func(l *x509.Certificate) { l.EmailAddresses = []string{"a@b.example"} },
		"common name": func(l *x509.Certificate) { l.Subject.CommonName = "operator" },
		"CA":          func(l *x509.Certificate) { l.IsCA = true },
		"signs":       func(l *x509.Certificate) { l.KeyUsage |= x509.KeyUsageCertSign },
		"end":         func(l *x509.Certificate) { l.NotAfter = l.NotAfter.Add(time.Hour) },
	} {
		bent := *c.Leaf
		bend(&bent)
		if _, err := i.asOrdered(&Certificate{Leaf: &bent, Chain: c.Chain}, o, time.Now()); err == nil {
			t.Errorf("another %s is handed out", name)
		}
	}
	if root, err := i.asOrdered(c, o, time.Now()); err != nil || !root.Equal(h.root.Certificate) {
		t.Error(err)
	}
}
