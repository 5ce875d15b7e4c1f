package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestEveryAlgorithmSignsAndIsSigned(t *testing.T) {
	for _, algorithm := range Algorithms() {
		t.Run(string(algorithm), func(t *testing.T) {
			ca, err := NewCA("muster", algorithm, 0, now)
			if err != nil {
				t.Fatal(err)
			}
			node := issue(t, ca, Request{Node: "n1", Algorithm: algorithm})
			v, err := Verify(t.Context(), listen(t, node), "127.0.0.1", pool(ca), nil, now)
			if err != nil || len(v.Problems) > 0 || v.Protocol != "TLS 1.3" {
				t.Errorf("%+v, %v", v, err)
			}
			dir := t.TempDir()
			crt, key := filepath.Join(dir, "a.crt"), filepath.Join(dir, "a.key")
			if err := node.Write(crt, key); err != nil {
				t.Fatal(err)
			}
			if got, err := Read(crt, key); err != nil || !got.Certificate.Equal(node.Certificate) {
				t.Errorf("read another one: %v", err)
			}
		})
	}
}

func TestIntermediate(t *testing.T) {
	root := authority(t, "muster")
	ca, err := root.NewIntermediate("muster", "", 0, now)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	crt, key := filepath.Join(dir, "issuing.crt"), filepath.Join(dir, "issuing.key")
	if err := ca.Write(crt, key); err != nil {
		t.Fatal(err)
	}
	if ca, err = Read(crt, key); err != nil {
		t.Fatal(err)
	}
	if d, err := ca.TrustDomain(); d != "muster" {
		t.Errorf("trust domain %q, %v", d, err)
	}
	node := issue(t, ca, Request{Node: "n1"})
	if len(node.Chain) != 1 || !node.Chain[0].Equal(ca.Certificate) {
		t.Fatalf("the chain has %d certificates; wanted the intermediate and no root", len(node.Chain))
	}
	for name, c := range map[string]struct {
		presented []*Pair
		roots     *x509.CertPool
		want      string
	}{
		"with the intermediate":              {[]*Pair{node, ca}, pool(root), ""},
		"the intermediate is missing":        {[]*Pair{node}, pool(root), "missing intermediate"},
		"the intermediate is itself trusted": {[]*Pair{node}, pool(ca), ""},
	} {
		v, err := Verify(t.Context(), listen(t, c.presented...), "127.0.0.1", c.roots, nil, now)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(v.Problems, "; "); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	if _, err := node.Issue("muster", Request{Node: "n2"}, now); err == nil {
		t.Error("a node's certificate issued another")
	}
	if below, err := ca.NewIntermediate("muster", "", 0, now); err == nil {
		leaf := issue(t, below, Request{Node: "n1"})
		if v := VerifyChain(append([]*x509.Certificate{leaf.Certificate}, leaf.Chain...), "", pool(root), now); len(v.Problems) == 0 {
			t.Error("an intermediate made further authorities that are believed")
		}
	}
}

func request(t *testing.T, key crypto.Signer, tmpl x509.CertificateRequest) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &tmpl, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func TestSigningRequests(t *testing.T) {
	ca := authority(t, "muster")
	key, err := newKey(ECDSAP384)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := ParseCSR(request(t, key, x509.CertificateRequest{DNSNames: []string{"cart.shop"}}))
	if err != nil {
		t.Fatal(err)
	}
	p := issue(t, ca, Request{ID: "spiffe://muster/ns/shop/svc/cart", Hosts: []string{"10.0.0.7"}, CSR: csr, Validity: time.Hour})
	c := p.Certificate
	if p.Key != nil || !key.Public().(*ecdsa.PublicKey).Equal(c.PublicKey) {
		t.Error("the certificate is not for the key of the request")
	}
	if c.URIs[0].String() != "spiffe://muster/ns/shop/svc/cart" || !slices.Equal(c.DNSNames, []string{"cart.shop"}) || len(c.IPAddresses) != 1 {
		t.Errorf("names %v, %v, %v", c.URIs, c.DNSNames, c.IPAddresses)
	}
	crt := filepath.Join(t.TempDir(), "cart.crt")
	if err := p.Write(crt, crt+".key"); err != nil {
		t.Fatal(err)
	}
	if all, err := ReadCertificates(crt); err != nil || !all[0].Equal(c) {
		t.Errorf("%v", err)
	}

	other, err := ParseCSR(request(t, key, x509.CertificateRequest{URIs: []*url.URL{{Scheme: "spiffe", Host: "muster", Path: "/muster/role/operator"}}}))
	if err != nil {
		t.Fatal(err)
	}
	named, err := ParseCSR(request(t, key, x509.CertificateRequest{DNSNames: []string{"x.example"}}))
	if err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]Request{
		"another id":                    {ID: "spiffe://muster/ns/shop/svc/cart", CSR: other},
		"another role":                  {Role: "viewer", CSR: other},
		"hosts of a role":               {Role: "viewer", CSR: named},
		"another trust domain":          {ID: "spiffe://elsewhere/ns/shop/svc/cart"},
		"an id that stands for a role":  {ID: "spiffe://muster/muster/role/operator"},
		"an id that stands for a node":  {ID: "spiffe://muster/muster/node/n1"},
		"the whole place of roles":      {ID: "spiffe://muster/muster"},
		"a path with dots":              {ID: "spiffe://muster/ns/../muster/role/operator"},
		"a path with a coded slash":     {ID: "spiffe://muster/ns%2fshop"},
		"no path":                       {ID: "spiffe://muster"},
		"no SPIFFE id":                  {ID: "https://muster/ns/shop"},
		"a namespace beside a workload": {ID: "spiffe://muster/ns/shop/svc/cart", Namespace: "shop"},
	} {
		if _, err := ca.Issue("muster", r, now); err == nil {
			t.Errorf("%s: issued", name)
		}
	}
}

