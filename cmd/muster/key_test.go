package main

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
)

// person makes an OpenPGP key and gives both of its halves as gpg exports them.
func person(t *testing.T) (e *openpgp.Entity, public, private string) {
	t.Helper()
	e, err := openpgp.NewEntity("Ann", "", "ann@example.org", nil)
	if err != nil {
		t.Fatal(err)
	}
	half := func(kind string, write func(*bytes.Buffer) error) string {
		var raw, out bytes.Buffer
		w, err := armor.Encode(&out, kind, nil)
		if err != nil {
			t.Fatal(err)
		}
		err = write(&raw)
		_, written := w.Write(raw.Bytes())
		if err := errors.Join(err, written, w.Close()); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	return e, half(openpgp.PublicKeyType, func(b *bytes.Buffer) error { return e.Serialize(b) }),
		half(openpgp.PrivateKeyType, func(b *bytes.Buffer) error { return e.SerializePrivate(b, nil) })
}

// signedPolicies goes through the life of a trusted key, as an operator and a
// build server do.
func signedPolicies(t *testing.T, s shell) {
	ann, public, private := person(t)
	sign := func(text string) string {
		t.Helper()
		var b bytes.Buffer
		if err := openpgp.ArmoredDetachSign(&b, []*openpgp.Entity{ann}, strings.NewReader(text), nil); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	body := func(number int) string {
		return fmt.Sprintf(`{"modules":{"authz.rego":"package api.registry.authz\n\ndefault allow := true\n"},"number":%d}`, number)
	}
	push := func(text, signature string) (out, err string, code int) {
		t.Helper()
		return s.do(t, "policy", "push", write(t, "push.json", text), "--signature", write(t, "push.json.asc", signature))
	}
	refused := func(says string, args ...string) {
		t.Helper()
		if _, err, code := s.do(t, args...); code == exitDone || !strings.Contains(err, says) {
			t.Errorf("%v: exit code %d, %s; want words like %q", args, code, err, says)
		}
	}

	refused("is a private key", "policy", "key", "add", "ann", "--file", write(t, "ann.asc", private))
	contains(t, s.ok(t, "policy", "key", "add", "ann", "--file", write(t, "ann.asc", public), "--not-after", "2099-01-01"), "ann", "openpgp", "2099-01-01")
	refused("known already, by the name of ann", "policy", "key", "add", "anna", "--file", write(t, "ann.asc", public))
	contains(t, s.ok(t, "policy", "key", "list", "-o", "name"), "key/ann")

	signed := sign(body(4))
	if out, err, code := push(body(4), signed); code != exitDone {
		t.Fatalf("exit code %d: %s %s", code, out, err)
	}
	contains(t, s.ok(t, "policy", "list", "-o", "wide"), "SIGNED BY", "ann (openpgp)", " 4 ")
	if _, err, code := push(body(4)+" ", signed); code == exitDone || !strings.Contains(err, "what was sent is not what was signed") {
		t.Errorf("altered: exit code %d, %s", code, err)
	}
	if _, err, code := push(body(3), sign(body(3))); code == exitDone || !strings.Contains(err, "the signed number 3 is not above 4") {
		t.Errorf("replayed: exit code %d, %s", code, err)
	}

	s.ok(t, "policy", "key", "require")
	refused("signed policies only", "policy", "push", write(t, "authz.rego", openToAll))
	contains(t, s.ok(t, "policy", "key", "revoke", "ann", "--reason", "the laptop was stolen"), "the laptop was stolen")
	if _, err, code := push(body(5), sign(body(5))); code == exitDone || !strings.Contains(err, "was revoked at") {
		t.Errorf("revoked: exit code %d, %s", code, err)
	}
	s.ok(t, "policy", "key", "require", "--off")
	s.ok(t, "policy", "push", write(t, "authz.rego", openToAll))
	s.ok(t, "policy", "key", "delete", "ann")
	if _, _, code := s.do(t, "policy", "key", "delete", "ann"); code != exitNotFound {
		t.Errorf("deleted twice: exit code %d", code)
	}
}
