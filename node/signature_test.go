package node_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
	"github.com/open-policy-agent/opa/v1/bundle"

	"github.com/muster-registry/muster/fault"
)

// builder is a build server that signs bundles as opa does.
type builder struct{ private, public string }

func newBuilder(t *testing.T) builder {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	must(t, err)
	return builder{
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})),
	}
}

// policyFor lets the owner named register, and nobody else.
func policyFor(owner string) string {
	return fmt.Sprintf("package api.registry.authz\n\ndefault allow := false\n\nallow if input.resource.payload.owner == %q\n\nallow if input.action == \"delete\"\n", owner)
}

// build makes the bundle that lets the owner register, under a number, and
// signs it where there is a key.
func (b builder) build(t *testing.T, owner string, number int, key string) []byte {
	t.Helper()
	roots := []string{"api", "owners"}
	made := bundle.Bundle{
		Manifest: bundle.Manifest{Revision: fmt.Sprint(number), Roots: &roots},
		Modules:  []bundle.ModuleFile{{URL: "/authz.rego", Path: "/authz.rego", Raw: []byte(policyFor(owner))}},
		Data:     map[string]any{"owners": map[string]any{owner: true}},
	}
	if key != "" {
		must(t, made.GenerateSignature(bundle.NewSigningConfig(b.private, "ES256", ""), key, true))
	}
	var out bytes.Buffer
	must(t, bundle.Write(&out, made))
	return out.Bytes()
}

// entries takes a bundle apart, so that it can be put together otherwise.
func entries(t *testing.T, packed []byte) (files [][2]string) {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(packed))
	must(t, err)
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		must(t, err)
		b, err := io.ReadAll(r)
		must(t, err)
		files = append(files, [2]string{h.Name, string(b)})
	}
}

// person is somebody with an OpenPGP key.
type person struct {
	*openpgp.Entity
	public string
}

func newPerson(t *testing.T) person {
	t.Helper()
	e, err := openpgp.NewEntity("Ann", "", "ann@example.org", nil)
	must(t, err)
	var out strings.Builder
	w, err := armor.Encode(&out, openpgp.PublicKeyType, nil)
	must(t, err)
	must(t, errors.Join(e.Serialize(w), w.Close()))
	return person{e, out.String()}
}

// signed is the header with the person's signature over the body.
func (p person) signed(t *testing.T, body []byte) []string {
	t.Helper()
	var out bytes.Buffer
	must(t, openpgp.DetachSign(&out, []*openpgp.Entity{p.Entity}, bytes.NewReader(body), nil))
	return []string{"Muster-Signature", base64.StdEncoding.EncodeToString(out.Bytes())}
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	must(t, err)
	return string(b)
}

func (e *edge) trust(t *testing.T, name string, key map[string]string) {
	t.Helper()
	e.mustDo(t, "PUT", "/v1/policy/keys/"+name, asJSON(t, key))
}

var gzipped = []string{"Content-Type", "application/gzip"}

func (e *edge) push(t *testing.T, node int, body []byte, header ...string) *answer {
	t.Helper()
	return e.send(t, node, "HTTP/2.0", call{"POST", "/v1/policy/revisions?activate=true", bytes.NewReader(body), header})
}

// serves checks that the policy in force lets this owner register, and no other.
func (e *edge) serves(t *testing.T, owner string) {
	t.Helper()
	for _, o := range []string{"shop", "bank", "evil"} {
		input := fmt.Sprintf(`{"input":{"action":"register","resource":{"payload":{"owner":%q}}}}`, o)
		var verdict struct{ Allow bool }
		must(t, json.Unmarshal(e.mustDo(t, "POST", "/v1/authorize", input).body, &verdict))
		if verdict.Allow != (o == owner) {
			t.Errorf("%s may register: %v; the policy for %s is to be in force", o, verdict.Allow, owner)
		}
	}
}