func TestBadSigningRequests(t *testing.T) {
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Skip(err) // where Go itself refuses to make one
	}
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := newKey("")
	if err != nil {
		t.Fatal(err)
	}
	good := request(t, key, x509.CertificateRequest{})
	block, _ := pem.Decode(good)
	block.Bytes[len(block.Bytes)-1] ^= 1
	for name, c := range map[string]struct {
		text []byte
		want string
	}{
		"a weak key":         {request(t, weak, x509.CertificateRequest{}), "1024 bits"},
		"an odd curve":       {request(t, p521, x509.CertificateRequest{}), "P-521"},
		"a broken signature": {pem.EncodeToMemory(block), "not signed by its own key"},
		"two requests":       {append(bytes.Clone(good), good...), "behind"},
		"a certificate":      {authority(t, "muster").PEM(), "no certificate signing request"},
		"nothing":            {nil, "no certificate signing request"},
		"garbage in PEM":     {[]byte("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"), "cannot be read"},
	} {
		if _, err := ParseCSR(c.text); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestFilesAreJudged(t *testing.T) {
	ca := authority(t, "muster")
	role := issue(t, ca, Request{Role: "operator"})
	for name, c := range map[string]struct {
		server          string
		at              time.Time
		problem, notice string
	}{
		"a client's":     {"", now, "", ""},
		"not for a host": {"n1", now, `not for "n1"`, ""},
		"soon":           {"", now.Add(LeafValidity - 49*time.Hour), "", "expires in 2 days"},
		"expired":        {"", now.Add(LeafValidity + time.Hour), "expired on", ""},
	} {
		v := VerifyChain([]*x509.Certificate{role.Certificate}, c.server, pool(ca), c.at)
		for got, want := range map[string]string{strings.Join(v.Problems, "; "): c.problem, strings.Join(v.Notices, "; ") + " ": c.notice} {
			if (strings.TrimSpace(got) == "") != (want == "") || !strings.Contains(got, want) {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
	}
}
