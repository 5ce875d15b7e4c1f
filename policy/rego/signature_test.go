package rego

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/open-policy-agent/opa/v1/bundle"

	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/sign"
)

var signedAt = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// signerKey is a key as OPA signs with it and as muster trusts it.
type signerKey struct {
	algorithm       string
	private, public string
}

func newSigner(t testing.TB, algorithm string) signerKey {
	t.Helper()
	var private crypto.Signer
	var err error
	switch algorithm[:2] {
	case "RS", "PS":
		private, err = rsa.GenerateKey(rand.Reader, 2048)
	case "ES":
		curve := map[string]elliptic.Curve{"ES256": elliptic.P256(), "ES384": elliptic.P384(), "ES512": elliptic.P521()}[algorithm]
		private, err = ecdsa.GenerateKey(curve, rand.Reader)
	case "Ed":
		_, private, err = ed25519.GenerateKey(rand.Reader)
	default:
		secret := strings.Repeat("a shared secret ", 4)
		return signerKey{algorithm, secret, secret}
	}
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	return signerKey{
		algorithm,
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})),
	}
}

// trust makes a verifier of keys as an operator would enter them.
func trust(t testing.TB, keys ...*sign.Key) *sign.Verifier {
	t.Helper()
	for i, k := range keys {
		checked, err := sign.Parse(k.Name, k.Encode(), nil, signedAt)
		if err != nil {
			t.Fatal(err)
		}
		keys[i] = checked
	}
	return sign.New(func() []*sign.Key { return keys }, func() time.Time { return signedAt })
}

func (s signerKey) named(name string) *sign.Key {
	return &sign.Key{Name: name, Kind: sign.OPA, Algorithm: s.algorithm, Material: s.public}
}

