package issuer

import (
	"crypto"
	"crypto/x509"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/pki"
)

const cartID = "spiffe://muster/ns/shop/svc/cart"

// house is a root, and an issuer below it.
type house struct {
	dir  string
	root *pki.Pair
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newHouse(t *testing.T) *house {
	t.Helper()
	root, err := pki.NewCA("muster", "", time.Hour, time.Now())
	must(t, err)
	return &house{t.TempDir(), root}
}

func (h *house) file(name string) string { return filepath.Join(h.dir, name) }

// below certifies a key that is elsewhere.
func (h *house) below(t *testing.T, public crypto.PublicKey, name string) {
	t.Helper()
	ca, err := h.root.NewIntermediateFor("muster", public, 0, time.Now())
	must(t, err)
	must(t, ca.Write(h.file(name), ""))
}

func (h *house) issuer(t *testing.T, cfg Config) *Issuer {
	t.Helper()
	cfg.TrustDomain, cfg.TTL, cfg.Hosts, cfg.Addresses = "muster", time.Hour, []string{"{service}.{namespace}.svc.muster"}, []string{"10.0.0.0/8"}
	i, err := New(cfg, Options{
		Trusted:  func() *x509.CertPool { return pki.Pool([]*x509.Certificate{h.root.Certificate}) },
		Reserved: func(string) bool { return false }, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), Now: time.Now,
	})
	must(t, err)
	return i
}

// order is one for the cart, with its host and an address.
func order(t *testing.T, i *Issuer) *Order {
	t.Helper()
	csr, _, err := pki.NewCSR(nil, "", cartID, []string{"cart.shop.svc.muster", "10.1.2.3"})
	must(t, err)
	o, err := i.Order(Ask{CSR: string(csr.PEM()), TTL: 10 * time.Minute}, "")
	must(t, err)
	return o
}

// good looks at a certificate as its users do.
func (h *house) good(t *testing.T, c *Certificate) {
	t.Helper()
	for _, name := range []string{"cart.shop.svc.muster", "10.1.2.3"} {
		_, err := c.Leaf.Verify(x509.VerifyOptions{Roots: pki.Pool([]*x509.Certificate{h.root.Certificate}), Intermediates: pki.Pool(c.Chain), DNSName: name,
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}})
		must(t, err)
	}
	if len(c.Leaf.URIs) != 1 || c.Leaf.URIs[0].String() != cartID || time.Until(c.Leaf.NotAfter) > 10*time.Minute {
		t.Errorf("it is %s", pki.Describe(c.Leaf))
	}
}

func refused(t *testing.T, err error, code fault.Code, says string) {
	t.Helper()
	f := fault.From(err)
	text := ""
	for e := err; e != nil; e = unwrap(e) {
		text += e.Error() + "\n"
	}
	if err == nil || f.Code != code || !strings.Contains(text, says) {
		t.Errorf("%v, want %s with %q", text, code, says)
	}
}

func unwrap(err error) error {
	if u, ok := err.(interface{ Unwrap() error }); ok {
		return u.Unwrap()
	}
	return nil
}

// The ids and hosts that follow from one another.
func TestWhatFollowsFromAnID(t *testing.T) {
	h := newHouse(t)
	must(t, h.root.Write(h.file("ca.crt"), h.file("ca.key")))
	i := h.issuer(t, Config{Signer: File, Cert: h.file("ca.crt"), Key: h.file("ca.key")})
	for _, c := range []struct {
		asked, inCSR, caller   string
		id, namespace, service string
		own                    bool
	}{
		{"", cartID, "", cartID, "shop", "cart", false},
		{cartID, "", "", cartID, "shop", "cart", false},
		{"", "", cartID, cartID, "shop", "cart", true},
		{"", cartID, cartID, cartID, "shop", "cart", true},
		{"", "spiffe://muster/ns/shop/sa/web", cartID, "spiffe://muster/ns/shop/sa/web", "shop", "", false},
		{"", "spiffe://muster/ns/shop/svc/a/b", "", "spiffe://muster/ns/shop/svc/a/b", "shop", "", false},
		{"", "spiffe://muster/ns/Shop/svc/a", "", "spiffe://muster/ns/Shop/svc/a", "", "", false},
		{"", "spiffe://muster/ns/shop", "", "spiffe://muster/ns/shop", "", "", false},
		{"", "spiffe://muster/x", "spiffe://muster/x", "spiffe://muster/x", "", "", true},
		{"", cartID, "spiffe://other/ns/shop/svc/cart", cartID, "shop", "cart", false},
		{"", cartID, "spiffe://muster/muster/role/operator", cartID, "shop", "cart", false},
	} {
		csr, _, err := pki.NewCSR(nil, "", c.inCSR, nil)
		must(t, err)
		o, err := i.Order(Ask{CSR: string(csr.PEM()), ID: c.asked}, c.caller)
		must(t, err)
		if o.ID.String() != c.id || o.Namespace != c.namespace || o.Service != c.service || o.Own != c.own || o.TTL != time.Hour {
			t.Errorf("%+v: %+v", c, o)
		}
	}
}

// FuzzOrder: whatever is sent, there is an order or a refusal, and an order is
// for a workload of the trust domain.
func FuzzOrder(f *testing.F) {
	csr, _, err := pki.NewCSR(nil, "", cartID, []string{"cart.shop.svc.muster"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(csr.PEM()), "", "", int64(0))
	f.Add(string(csr.PEM()), cartID, cartID, int64(time.Minute))
	f.Add("-----BEGIN CERTIFICATE REQUEST-----\n\n-----END CERTIFICATE REQUEST-----", "spiffe://muster/muster/node/n1", "x", int64(-1))
	i := &Issuer{cfg: Config{TrustDomain: "muster", TTL: time.Hour, Hosts: []string{"{service}.{namespace}.svc.muster"}}, opt: Options{Reserved: func(string) bool { return false }}}
	f.Fuzz(func(t *testing.T, csr, id, caller string, ttl int64) {
		o, err := i.Order(Ask{CSR: csr, ID: id, TTL: time.Duration(ttl)}, caller)
		if err != nil {
			if c := fault.From(err).Code; c != fault.InvalidField && c != fault.Forbidden {
				t.Errorf("refused with %s: %v", c, err)
			}
			return
		}
		if o.ID.Host != "muster" || strings.HasPrefix(o.ID.Path+"/", "/muster/") || o.TTL > time.Hour || o.template.IsCA {
			t.Errorf("ordered %+v", o)
		}
	})
}

func BenchmarkIssue(b *testing.B) {
	root, err := pki.NewCA("muster", "", time.Hour, time.Now())
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	if err := root.Write(filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")); err != nil {
		b.Fatal(err)
	}
	i, err := New(Config{Signer: File, Cert: filepath.Join(dir, "ca.crt"), Key: filepath.Join(dir, "ca.key"), TrustDomain: "muster", TTL: time.Hour}, Options{
		Trusted:  func() *x509.CertPool { return pki.Pool([]*x509.Certificate{root.Certificate}) },
		Reserved: func(string) bool { return false }, Logger: slog.Default(), Now: time.Now,
	})
	if err != nil {
		b.Fatal(err)
	}
	csr, _, err := pki.NewCSR(nil, "", cartID, nil)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		o, err := i.Order(Ask{CSR: string(csr.PEM())}, "")
		if err != nil {
			b.Fatal(err)
		}
		if _, err := i.Issue(b.Context(), o); err != nil {
			b.Fatal(err)
		}
	}
}
