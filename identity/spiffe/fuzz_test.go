package spiffe_test

import (
	"crypto/x509"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/muster-registry/muster/identity/spiffe"
)

// FuzzBundle: whatever a trust domain says its authorities are, in either form,
// it vouches for nobody of another domain, and for nobody whom no authority of
// its own has signed.
func FuzzBundle(f *testing.F) {
	own, other := newDomain(f, "a.example"), newDomain(f, "b.example")
	raw, err := own.bundle().Marshal()
	must(f, err)
	f.Add(raw)
	f.Add(pemOf(own.ca))
	for _, text := range []string{`{}`, `{"keys":[]}`, `{"keys":[{"use":"x509-svid","kty":"EC"}]}`, `{"keys":[{"use":"jwt-svid","kid":"","kty":"oct"}],"spiffe_sequence":-1}`,
		`{"keys":null,"spiffe_refresh_hint":1e99}`, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "\x00", ""} {
		f.Add([]byte(text))
	}
	foreign := map[string][]*x509.Certificate{"another domain": other.svid("spiffe://b.example/x"), "by a strange authority": other.svid("spiffe://a.example/x")}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, bundle []byte) {
		file := filepath.Join(dir, "bundle")
		must(t, os.WriteFile(file, bundle, 0o600))
		tr, err := spiffe.New(spiffe.Options{Own: "muster", Domains: []spiffe.Domain{{Name: "a.example", BundleFile: file}}, Audiences: []string{"muster"}, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			return
		}
		for who, chain := range foreign {
			if tr.VerifyChain(chain) == nil {
				t.Fatalf("%s is let in by %q", who, bundle)
			}
		}
	})
}