// token has OPA sign a list of files. The key id "" is the one that opa build
// writes unless told another.
func (s signerKey) token(t testing.TB, keyID string, extra map[string]any, files ...bundle.FileInfo) string {
	t.Helper()
	cfg := bundle.NewSigningConfig(s.private, s.algorithm, "")
	if extra != nil {
		b, err := json.Marshal(extra)
		if err != nil {
			t.Fatal(err)
		}
		cfg.ClaimsPath = filepath.Join(t.TempDir(), "claims.json")
		if err := os.WriteFile(cfg.ClaimsPath, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if keyID == "" {
		keyID = defaultKeyID
	}
	token, err := bundle.GenerateSignedToken(files, cfg, keyID)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func hashed(t testing.TB, algorithm bundle.HashingAlgorithm, entries ...entryOf) []bundle.FileInfo {
	t.Helper()
	var files []bundle.FileInfo
	h, err := bundle.NewSignatureHasher(algorithm)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		name := strings.TrimPrefix(e.name, "/")
		var value any = []byte(e.content)
		if bundle.IsStructuredDoc(name) {
			d := json.NewDecoder(strings.NewReader(e.content))
			d.UseNumber()
			if err := d.Decode(&value); err != nil {
				t.Fatal(err)
			}
		}
		sum, err := h.HashFile(value)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, bundle.NewFile(name, hexOf(sum), string(algorithm)))
	}
	return files
}

func hexOf(b []byte) string {
	const digits = "0123456789abcdef"
	out := make([]byte, 0, 2*len(b))
	for _, c := range b {
		out = append(out, digits[c>>4], digits[c&15])
	}
	return string(out)
}

func signaturesOf(t testing.TB, tokens ...string) entryOf {
	t.Helper()
	b, err := json.Marshal(map[string]any{"signatures": tokens})
	if err != nil {
		t.Fatal(err)
	}
	return file(signatureFile, string(b))
}

var signedFiles = []entryOf{
	file("/authz/write.rego", v1Module),
	file("/data.json", `{ "owners": {"root": "ann", "big": 12345678901234567890.10} }`),
	file("/README.md", "not part of the policy"),
	file("/.manifest", `{"revision":"41","metadata":{"muster":{"number":7}}}`),
}

// What OPA's own bundle writer signs is believed, by every algorithm that OPA
// and muster have.
func TestBundlesThatOPASigned(t *testing.T) {
	roots := []string{"api", "owners"}
	for _, algorithm := range sign.Algorithms {
		t.Run(algorithm, func(t *testing.T) {
			s := newSigner(t, algorithm)
			b := bundle.Bundle{
				Manifest: bundle.Manifest{Revision: "41", Roots: &roots},
				Modules:  []bundle.ModuleFile{{URL: "/write.rego", Path: "/write.rego", Raw: []byte(v1Module)}},
				Data:     map[string]any{"owners": map[string]any{"root": "ann"}},
			}
			if err := b.GenerateSignature(bundle.NewSigningConfig(s.private, algorithm, ""), "ci", true); err != nil {
				t.Fatal(err)
			}
			var packed strings.Builder
			if err := bundle.Write(&packed, b); err != nil {
				t.Fatal(err)
			}
			push, err := ParseBundle([]byte(packed.String()), bundleLimit, trust(t, s.named("ci"), newSigner(t, "ES256").named("other")))
			if err != nil {
				t.Fatal(err)
			}
			if g := push.Signature; g == nil || g.Key != "ci" || g.Kind != "opa" || g.Fingerprint == "" || push.Number != 41 || len(push.Modules) != 1 {
				t.Errorf("%+v, %+v", push, g)
			}
		})
	}
}

func TestSignedBundle(t *testing.T) {
	s, other := newSigner(t, "ES256"), newSigner(t, "ES256")
	files := hashed(t, bundle.SHA256, signedFiles...)
	scoped := s.named("scoped")
	scoped.Scope = "write"
	for name, tc := range map[string]struct {
		token string
		keys  []*sign.Key
		key   string
	}{
		"named":                     {s.token(t, "ci", nil, files...), []*sign.Key{other.named("a"), s.named("ci")}, "ci"},
		"not named":                 {s.token(t, "", nil, files...), []*sign.Key{other.named("a"), s.named("ci")}, "ci"},
		"by opa's default":          {s.token(t, "", nil, files...), []*sign.Key{other.named("a"), s.named("default")}, "default"},
		"with a scope":              {s.token(t, "scoped", map[string]any{"scope": "write"}, files...), []*sign.Key{scoped}, "scoped"},
		"named in the claims alone": {strip(t, s, `{"alg":"ES256"}`, map[string]any{"files": files, "keyid": "ci"}), []*sign.Key{s.named("ci")}, "ci"},
		"SHA-512":                   {s.token(t, "ci", nil, hashed(t, bundle.SHA512, signedFiles...)...), []*sign.Key{s.named("ci")}, "ci"},
	} {
		t.Run(name, func(t *testing.T) {
			push, err := ParseBundle(bundleOf(t, append(slices.Clone(signedFiles), signaturesOf(t, tc.token))...), bundleLimit, trust(t, tc.keys...))
			if err != nil {
				t.Fatal(err)
			}
			want := policy.Signature{Key: tc.key, Kind: "opa", Fingerprint: push.Signature.Fingerprint}
			if *push.Signature != want || push.Number != 7 || push.Note != "41" || len(push.Modules) != 1 {
				t.Errorf("%+v, %+v", push, push.Signature)
			}
		})
	}
}

// strip signs any header and claims, as no tool would.
func strip(t testing.TB, s signerKey, head string, body any) string {
	t.Helper()
	b, ok := body.(string)
	if !ok {
		raw, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		b = string(raw)
	}
	text := base64.RawURLEncoding.EncodeToString([]byte(head)) + "." + base64.RawURLEncoding.EncodeToString([]byte(b))
	sum := sha256.Sum256([]byte(text))
	var signature []byte
	if s.algorithm == "HS256" {
		m := hmac.New(sha256.New, []byte(s.private))
		m.Write([]byte(text))
		signature = m.Sum(nil)
	} else {
		block, _ := pem.Decode([]byte(s.private))
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		x, y, err := ecdsa.Sign(rand.Reader, key.(*ecdsa.PrivateKey), sum[:])
		if err != nil {
			t.Fatal(err)
		}
		signature = append(x.FillBytes(make([]byte, 32)), y.FillBytes(make([]byte, 32))...)
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(signature)
}

func TestSignedBundleRefused(t *testing.T) {
	s := newSigner(t, "ES256")
	rsaSigner := newSigner(t, "RS256")
	secret := newSigner(t, "HS256")
	revoked, ended, scoped := newSigner(t, "ES256"), newSigner(t, "ES256"), newSigner(t, "ES256")
	gone, late, narrow := revoked.named("revoked"), ended.named("ended"), scoped.named("scoped")
	gone.RevokedReason, late.NotAfter, narrow.Scope = "stolen", signedAt, "write"
	trusted := trust(t, s.named("ci"), rsaSigner.named("rsa"), secret.named("shared"), gone, late, narrow)

	files := hashed(t, bundle.SHA256, signedFiles...)
	good := s.token(t, "ci", nil, files...)
	with := func(tokens ...string) []entryOf { return append(slices.Clone(signedFiles), signaturesOf(t, tokens...)) }
	change := func(i int, e entryOf) []entryOf {
		all := with(good)
		all[i] = e
		return all
	}
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","kid":"ci"}`)) + "." + strings.Split(good, ".")[1] + "."
	fake := signerKey{"HS256", rsaSigner.public, rsaSigner.public}
	claim := map[string]any{"files": files}
	parts := strings.Split(good, ".")
	for name, tc := range map[string]struct {
		entries []entryOf
		says    string
	}{
		"a module altered":              {change(0, file("/authz/write.rego", v1Module+"\n")), "authz/write.rego: is not as it was signed"},
		"data altered":                  {change(1, file("/data.json", `{"owners":{"root":"eve"}}`)), "data.json: is not as it was signed"},
		"a number altered":              {change(1, file("/data.json", `{"owners":{"root":"ann","big":12345678901234567890.11}}`)), "data.json: is not as it was signed"},
		"the manifest altered":          {change(3, file("/.manifest", `{"revision":"41","metadata":{"muster":{"number":8}}}`)), ".manifest: is not as it was signed"},
		"what does not count altered":   {change(2, file("/README.md", "…")), "README.md: is not as it was signed"},
		"a module missing":              {with(good)[1:], "authz/write.rego: was signed and is missing"},
		"the manifest missing":          {slices.Delete(with(good), 3, 4), ".manifest: was signed and is missing"},
		"a module added":                {append(with(good), file("/more.rego", v0Module)), "more.rego: is not among the files that were signed"},
		"data added":                    {append(with(good), file("/x/data.yaml", "a: 1")), "x/data.yaml: is not among the files that were signed"},
		"what does not count added":     {append(with(good), file("/x.txt", "")), "x.txt: is not among the files that were signed"},
		"a file twice":                  {append(with(good), signedFiles[0]), "stands twice"},
		"a second signature file":       {append(with(good), file("x/"+signatureFile, `{}`)), "root of the bundle"},
		"the signature twice":           {append(with(good), signaturesOf(t, good)), "stands twice"},
		"up":                            {append(with(good), file("../x.rego", v0Module)), "not plain"},
		"a link":                        {append(with(good), entryOf{name: "x.rego", kind: '2', link: "/etc/passwd"}), "link"},
		"two signatures":                {with(good, good), "holds 2 signatures"},
		"no signature":                  {with(), "holds 0 signatures"},
		"a file twice in the signature": {with(s.token(t, "ci", nil, append(slices.Clone(files), files[0])...)), "names \"authz/write.rego\" twice"},
		"MD5":                           {with(s.token(t, "ci", nil, hashed(t, bundle.MD5, signedFiles...)...)), "too weak"},
		"SHA-1":                         {with(s.token(t, "ci", nil, hashed(t, bundle.SHA1, signedFiles...)...)), "too weak"},
		"an unknown hash":               {with(s.token(t, "ci", nil, append(slices.Clone(files[1:]), bundle.NewFile("authz/write.rego", files[0].Hash, "SHA-0"))...)), "authz/write.rego: cannot be held to its signature"},
		"no files":                      {with(s.token(t, "ci", nil)), "not among the files that were signed"},
		"an unknown key":                {with(newSigner(t, "ES256").token(t, "mallory", nil, files...)), `the key "mallory", which is not trusted`},
		"another key by its name":       {with(newSigner(t, "ES256").token(t, "ci", nil, files...)), "does not hold for the key ci"},
		"no key by the algorithm":       {with(newSigner(t, "ES384").token(t, "", nil, files...)), "no key for ES384 is trusted"},
		"a revoked key":                 {with(revoked.token(t, "revoked", nil, files...)), "revoked at 2026-03-01T12:00:00Z: stolen"},
		"a key past its time":           {with(ended.token(t, "ended", nil, files...)), "has expired"},
		"without the scope":             {with(scoped.token(t, "scoped", nil, files...)), `for the scope "", and the key scoped is trusted for "write"`},
		"another scope":                 {with(scoped.token(t, "scoped", map[string]any{"scope": "read"}, files...)), `for the scope "read"`},
		"a scope of its own":            {with(s.token(t, "ci", map[string]any{"scope": "write"}, files...)), `for the scope "write", and the key ci is trusted for ""`},
		"alg none":                      {with(none), `the algorithm "none"`},
		"alg none, with a signature":    {with(none + parts[2]), `the algorithm "none"`},
		"a public key as a secret":      {with(strip(t, fake, `{"alg":"HS256","kid":"rsa"}`, claim)), "the key rsa is for RS256 only"},
		"a public key, not named":       {with(strip(t, fake, `{"alg":"HS256"}`, claim)), "does not hold for the key shared"},
		"another algorithm":             {with(strip(t, s, `{"alg":"RS256","kid":"ci"}`, claim)), "the key ci is for ES256 only"},
		"critical":                      {with(strip(t, s, `{"alg":"ES256","kid":"ci","crit":["b64"],"b64":false}`, claim)), "critical"},
		"a name twice in the header":    {with(strip(t, s, `{"alg":"ES256","alg":"none","kid":"ci"}`, claim)), "read in one way only"},
		"a name twice in the claims":    {with(strip(t, s, `{"alg":"ES256","kid":"ci"}`, `{"files":[],"files":[]}`)), "read in one way only"},
		"cut short":                     {with(parts[0] + "." + parts[1] + "." + parts[2][:20]), "does not hold"},
		"two parts":                     {with(parts[0] + "." + parts[1]), "no JWT"},
		"words":                         {with("trust me"), "no JWT"},
		"another plug-in":               {append(slices.Clone(signedFiles), file(signatureFile, `{"signatures":["`+good+`"],"plugin":"mine"}`)), `plug-in "mine"`},
		"something else":                {append(slices.Clone(signedFiles), file(signatureFile, `{"signature":"x"}`)), "as opa sign writes it"},
		"no JSON":                       {append(slices.Clone(signedFiles), file(signatureFile, `x`)), signatureFile},
		"a key twice":                   {append(slices.Clone(signedFiles), file(signatureFile, `{"signatures":["`+good+`"],"signatures":[]}`)), "stands twice"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseBundle(bundleOf(t, tc.entries...), bundleLimit, trusted)
			if f := refusal(t, err); !strings.Contains(f.Detail, tc.says) {
				t.Errorf("%q does not say %q", f.Detail, tc.says)
			}
		})
	}
	if _, err := ParseBundle(bundleOf(t, with(good)...), bundleLimit, trusted); err != nil {
		t.Errorf("the one that is right: %v", err)
	}
	if push, err := ReadBundle(bundleOf(t, with("not looked at")...), bundleLimit); err != nil || push.Signature != nil {
		t.Errorf("for who only looks: %+v, %v", push, err)
	}
}

// Where nobody signed, nothing is said to be signed; the number is there for
// a signature that comes beside the bundle.
func TestNumberOfABundle(t *testing.T) {
	for manifest, want := range map[string]uint64{
		`{}`: 0, `{"revision":"r7"}`: 0, `{"revision":"7"}`: 7, `{"revision":"007"}`: 0, `{"revision":"-7"}`: 0, `{"revision":"7.0"}`: 0,
		`{"revision":"18446744073709551615"}`: 1<<64 - 1, `{"revision":"18446744073709551616"}`: 0,
		`{"revision":"7","metadata":{"muster":{"number":9}}}`: 9, `{"revision":"x","metadata":{"muster":{"number":9}}}`: 9,
	} {
		push, err := ReadBundle(bundleOf(t, file("a.rego", v1Module), file(".manifest", manifest)), bundleLimit)
		if err != nil || push.Number != want || push.Signature != nil {
			t.Errorf("%s: %+v, %v", manifest, push, err)
		}
	}
	for _, number := range []string{`-1`, `1.5`, `"7"`, `1e30`} {
		_, err := ReadBundle(bundleOf(t, file("a.rego", v1Module), file(".manifest", `{"metadata":{"muster":{"number":`+number+`}}}`)), bundleLimit)
		if f := refusal(t, err); !strings.Contains(f.Detail, "metadata.muster") {
			t.Errorf("%s: %q", number, f.Detail)
		}
	}
}
