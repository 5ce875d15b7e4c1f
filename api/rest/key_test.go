package rest_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"

	"github.com/muster-registry/muster/api/rest"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/sign"
)

func TestKeysBelongToTheOperator(t *testing.T) {
	e := newEdge(t, rest.Options{})
	const path = "/v1/policy/keys/ci"
	body := `{"kind":"opa","algorithm":"HS256","material":"do not tell anyone of this","fingerprint":"SHA256:1"}`
	refused(t, e.do(ask{caller: "admin", method: "PUT", path: path, body: body}), 403, fault.Forbidden)
	for _, w := range []string{
		e.call("operator", "PUT", path, body, 201).Body.String(),
		e.call("operator", "GET", path, "", 200).Body.String(),
		e.call("operator", "GET", "/v1/policy/keys", "", 200).Body.String(),
	} {
		if strings.Contains(w, "do not tell") || !strings.Contains(w, `"fingerprint":"SHA256:1"`) || !strings.Contains(w, `"name":"ci"`) {
			t.Errorf("a shared secret is shown as %s", w)
		}
	}
	public := `{"kind":"ssh","material":"ssh-ed25519 AAAA"}`
	if w := e.call("operator", "PUT", path, public, 200); !strings.Contains(w.Body.String(), "ssh-ed25519 AAAA") {
		t.Errorf("a public key is shown as %s", w.Body)
	}
	e.call("operator", "DELETE", path, "", 204)
	refused(t, e.do(ask{caller: "operator", method: "GET", path: path}), 404, fault.NotFound)
}

// signedEdge is an edge that trusts the key of one person.
func signedEdge(t *testing.T) (*edge, func(body string) []byte) {
	t.Helper()
	ann, err := openpgp.NewEntity("Ann", "", "ann@example.org", nil)
	if err != nil {
		t.Fatal(err)
	}
	var public strings.Builder
	w, err := armor.Encode(&public, openpgp.PublicKeyType, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(ann.Serialize(w), w.Close()); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	key, err := sign.Parse("ann", (&sign.Key{Kind: sign.OpenPGP, Material: public.String()}).Encode(), nil, now)
	if err != nil {
		t.Fatal(err)
	}
	e := newEdge(t, rest.Options{
		Signatures: sign.New(func() []*sign.Key { return []*sign.Key{key} }, func() time.Time { return now }),
		ParseBundle: func(b []byte) (*policy.Push, error) {
			push, err := policy.ParsePush([]byte(`{"modules":{"b.rego":"package b"},"number":9}`))
			if bytes.HasPrefix(b, []byte("signed")) {
				push.Signature, push.Number = &policy.Signature{Key: "opa", Kind: "opa"}, 10
			}
			return push, err
		},
	})
	return e, func(body string) []byte {
		var b bytes.Buffer
		if err := openpgp.DetachSign(&b, []*openpgp.Entity{ann}, strings.NewReader(body), nil); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
}

func TestDetachedSignatures(t *testing.T) {
	e, signed := signedEdge(t)
	asked := 0
	e.readIndex = func(context.Context) error { asked++; return nil }
	const base = "/v1/policy/revisions"
	push := func(body, media string, headers ...string) ask {
		h := header("Content-Type", media)
		for _, v := range headers {
			h.Add("Muster-Signature", v)
		}
		return ask{caller: "admin", method: "POST", path: base, body: body, header: h}
	}
	encoded := base64.StdEncoding.EncodeToString
	const json, gzip = "application/json", "application/gzip"
	body := `{ "modules": {"a.rego":"package a"}, "number": 7 }`

	w := e.do(push(body, json, encoded(signed(body))))
	if w.Code != 201 || !strings.Contains(w.Body.String(), `"signature":{"key":"ann","kind":"openpgp","fingerprint":"`) || !strings.Contains(w.Body.String(), `"number":7}`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	w = e.do(push("a bundle", gzip, encoded(signed("a bundle"))))
	if w.Code != 201 || !strings.Contains(w.Body.String(), `"key":"ann"`) || !strings.Contains(w.Body.String(), `"number":9}`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if asked != 2 {
		t.Errorf("the newest state was asked for %d times", asked)
	}
	if w = e.do(push("signed within", gzip)); w.Code != 201 || !strings.Contains(w.Body.String(), `"key":"opa"`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w = e.do(push("a bundle", gzip)); w.Code != 201 || strings.Contains(w.Body.String(), `"signature"`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	good := encoded(signed(body))
	refused(t, e.do(push(body+" ", json, good)), 422, fault.InvalidPolicy)
	refused(t, e.do(push("signed within", gzip, encoded(signed("signed within")))), 422, fault.InvalidPolicy)
	refused(t, e.do(push(body, json)), 400, fault.InvalidField)
	for _, h := range [][]string{{""}, {"!"}, {good, good}, {good[:len(good)-3]}} {
		refused(t, e.do(push(body, json, h...)), 400, fault.BadRequest)
	}
	e.readIndex = func(context.Context) error { return fault.New(fault.NoLeader, "none") }
	refused(t, e.do(push(body, json, good)), 503, fault.NoLeader)

	without := newEdge(t, rest.Options{})
	refused(t, without.do(push(body, json, good)), 400, fault.BadRequest)
}