// Rows 11 and 12 of the bad input, on a running node: what is not signed as it
// should be is refused with its reason, and the old revision serves on.
func TestSignedPolicies(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	tr.startAll()
	e := newEdge(t, tr)
	ci, ended, stolen, unscoped := newBuilder(t), newBuilder(t), newBuilder(t), newBuilder(t)
	ann, bob, stranger := newPerson(t), newPerson(t), newPerson(t)
	opaKey := func(b builder, more ...string) map[string]string {
		k := map[string]string{"kind": "opa", "algorithm": "ES256", "material": b.public}
		for i := 0; i < len(more); i += 2 {
			k[more[i]] = more[i+1]
		}
		return k
	}
	e.trust(t, "ci", opaKey(ci))
	e.trust(t, "ended", opaKey(ended, "not_after", "2020-01-01T00:00:00Z"))
	e.trust(t, "stolen", opaKey(stolen))
	e.trust(t, "stolen", map[string]string{"revoked_reason": "the laptop is gone"})
	e.trust(t, "scoped", opaKey(unscoped, "scope", "write"))
	e.trust(t, "ann", map[string]string{"kind": "openpgp", "material": ann.public})
	e.trust(t, "bob", map[string]string{"kind": "openpgp", "material": bob.public})
	e.trust(t, "bob", map[string]string{"revoked_reason": "has left"})

	good := ci.build(t, "shop", 7, "ci")
	a := e.push(t, 0, good, gzipped...)
	var rev struct {
		Revision  uint64
		State     string
		Signature struct {
			Key, Kind, Fingerprint string
			Number                 uint64
		}
	}
	must(t, json.Unmarshal(a.body, &rev))
	if a.status != 201 || rev.State != "active" || rev.Signature.Key != "ci" || rev.Signature.Kind != "opa" || rev.Signature.Number != 7 || rev.Signature.Fingerprint == "" {
		t.Fatalf("a good bundle: %d %s", a.status, a.body)
	}
	e.serves(t, "shop")

	t.Run("row 12, bundles", func(t *testing.T) {
		next := entries(t, ci.build(t, "evil", 8, "ci"))
		at := func(name string) int {
			return slices.IndexFunc(next, func(f [2]string) bool { return strings.TrimPrefix(f[0], "/") == name })
		}
		with := func(name, content string) [][2]string {
			all := slices.Clone(next)
			all[at(name)] = [2]string{name, content}
			return all
		}
		without := func(name string) [][2]string { i := at(name); return slices.Delete(slices.Clone(next), i, i+1) }
		for name, tc := range map[string]struct {
			body []byte
			says string
		}{
			"altered module":   {archive(t, with("authz.rego", policyFor("shop"))...), "altered"},
			"altered data":     {archive(t, with("data.json", `{"owners":{}}`)...), "altered"},
			"altered manifest": {archive(t, with(".manifest", `{"revision":"9","roots":["api","owners"]}`)...), "altered"},
			"missing module":   {archive(t, without("authz.rego")...), "missing"},
			"extra module":     {archive(t, append(slices.Clone(next), [2]string{"/more.rego", policyFor("evil")})...), "added"},
			"twice":            {archive(t, append(slices.Clone(next), next[at("authz.rego")])...), "twice"},
			"up":               {archive(t, append(slices.Clone(next), [2]string{"../x.rego", policyFor("evil")})...), "not plain"},
			"link":             {archive(t, append(slices.Clone(next), [2]string{"x.rego", "->/etc/passwd"})...), "link"},
			"bad signature":    {archive(t, with(".signatures.json", `{"signatures":["a.b.c"]}`)...), "no JWT"},
			"unknown key":      {newBuilder(t).build(t, "evil", 8, "mallory"), "not trusted"},
			"another's name":   {newBuilder(t).build(t, "evil", 8, "ci"), "does not hold"},
			"expired key":      {ended.build(t, "evil", 8, "ended"), "has expired"},
			"revoked key":      {stolen.build(t, "evil", 8, "stolen"), "the laptop is gone"},
			"wrong scope":      {unscoped.build(t, "evil", 8, "scoped"), "scope"},
			"replay":           {ci.build(t, "evil", 6, "ci"), "the signed number 6 is not above 7"},
			"the same number":  {ci.build(t, "evil", 7, "ci"), "the signed number 7 is not above 7"},
			"no number":        {ci.build(t, "evil", 0, "ci"), "has no number"},
		} {
			t.Run(name, func(t *testing.T) {
				e.refusesPolicy(t, tc.body, tc.says, gzipped...)
			})
		}
	})
	t.Run("row 12, detached signatures", func(t *testing.T) {
		body := []byte(asJSON(t, map[string]any{"modules": map[string]string{"authz.rego": policyFor("evil")}, "number": 8}))
		plain := ci.build(t, "evil", 8, "")
		for name, tc := range map[string]struct {
			body   []byte
			says   string
			header []string
		}{
			"of another body":   {append(slices.Clone(body), ' '), "not what was signed", ann.signed(t, body)},
			"of another bundle": {plain, "not what was signed", append(slices.Clone(gzipped), ann.signed(t, body)...)},
			"by a stranger":     {body, "no trusted OpenPGP key", stranger.signed(t, body)},
			"by a revoked key":  {body, "has left", bob.signed(t, body)},
			"twice over":        {good, "one of the two", append(slices.Clone(gzipped), ann.signed(t, good)...)},
		} {
			t.Run(name, func(t *testing.T) { e.refusesPolicy(t, tc.body, tc.says, tc.header...) })
		}
	})
	t.Run("keys that are none", func(t *testing.T) {
		e.each(t, func(t *testing.T, node int) {
			put := func(name string, key map[string]string) *answer {
				return e.send(t, node, "HTTP/2.0", call{"PUT", "/v1/policy/keys/" + name, strings.NewReader(asJSON(t, key)), nil})
			}
			if a := put("mine", opaKey(builder{public: ci.private})).want(t, 400, fault.InvalidField); !strings.Contains(a.Detail, "private key") || strings.Contains(string(a.body), "BEGIN") {
				t.Errorf("a private key: %s", a.body)
			}
			put("mine", map[string]string{"kind": "opa", "algorithm": "HS256", "material": ci.public}).want(t, 400, fault.InvalidField)
			put("mine", map[string]string{"kind": "opa", "algorithm": "none", "material": ci.public}).want(t, 400, fault.InvalidField)
			put("ci2", opaKey(ci)).want(t, 409, fault.Conflict)
			put("stolen", opaKey(stolen)).want(t, 409, fault.Conflict)
		})
	})

	// The same once more is the same revision, and the next number is taken.
	if a := e.push(t, 0, good, gzipped...); a.status != 201 || !strings.Contains(string(a.body), fmt.Sprintf(`"revision":%d,`, rev.Revision)) {
		t.Errorf("sent again: %d %s", a.status, a.body)
	}
	body := []byte(asJSON(t, map[string]any{"modules": map[string]string{"authz.rego": policyFor("bank")}, "number": 8}))
	if a := e.push(t, 0, body, ann.signed(t, body)...); a.status != 201 || !strings.Contains(string(a.body), `"kind":"openpgp"`) {
		t.Fatalf("signed by hand: %d %s", a.status, a.body)
	}
	e.serves(t, "bank")

	// What was taken back on purpose is not brought back by a build that runs again.
	e.mustDo(t, "POST", "/v1/policy/rollback", "")
	a = e.push(t, 0, body, ann.signed(t, body)...)
	must(t, json.Unmarshal(a.body, &rev))
	if a.status != 201 || rev.State != "retired" || rev.Signature.Number != 8 {
		t.Errorf("sent again after a rollback: %d %s", a.status, a.body)
	}
	e.serves(t, "shop")
	e.mustDo(t, "POST", fmt.Sprintf("/v1/policy/revisions/%d/activate", rev.Revision), "")
	e.serves(t, "bank")

	// Neither an older snapshot nor a restart brings an old number back.
	file := e.send(t, 0, "HTTP/2.0", call{method: "GET", path: "/v1/snapshot"}).body
	if a := e.push(t, 0, ci.build(t, "shop", 12, "ci"), gzipped...); a.status != 201 {
		t.Fatalf("the next: %d %s", a.status, a.body)
	}
	if a := e.restore(t, 0, "?force=true", file); a.status != 200 {
		t.Fatalf("restore: %d %s", a.status, a.body)
	}
	e.serves(t, "bank")
	e.refusesPolicy(t, ci.build(t, "evil", 12, "ci"), "the signed number 12 is not above 12", gzipped...)
	tr.stop(0)
	tr.start(0)
	tr.awaitReady(0)
	e.refusesPolicy(t, ci.build(t, "evil", 9, "ci"), "the signed number 9 is not above 12", gzipped...)
	e.serves(t, "bank")
}

