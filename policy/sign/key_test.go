package sign

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
	"github.com/go-json-experiment/json"
	"golang.org/x/crypto/ssh"

	"github.com/muster-registry/muster/fault"
)

func publicPEMOf(t testing.TB, key crypto.PublicKey) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func privatePEMOf(t testing.TB, key any) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func rsaKey(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestKeysAreChecked(t *testing.T) {
	t.Setenv("GODEBUG", "rsa1024min=0") // to make the key that is too small
	ann := owner(t)
	var secret strings.Builder
	w, err := armor.Encode(&secret, openpgp.PrivateKeyType, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := ann.SerializePrivate(w, at(today)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	// The same packets, under the other name.
	disguised := strings.ReplaceAll(secret.String(), "PRIVATE", "PUBLIC")
	var both bytes.Buffer
	if w, err = armor.Encode(&both, openpgp.PublicKeyType, nil); err != nil {
		t.Fatal(err)
	}
	for _, e := range []*openpgp.Entity{ann, owner(t)} {
		if err := e.Serialize(w); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	edPublic, edPrivate, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsa2048 := rsaKey(t, 2048)
	sshPrivate, err := ssh.MarshalPrivateKey(edPrivate, "")
	if err != nil {
		t.Fatal(err)
	}
	_, line := sshKey(t)
	long := strings.Repeat("s", 32)
	for name, tc := range map[string]struct {
		key     Key
		pointer string // where it is refused; "" if it is taken
		says    string
	}{
		"OpenPGP":                 {Key{Kind: OpenPGP, Material: public(t, ann)}, "", ""},
		"SSH":                     {Key{Kind: SSH, Material: line}, "", ""},
		"RSA":                     {Key{Kind: OPA, Algorithm: "RS256", Material: publicPEMOf(t, &rsa2048.PublicKey)}, "", ""},
		"PSS":                     {Key{Kind: OPA, Algorithm: "PS512", Material: publicPEMOf(t, &rsa2048.PublicKey), Scope: "write"}, "", ""},
		"P-256":                   {Key{Kind: OPA, Algorithm: "ES256", Material: publicPEMOf(t, &p256.PublicKey)}, "", ""},
		"Ed25519":                 {Key{Kind: OPA, Algorithm: "EdDSA", Material: publicPEMOf(t, edPublic)}, "", ""},
		"shared secret":           {Key{Kind: OPA, Algorithm: "HS256", Material: long}, "", ""},
		"no kind":                 {Key{Material: line}, "/kind", "openpgp, opa or ssh"},
		"another kind":            {Key{Kind: "x509", Material: line}, "/kind", "openpgp, opa or ssh"},
		"no material":             {Key{Kind: SSH}, "/material", "public key"},
		"large":                   {Key{Kind: SSH, Material: strings.Repeat("x", MaxMaterial+1)}, "/material", "limit"},
		"OpenPGP private":         {Key{Kind: OpenPGP, Material: secret.String()}, "/material", "is a private key"},
		"OpenPGP disguised":       {Key{Kind: OpenPGP, Material: disguised}, "/material", "is a private key"},
		"two OpenPGP":             {Key{Kind: OpenPGP, Material: both.String()}, "/material", "more than one"},
		"PEM as OpenPGP":          {Key{Kind: OpenPGP, Material: publicPEMOf(t, edPublic)}, "/material", "gpg --armor --export"},
		"words":                   {Key{Kind: OpenPGP, Material: "mine"}, "/material", "gpg --armor --export"},
		"PKCS #8":                 {Key{Kind: OPA, Algorithm: "ES256", Material: privatePEMOf(t, p256)}, "/material", "is a private key"},
		"SSH private":             {Key{Kind: SSH, Material: string(pem.EncodeToMemory(sshPrivate))}, "/material", "is a private key"},
		"SSH private as PEM":      {Key{Kind: OPA, Algorithm: "EdDSA", Material: string(pem.EncodeToMemory(sshPrivate))}, "/material", "is a private key"},
		"PEM and more":            {Key{Kind: OPA, Algorithm: "EdDSA", Material: publicPEMOf(t, edPublic) + "x"}, "/material", "not one PEM"},
		"a certificate":           {Key{Kind: OPA, Algorithm: "EdDSA", Material: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE"}))}, "/material", "send a PUBLIC KEY"},
		"damaged":                 {Key{Kind: OPA, Algorithm: "EdDSA", Material: string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY"}))}, "/material", "cannot be read"},
		"RSA for ES256":           {Key{Kind: OPA, Algorithm: "ES256", Material: publicPEMOf(t, &rsa2048.PublicKey)}, "/material", "another type"},
		"P-256 for ES384":         {Key{Kind: OPA, Algorithm: "ES384", Material: publicPEMOf(t, &p256.PublicKey)}, "/material", "another type"},
		"a public key for HS256":  {Key{Kind: OPA, Algorithm: "HS256", Material: publicPEMOf(t, &rsa2048.PublicKey)}, "/material", "shared secret"},
		"a short secret":          {Key{Kind: OPA, Algorithm: "HS512", Material: "hunter2"}, "/material", "32 is the least"},
		"RSA of 1024 bits":        {Key{Kind: OPA, Algorithm: "RS256", Material: publicPEMOf(t, &rsaKey(t, 1024).PublicKey)}, "/material", "2048 is the least"},
		"none":                    {Key{Kind: OPA, Algorithm: "none", Material: long}, "/algorithm", "must be one of"},
		"no algorithm":            {Key{Kind: OPA, Material: long}, "/algorithm", "must be one of"},
		"an algorithm for SSH":    {Key{Kind: SSH, Algorithm: "EdDSA", Material: line}, "/algorithm", "kind opa"},
		"a scope for OpenPGP":     {Key{Kind: OpenPGP, Scope: "x", Material: public(t, ann)}, "/scope", "kind opa"},
		"SSH with options":        {Key{Kind: SSH, Material: `command="x" ` + line}, "/material", "options"},
		"two SSH":                 {Key{Kind: SSH, Material: line + line}, "/material", "more than one"},
		"SSH words":               {Key{Kind: SSH, Material: "ssh-ed25519"}, "/material", "id_ed25519.pub"},
		"revoked without a word":  {Key{Kind: SSH, Material: line, RevokedAt: today}, "/revoked_reason", "say why"},
		"to be revoked some day":  {Key{Kind: SSH, Material: line, RevokedAt: today.Add(day), RevokedReason: "x"}, "/revoked_at", "not_after"},
		"a reason without an end": {Key{Kind: SSH, Material: line, RevokedReason: strings.Repeat("x", maxWords+1)}, "/revoked_reason", "longer"},
	} {
		t.Run(name, func(t *testing.T) {
			k, err := Parse("k", tc.key.Encode(), nil, today)
			if tc.pointer == "" {
				if err != nil || k.Fingerprint == "" {
					t.Fatalf("%+v, %v", k, err)
				}
				return
			}
			f := fault.From(err)
			if f == nil || f.Code != fault.InvalidField || f.Fields[0].Pointer != tc.pointer || !strings.Contains(f.Detail, tc.says) {
				t.Errorf("%v; want %s: … %s", err, tc.pointer, tc.says)
			}
			if strings.Contains(f.Detail, tc.key.Material) && tc.key.Material != "" {
				t.Errorf("the refusal repeats the material: %s", f.Detail)
			}
		})
	}
	for body, code := range map[string]fault.Code{
		`{`: fault.BadRequest, `{"kind":"ssh","kind":"opa"}`: fault.BadRequest,
		`{"key":"x"}`: fault.InvalidField, `{"kind":7}`: fault.InvalidField, `{"not_after":"tomorrow"}`: fault.InvalidField,
		`{"revoked_reason":"x"}`: fault.NotFound, `{}`: fault.InvalidField,
	} {
		if _, err := Parse("k", []byte(body), nil, today); !fault.Is(err, code) {
			t.Errorf("%s: %v, want %s", body, err, code)
		}
	}
}

func TestARevocationStays(t *testing.T) {
	_, line := sshKey(t)
	_, other := sshKey(t)
	k, err := Parse("bob", (&Key{Kind: SSH, Material: line}).Encode(), nil, today)
	if err != nil || !k.RevokedAt.IsZero() || k.Usable(today) != nil {
		t.Fatalf("%+v, %v", k, err)
	}
	revoked, err := Parse("bob", []byte(`{"revoked_reason":"left"}`), k, today.Add(time.Hour+time.Millisecond))
	if err != nil || !revoked.RevokedAt.Equal(today.Add(time.Hour)) || revoked.Material != k.Material || revoked.Usable(today) == nil {
		t.Fatalf("%+v, %v", revoked, err)
	}
	again, err := Parse("bob", []byte(`{"revoked_reason":"something else"}`), revoked, today.Add(2*time.Hour))
	if err != nil || !again.RevokedAt.Equal(revoked.RevokedAt) || again.RevokedReason != "left" {
		t.Errorf("revoked again: %+v, %v", again, err)
	}
	if same, err := Parse("bob", revoked.Encode(), revoked, today.Add(2*time.Hour)); err != nil || !bytes.Equal(same.Encode(), revoked.Encode()) {
		t.Errorf("written back: %+v, %v", same, err)
	}
	for name, next := range map[string]*Key{
		"taken back":  {Kind: SSH, Material: line},
		"another key": {Kind: SSH, Material: other, RevokedAt: revoked.RevokedAt, RevokedReason: "left"},
		"earlier":     {Kind: SSH, Material: line, RevokedAt: today, RevokedReason: "left"},
	} {
		body, err := json.Marshal(next)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse("bob", body, revoked, today.Add(2*time.Hour)); !fault.Is(err, fault.Conflict) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
