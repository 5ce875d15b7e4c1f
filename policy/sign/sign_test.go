package sign

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"
	"pgregory.net/rapid"

	"github.com/muster-registry/muster/fault"
)

// today is when signatures are judged in these tests.
var today = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const day = 24 * time.Hour

func at(t time.Time, change ...func(*packet.Config)) *packet.Config {
	c := &packet.Config{Time: func() time.Time { return t }, Algorithm: packet.PubKeyAlgoEdDSA}
	for _, f := range change {
		f(c)
	}
	return c
}

// owner makes the key of a person who signs, a month before today.
func owner(t testing.TB, change ...func(*packet.Config)) *openpgp.Entity {
	t.Helper()
	e, err := openpgp.NewEntity("Ann", "", "ann@example.org", at(today.Add(-30*day), change...))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func public(t testing.TB, e *openpgp.Entity) string {
	t.Helper()
	var b strings.Builder
	w, err := armor.Encode(&b, openpgp.PublicKeyType, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Serialize(w); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// by signs the message as of the moment given, in binary.
func by(t testing.TB, e *openpgp.Entity, when time.Time, message []byte, change ...func(*packet.Config)) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := openpgp.DetachSign(&b, []*openpgp.Entity{e}, bytes.NewReader(message), at(when, change...)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// raw signs without any of the library's care.
func raw(t testing.TB, key *packet.PrivateKey, hash crypto.Hash, kind packet.SignatureType, when time.Time, message []byte) []byte {
	t.Helper()
	sig := &packet.Signature{Version: 4, SigType: kind, PubKeyAlgo: key.PubKeyAlgo, Hash: hash, CreationTime: when, IssuerKeyId: &key.KeyId}
	h := hash.New()
	h.Write(message)
	if err := sig.Sign(h, key, nil); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := sig.Serialize(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func armored(t testing.TB, signature []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := armor.Encode(&b, signatureArmor, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(signature); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// trusting makes a verifier that trusts the keys, as an operator would.
func trusting(t testing.TB, keys ...*Key) *Verifier {
	t.Helper()
	var stored []*Key
	for _, k := range keys {
		checked, err := Parse(k.Name, k.Encode(), nil, today)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ReadKey(k.Name, checked.Encode())
		if err != nil || again.Fingerprint == "" {
			t.Fatalf("%+v, %v", again, err)
		}
		stored = append(stored, again)
	}
	return New(func() []*Key { return stored }, func() time.Time { return today })
}

func pgp(t testing.TB, name string, e *openpgp.Entity) *Key {
	return &Key{Name: name, Kind: OpenPGP, Material: public(t, e)}
}

var message = []byte("a bundle\r\n\x00\xff")

func TestDetached(t *testing.T) {
	ann, rsaKey := owner(t), owner(t, func(c *packet.Config) { c.Algorithm, c.RSABits = packet.PubKeyAlgoRSA, 2048 })
	sub := owner(t)
	if err := sub.AddSigningSubkey(at(today.Add(-20 * day))); err != nil {
		t.Fatal(err)
	}
	v := trusting(t, pgp(t, "ann", ann), pgp(t, "rsa", rsaKey), pgp(t, "sub", sub))
	for name, tc := range map[string]struct {
		signature []byte
		key       string
	}{
		"binary":                {by(t, ann, today.Add(-day), message), "ann"},
		"armored":               {armored(t, by(t, ann, today, message)), "ann"},
		"armored, in a mail":    {append([]byte("\n\n"), armored(t, by(t, ann, today, message))...), "ann"},
		"RSA":                   {by(t, rsaKey, today, message), "rsa"},
		"subkey":                {by(t, sub, today, message), "sub"},
		"a clock a little fast": {by(t, ann, today.Add(30*time.Second), message), "ann"},
		"an old signature":      {by(t, ann, today.Add(-29*day), message), "ann"},
	} {
		t.Run(name, func(t *testing.T) {
			k, err := v.Detached(message, tc.signature)
			if err != nil || k.Name != tc.key {
				t.Fatalf("%+v, %v", k, err)
			}
			if name, err := v.Commit(message, tc.signature); err != nil || name != tc.key {
				t.Errorf("as a commit: %s, %v", name, err)
			}
			for i := range message {
				altered := bytes.Clone(message)
				altered[i] ^= 1
				if _, err := v.Detached(altered, tc.signature); !fault.Is(err, fault.InvalidPolicy) || !strings.Contains(err.Error(), "what was sent is not what was signed") {
					t.Errorf("with byte %d altered: %v", i, err)
				}
			}
		})
	}
}

func TestDetachedRefused(t *testing.T) {
	ann := owner(t)
	expired := owner(t, func(c *packet.Config) { c.KeyLifetimeSecs = uint32(20 * day / time.Second) })
	revoked, retired := owner(t), owner(t)
	if err := revoked.Revoke(packet.KeyCompromised, "stolen", at(today.Add(-day))); err != nil {
		t.Fatal(err)
	}
	if err := retired.Revoke(packet.KeyRetired, "done", at(today.Add(-day))); err != nil {
		t.Fatal(err)
	}
	subRevoked, subExpired := owner(t), owner(t)
	if err := subRevoked.AddSigningSubkey(at(today.Add(-20 * day))); err != nil {
		t.Fatal(err)
	}
	subSignature := by(t, subRevoked, today, message)
	if err := subRevoked.Subkeys[1].Revoke(packet.KeySuperseded, "", at(today.Add(-day))); err != nil {
		t.Fatal(err)
	}
	if err := subExpired.AddSigningSubkey(at(today.Add(-20*day), func(c *packet.Config) { c.KeyLifetimeSecs = uint32(10 * day / time.Second) })); err != nil {
		t.Fatal(err)
	}
	encrypts := owner(t) // its subkey is for encryption: make the primary one that may only certify
	for _, id := range encrypts.Identities {
		id.SelfCertifications[0].Packet.FlagSign = false
		if err := id.SelfCertifications[0].Packet.SignUserId(id.Name, encrypts.PrimaryKey, encrypts.PrivateKey, at(today.Add(-29*day))); err != nil {
			t.Fatal(err)
		}
	}
	withdrawn, ended := pgp(t, "withdrawn", owner(t)), owner(t)
	withdrawnOwner := owner(t)
	withdrawn.Material, withdrawn.RevokedReason = public(t, withdrawnOwner), "the laptop was stolen"
	endedKey := pgp(t, "ended", ended)
	endedKey.NotAfter = today
	v := trusting(t, pgp(t, "ann", ann), pgp(t, "expired", expired), pgp(t, "revoked", revoked), pgp(t, "retired", retired),
		pgp(t, "sub-revoked", subRevoked), pgp(t, "sub-expired", subExpired), pgp(t, "certifies", encrypts), withdrawn, endedKey)
	good := by(t, ann, today, message)
	var private bytes.Buffer
	if err := ann.SerializePrivate(&private, nil); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		signature []byte
		says      string
	}{
		"unknown":                    {by(t, owner(t), today, message), "no trusted OpenPGP key"},
		"expired":                    {by(t, expired, today.Add(-25*day), message), "the key expired has expired"},
		"expired before it signed":   {raw(t, expired.PrivateKey, crypto.SHA256, packet.SigTypeBinary, today, message), "the key expired has expired"},
		"revoked":                    {raw(t, revoked.PrivateKey, crypto.SHA256, packet.SigTypeBinary, today.Add(-9*day), message), "revoked by its owner"},
		"retired, dated back":        {raw(t, retired.PrivateKey, crypto.SHA256, packet.SigTypeBinary, today.Add(-9*day), message), "revoked by its owner"},
		"subkey revoked":             {subSignature, "subkey"},
		"subkey expired, dated back": {by(t, subExpired, today.Add(-15*day), message), "subkey"},
		"may not sign":               {raw(t, encrypts.PrivateKey, crypto.SHA256, packet.SigTypeBinary, today, message), "not for signing data"},
		"by the encryption subkey":   {withIssuer(t, ann, ann.Subkeys[0].PublicKey.Fingerprint), "not for signing data"},
		"revoked in muster":          {by(t, withdrawnOwner, today, message), "revoked at 2026-03-01T12:00:00Z: the laptop was stolen"},
		"trusted until today":        {by(t, ended, today.Add(-day), message), "it was trusted until 2026-03-01T12:00:00Z"},
		"signature expired":          {by(t, ann, today.Add(-9*day), message, func(c *packet.Config) { c.SigLifetimeSecs = 3600 }), "it has expired"},
		"of the future":              {by(t, ann, today.Add(time.Hour), message), "in the future"},
		"older than the key":         {raw(t, ann.PrivateKey, crypto.SHA256, packet.SigTypeBinary, today.Add(-60*day), message), "does not hold"},
		"SHA-1":                      {overSHA1(t, ann), "too weak"},
		"over text":                  {raw(t, ann.PrivateKey, crypto.SHA256, packet.SigTypeText, today, message), "exact bytes"},
		"a certification":            {raw(t, ann.PrivateKey, crypto.SHA256, packet.SigTypeGenericCert, today, message), "exact bytes"},
		"by anyone":                  {withIssuer(t, ann, make([]byte, 20)), "which key made it"},
		"two":                        {append(bytes.Clone(good), good...), "more than one"},
		"two, one unknown":           {append(by(t, owner(t), today, message), good...), "more than one"},
		"something after":            {append(bytes.Clone(good), "garbage"...), "damaged"},
		"cut short":                  {good[:len(good)/2], "damaged"},
		"a key":                      {private.Bytes(), "damaged"},
		"an armored key":             {[]byte(public(t, ann)), "not an OpenPGP signature"},
		"empty":                      {nil, "empty"},
		"words":                      {[]byte("trust me"), "not an OpenPGP signature"},
		"huge":                       {bytes.Repeat([]byte{0xc2}, MaxSignature+1), "is the most"},
		"SSH":                        {[]byte(sshArmor + "\n"), "Git commits only"},
	} {
		t.Run(name, func(t *testing.T) {
			k, err := v.Detached(message, tc.signature)
			if k != nil || !fault.Is(err, fault.InvalidPolicy) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%v, %v; want words like %q", k, err, tc.says)
			}
		})
	}
}

// withIssuer names another issuer than the key that signs.
func withIssuer(t testing.TB, e *openpgp.Entity, fingerprint []byte) []byte {
	t.Helper()
	key := *e.PrivateKey
	key.Fingerprint, key.KeyId = fingerprint, binary.BigEndian.Uint64(fingerprint[12:])
	return raw(t, &key, crypto.SHA256, packet.SigTypeBinary, today, message)
}

// overSHA1 says that the hash is SHA-1, which the library does not make any more.
func overSHA1(t testing.TB, e *openpgp.Entity) []byte {
	t.Helper()
	const hash = 5 // behind tag, length, version, type and algorithm
	b := raw(t, e.PrivateKey, crypto.SHA256, packet.SigTypeBinary, today, message)
	if b[hash] != 8 {
		t.Fatalf("no SHA-256 in % x", b[:hash+1])
	}
	b[hash] = 2
	return b
}

// Whatever is done to a signature, it is refused or names the key that made it.
func TestDamagedSignatures(t *testing.T) {
	ann := owner(t)
	v := trusting(t, pgp(t, "ann", ann))
	good := by(t, ann, today, message)
	rapid.Check(t, func(t *rapid.T) {
		b := bytes.Clone(good)
		for range rapid.IntRange(1, 3).Draw(t, "changes") {
			b[rapid.IntRange(0, len(b)-1).Draw(t, "at")] = rapid.Byte().Draw(t, "to")
		}
		b = b[:rapid.IntRange(0, len(b)).Draw(t, "length")]
		switch k, err := v.Detached(message, b); {
		case err == nil && k.Name == "ann":
		case fault.Is(err, fault.InvalidPolicy):
		default:
			t.Fatalf("%v, %v", k, err)
		}
	})
}

func sshKey(t testing.TB) (ssh.Signer, string) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return s, string(ssh.MarshalAuthorizedKey(s.PublicKey()))
}

func sshSigned(t testing.TB, s ssh.Signer, namespace string) []byte {
	t.Helper()
	sig, err := sshsig.Sign(bytes.NewReader(message), s, sshsig.HashSHA512, namespace)
	if err != nil {
		t.Fatal(err)
	}
	return sshsig.Armor(sig)
}

func TestCommitsSignedBySSH(t *testing.T) {
	bob, bobLine := sshKey(t)
	eve, eveLine := sshKey(t)
	stranger, _ := sshKey(t)
	v := trusting(t, &Key{Name: "bob", Kind: SSH, Material: bobLine}, &Key{Name: "eve", Kind: SSH, Material: eveLine, RevokedReason: "left"})
	good := sshSigned(t, bob, gitNamespace)
	if name, err := v.Commit(message, good); err != nil || name != "bob" {
		t.Fatalf("%s, %v", name, err)
	}
	for name, tc := range map[string]struct {
		payload, signature []byte
		says               string
	}{
		"altered":       {[]byte("another"), good, "not what was signed"},
		"for mail":      {message, sshSigned(t, bob, "file"), `made for "file"`},
		"revoked":       {message, sshSigned(t, eve, gitNamespace), "revoked"},
		"unknown":       {message, sshSigned(t, stranger, gitNamespace), "not trusted"},
		"two":           {message, append(bytes.Clone(good), good...), "more than one"},
		"damaged":       {message, bytes.Replace(good, []byte("U1NIU0lH"), []byte("U1NIU0lI"), 1), "damaged"},
		"unsigned":      {message, nil, "not signed"},
		"no signature":  {message, []byte("x"), "not an OpenPGP signature"},
		"cut short":     {message, good[:len(good)-40], "damaged"},
		"much too long": {message, append([]byte(sshArmor), bytes.Repeat([]byte("x"), MaxSignature)...), "is the most"},
	} {
		if name2, err := v.Commit(tc.payload, tc.signature); name2 != "" || !fault.Is(err, fault.InvalidPolicy) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %q, %v; want words like %q", name, name2, err, tc.says)
		}
	}
}

func TestSSHSignaturesOverSHA1AreRefused(t *testing.T) {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	v := trusting(t, &Key{Name: "old", Kind: SSH, Material: string(ssh.MarshalAuthorizedKey(s.PublicKey()))})
	sig, err := sshsig.Sign(bytes.NewReader(message), s, sshsig.HashSHA256, gitNamespace)
	if err != nil {
		t.Fatal(err)
	}
	if name, err := v.Commit(message, sshsig.Armor(sig)); err != nil || name != "old" {
		t.Errorf("over SHA-2: %s, %v", name, err)
	}
	sig.Signature.Format = ssh.KeyAlgoRSA
	if _, err := v.Commit(message, sshsig.Armor(sig)); err == nil || !strings.Contains(err.Error(), "rsa-sha2-256") {
		t.Errorf("over SHA-1: %v", err)
	}
}

// What GnuPG, Git's and everyone's signer, makes is taken. Where it is not
// installed the library's own signatures have to do.
func TestSignedByGnuPG(t *testing.T) {
	tool, err := exec.LookPath("gpg")
	if err != nil {
		return
	}
	home, err := os.MkdirTemp("", "gpg") // its socket has a path of 108 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	gpg := func(in []byte, args ...string) []byte {
		t.Helper()
		c := exec.Command(tool, append([]string{"--homedir", home, "--batch", "--quiet", "--passphrase", "", "--pinentry-mode", "loopback"}, args...)...)
		c.Stdin = bytes.NewReader(in)
		var complaint bytes.Buffer
		c.Stderr = &complaint
		out, err := c.Output()
		if err != nil {
			t.Fatalf("gpg %v: %v\n%s", args, err, &complaint)
		}
		return out
	}
	t.Cleanup(func() {
		_ = exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run()
		_ = os.RemoveAll(home)
	})
	gpg(nil, "--quick-generate-key", "carol@example.org", "ed25519", "sign", "1d")
	now := time.Now()
	stored, err := Parse("carol", (&Key{Kind: OpenPGP, Material: string(gpg(nil, "--armor", "--export"))}).Encode(), nil, now)
	if err != nil {
		t.Fatal(err)
	}
	v := New(func() []*Key { return []*Key{stored} }, func() time.Time { return now })
	for _, args := range [][]string{{"--detach-sign"}, {"--detach-sign", "--armor"}} {
		signature := gpg(message, args...)
		if k, err := v.Detached(message, signature); err != nil || k.Name != "carol" {
			t.Errorf("%v: %v, %v", args, k, err)
		}
		if _, err := v.Detached(message[1:], signature); !fault.Is(err, fault.InvalidPolicy) {
			t.Errorf("%v over something else: %v", args, err)
		}
	}
	// The certificate that gpg made along with the key revokes it.
	revs, err := filepath.Glob(filepath.Join(home, "openpgp-revocs.d", "*.rev"))
	if err != nil || len(revs) != 1 {
		t.Fatalf("%v, %v", revs, err)
	}
	cert, err := os.ReadFile(revs[0])
	if err != nil {
		t.Fatal(err)
	}
	signature := gpg(message, "--detach-sign")
	gpg(bytes.Replace(cert, []byte(":-----"), []byte("-----"), 1), "--import")
	revoked, err := Parse("carol", (&Key{Kind: OpenPGP, Material: string(gpg(nil, "--armor", "--export"))}).Encode(), stored, now)
	if err != nil {
		t.Fatal(err)
	}
	v = New(func() []*Key { return []*Key{revoked} }, func() time.Time { return now })
	if _, err := v.Detached(message, signature); err == nil || !strings.Contains(err.Error(), "revoked by its owner") {
		t.Errorf("after the revocation: %v", err)
	}
}
