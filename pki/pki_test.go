package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var now = time.Now()

func authority(t *testing.T, domain string) *Pair {
	t.Helper()
	ca, err := NewCA(domain, "", 0, now)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func issue(t *testing.T, ca *Pair, r Request) *Pair {
	t.Helper()
	p, err := ca.Issue("muster", r, now)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func pool(ca *Pair) *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(ca.Certificate)
	return p
}

func TestIssuedCertificates(t *testing.T) {
	ca := authority(t, "muster")
	for _, c := range []struct {
		name   string
		r      Request
		id     string
		server bool
	}{
		{"node", Request{Node: "n1", Hosts: []string{"10.0.0.1", "muster.example"}}, "spiffe://muster/muster/node/n1", true},
		{"node with ed25519", Request{Node: "n2", Algorithm: Ed25519}, "spiffe://muster/muster/node/n2", true},
		{"operator", Request{Role: "operator"}, "spiffe://muster/muster/role/operator", false},
		{"publisher", Request{Role: "publisher", Namespace: "shop", Name: "ci"}, "spiffe://muster/muster/role/publisher/ns/shop/ci", false},
		{"named viewer", Request{Role: "viewer", Name: "grafana"}, "spiffe://muster/muster/role/viewer/grafana", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := issue(t, ca, c.r)
			if len(p.Certificate.URIs) != 1 || p.Certificate.URIs[0].String() != c.id {
				t.Errorf("id is %v, want %s", p.Certificate.URIs, c.id)
			}
			for _, u := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
				_, err := p.Certificate.Verify(x509.VerifyOptions{Roots: pool(ca), KeyUsages: []x509.ExtKeyUsage{u}, CurrentTime: now})
				if want := u == x509.ExtKeyUsageClientAuth || c.server; (err == nil) != want {
					t.Errorf("usage %v: accepted %t, want %t (%v)", u, err == nil, want, err)
				}
			}
			for _, h := range c.r.Hosts {
				if err := p.Certificate.VerifyHostname(h); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestIssueRefuses(t *testing.T) {
	ca := authority(t, "muster")
	for name, r := range map[string]Request{
		"nothing":          {},
		"both":             {Node: "n1", Role: "operator"},
		"unknown role":     {Role: "king"},
		"path in a name":   {Role: "viewer", Name: "x/../operator"},
		"slash in node":    {Node: "a/b"},
		"namespace of all": {Role: "publisher", Namespace: "*"},
		"hosts of a role":  {Role: "viewer", Hosts: []string{"localhost"}},
		"algorithm":        {Node: "n1", Algorithm: "rot13"},
	} {
		if _, err := ca.Issue("muster", r, now); err == nil {
			t.Errorf("%s: issued", name)
		}
	}
	if _, err := ca.Issue("muster", Request{Node: "n1"}, now.Add(2*CAValidity)); err == nil {
		t.Error("an expired CA issued a certificate")
	}
	for _, d := range []string{"", "a/b", "x@y", "h:1"} {
		if _, err := NewCA(d, "", 0, now); err == nil {
			t.Errorf("a CA for the trust domain %q was made", d)
		}
	}
}

func TestLeafNeverOutlivesItsCA(t *testing.T) {
	ca := authority(t, "muster")
	p := issue(t, ca, Request{Node: "n1", Validity: 3 * CAValidity})
	if p.Certificate.NotAfter.After(ca.Certificate.NotAfter) {
		t.Errorf("valid to %s, the CA to %s", p.Certificate.NotAfter, ca.Certificate.NotAfter)
	}
}

func TestFilesAreProtectedAndKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	crt, key := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")
	ca := authority(t, "example.org")
	if err := ca.Write(crt, key); err != nil {
		t.Fatal(err)
	}
	for f, want := range map[string]fs.FileMode{dir: 0o700 | fs.ModeDir, key: 0o600} {
		if i, err := os.Stat(f); err != nil || i.Mode() != want {
			t.Errorf("%s: mode %v, want %v (%v)", f, i.Mode(), want, err)
		}
	}
	if err := authority(t, "muster").Write(crt, key); !errors.Is(err, fs.ErrExist) {
		t.Errorf("an existing key was replaced: %v", err)
	}
	got, err := Read(crt, key)
	if err != nil {
		t.Fatal(err)
	}
	if d, err := got.TrustDomain(); err != nil || d != "example.org" {
		t.Errorf("trust domain %q, %v", d, err)
	}
	if !got.Certificate.Equal(ca.Certificate) {
		t.Error("read another certificate than was written")
	}
}

// listen serves TLS handshakes on loopback with the given chain.
func listen(t *testing.T, chain ...*Pair) string {
	t.Helper()
	cert := tls.Certificate{PrivateKey: chain[0].Key}
	for _, c := range chain {
		cert.Certificate = append(cert.Certificate, c.Certificate.Raw)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func(c net.Conn) {
				defer c.Close()
				_ = c.(*tls.Conn).Handshake()
				_, _ = c.Read(make([]byte, 1))
			}(c)
		}
	}()
	return l.Addr().String()
}

func TestVerifySaysWhatIsWrong(t *testing.T) {
	ca := authority(t, "muster")
	node := issue(t, ca, Request{Node: "n1"})
	short := issue(t, ca, Request{Node: "n1", Validity: time.Hour})
	for _, c := range []struct {
		name   string
		addr   string
		server string
		roots  *x509.CertPool
		at     time.Time
		want   []string
	}{
		{"all is well", listen(t, node), "127.0.0.1", pool(ca), now, nil},
		{"with the CA presented", listen(t, node, ca), "localhost", pool(ca), now, nil},
		{"expired", listen(t, short), "127.0.0.1", pool(ca), now.Add(2 * time.Hour), []string{"expired on"}},
		{"from the future", listen(t, node), "127.0.0.1", pool(ca), now.Add(-time.Hour), []string{"valid only from"}},
		{"other name", listen(t, node), "muster.example", pool(ca), now, []string{`not for "muster.example"`}},
		{"other CA", listen(t, node), "127.0.0.1", pool(authority(t, "muster")), now, []string{"no path to the CA"}},
		{"two at once", listen(t, short), "muster.example", pool(ca), now.Add(2 * time.Hour), []string{"expired on", "not for"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, err := Verify(t.Context(), c.addr, c.server, c.roots, nil, c.at)
			if err != nil {
				t.Fatal(err)
			}
			if len(v.Problems) != len(c.want) {
				t.Errorf("problems: %q, want %d", v.Problems, len(c.want))
			}
			for _, w := range c.want {
				if !slices.ContainsFunc(v.Problems, func(p string) bool { return strings.Contains(p, w) }) {
					t.Errorf("%q is not among %q", w, v.Problems)
				}
			}
			if v.Protocol != "TLS 1.3" || !strings.Contains(v.Chain[0], "spiffe://muster/muster/node/n1") {
				t.Errorf("protocol %q, chain %q", v.Protocol, v.Chain)
			}
		})
	}
}