// refusesPolicy pushes what must be refused with these words, through each
// node: nothing changes, and the policy in force stays so.
func (e *edge) refusesPolicy(t *testing.T, body []byte, says string, header ...string) {
	t.Helper()
	ask := call{"POST", "/v1/authorize", strings.NewReader(`{"input":{"action":"register","resource":{"payload":{"owner":"evil"}}}}`), nil}
	e.each(t, func(t *testing.T, node int) {
		a := e.push(t, node, body, header...).want(t, 422, fault.InvalidPolicy)
		if len(a.Errors) == 0 || !strings.Contains(a.Detail, says) {
			t.Errorf("%s does not say %q", a.body, says)
		}
		if a := e.send(t, node, "HTTP/2.0", ask); !strings.Contains(string(a.body), `"allow":false`) {
			t.Errorf("the old revision does not serve: %s", a.body)
		}
	})
}

// What one node's configuration asks for, the whole cluster does, until an
// operator ends it.
func TestSignaturesAreRequiredEverywhere(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	config, err := os.ReadFile(tr.nodes[1].config)
	must(t, err)
	must(t, os.WriteFile(tr.nodes[1].config, append(config, "policy: {require_signature: true}\n"...), 0o600))
	tr.startAll()
	e := newEdge(t, tr)
	const requirement = "/v1/policy/requirements/signature"
	required := func() error {
		if a := e.send(t, 0, "HTTP/2.0", call{method: "GET", path: requirement + "?consistency=linearizable"}); a.status != 200 {
			return fmt.Errorf("%d %s", a.status, a.body)
		}
		return nil
	}
	until(t, "the requirement is the cluster's", required)
	unsigned := []byte(asJSON(t, map[string]any{"modules": map[string]string{"authz.rego": policyFor("evil")}}))
	ci := newBuilder(t)
	e.each(t, func(t *testing.T, node int) {
		for _, a := range []*answer{e.push(t, node, unsigned), e.push(t, node, ci.build(t, "evil", 1, ""), gzipped...)} {
			if !strings.Contains(a.want(t, 422, fault.InvalidPolicy).Detail, "signed policies only") {
				t.Errorf("%s", a.body)
			}
		}
		// Nor by the policy port, where nothing can be signed.
		for _, tc := range []call{
			{method: "PUT", path: "/v1/policies/authz.rego", body: strings.NewReader(policyFor("evil"))},
			{method: "PUT", path: "/v1/data/owners", body: strings.NewReader(`{"evil":true}`)},
		} {
			req, err := http.NewRequestWithContext(t.Context(), tc.method, tr.nodes[node].policy+tc.path, tc.body)
			must(t, err)
			req.Header.Set("Authorization", "Bearer "+tr.token)
			res, err := e.http["HTTP/2.0"].Do(req)
			must(t, err)
			if a := read(t, res); a.status < 400 || a.status >= 500 || !strings.Contains(string(a.body), "signed policies only") {
				t.Errorf("%s %s on the policy port: %d %s", tc.method, tc.path, a.status, a.body)
			}
		}
	})

	// A policy-admin can neither end it nor trust his own key.
	var token struct{ Token string }
	must(t, json.Unmarshal(e.mustDo(t, "POST", "/v1/tokens", `{"role":"policy-admin"}`).body, &token))
	admin := []string{"Authorization", "Bearer " + token.Token}
	key := asJSON(t, map[string]string{"kind": "opa", "algorithm": "ES256", "material": ci.public})
	e.each(t, func(t *testing.T, node int) {
		e.send(t, node, "HTTP/2.0", call{"DELETE", requirement, nil, admin}).want(t, 403, fault.Forbidden)
		e.send(t, node, "HTTP/2.0", call{"PUT", "/v1/policy/keys/mine", strings.NewReader(key), admin}).want(t, 403, fault.Forbidden)
	})
	e.mustDo(t, "PUT", "/v1/policy/keys/ci", key)
	if a := e.send(t, 2, "HTTP/2.0", call{"POST", "/v1/policy/revisions?activate=true", bytes.NewReader(ci.build(t, "shop", 1, "ci")), append(slices.Clone(gzipped), admin...)}); a.status != 201 {
		t.Fatalf("a signed policy by a policy-admin: %d %s", a.status, a.body)
	}
	e.serves(t, "shop")

	// As long as the leader's configuration asks for it, nobody ends it.
	until(t, "the leader insists", func() error {
		e.send(t, 0, "HTTP/2.0", call{"POST", "/v1/cluster/leader/transfer", strings.NewReader(`{"to":"n2"}`), nil})
		if a := e.send(t, 0, "HTTP/2.0", call{method: "DELETE", path: requirement}); a.status != 409 || !strings.Contains(a.Detail, "policy.require_signature") {
			return fmt.Errorf("%d %s", a.status, a.body)
		}
		return nil
	})
	until(t, "the requirement is there", required)

	// The configuration no longer asks for it; the cluster still does.
	tr.stop(1)
	must(t, os.WriteFile(tr.nodes[1].config, config, 0o600))
	tr.start(1)
	tr.awaitReady(1)
	e.each(t, func(t *testing.T, node int) { e.push(t, node, unsigned).want(t, 422, fault.InvalidPolicy) })
	e.mustDo(t, "DELETE", requirement, "")
	if a := e.push(t, 1, unsigned); a.status != 201 {
		t.Fatalf("nothing is required any more: %d %s", a.status, a.body)
	}
	e.serves(t, "evil")
}
