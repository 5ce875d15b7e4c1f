package snapshot_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"filippo.io/age"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/snapshot"
)

// sealedFor encrypts a snapshot for a new key.
func sealedFor(t testing.TB, file []byte) (sealed []byte, key *age.X25519Identity) {
	t.Helper()
	key, err := age.GenerateX25519Identity()
	check(t, err)
	to, err := snapshot.ParseRecipients([]string{key.Recipient().String()})
	check(t, err)
	var out bytes.Buffer
	w, err := snapshot.Encrypt(&out, to)
	check(t, err)
	_, err = w.Write(file)
	check(t, errors.Join(err, w.Close()))
	return out.Bytes(), key
}

// opened decrypts and reads a snapshot.
func opened(r io.Reader, with ...snapshot.Identity) (*snapshot.Summary, error) {
	plain, err := snapshot.Decrypt(r, with)
	if err != nil {
		return nil, err
	}
	return snapshot.Verify(plain)
}

func TestEncryptedSnapshots(t *testing.T) {
	file, sum := encode(t, testHeader, testSections)
	sealed, key := sealedFor(t, file)
	if bytes.Contains(sealed, []byte("MUSTERS1")) {
		t.Error("it can be read by anybody")
	}
	got, err := opened(bytes.NewReader(sealed), key)
	if err != nil || asJSON(t, got) != asJSON(t, sum) {
		t.Errorf("%v, %v", got, err)
	}
	// What is not encrypted needs no key, and takes one without harm.
	if _, err := opened(bytes.NewReader(file), key); err != nil {
		t.Error(err)
	}
	_, other := sealedFor(t, file)
	for what, f := range map[string]func() error{
		"encrypted for others": func() error { _, err := opened(bytes.NewReader(sealed), other); return err },
		"--identity":           func() error { _, err := opened(bytes.NewReader(sealed)); return err },
		"is encrypted":         func() error { _, err := snapshot.Verify(bytes.NewReader(sealed)); return err },
		"cut off":              func() error { _, err := opened(bytes.NewReader(sealed[:len(sealed)-1]), key); return err },
	} {
		if err := f(); !fault.Is(err, fault.InvalidSnapshot) || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// A disk that fails is not a file that is damaged.
	broken := iotest.TimeoutReader(iotest.HalfReader(bytes.NewReader(sealed)))
	if _, err := opened(broken, key); !errors.Is(err, iotest.ErrTimeout) || fault.Is(err, fault.InvalidSnapshot) {
		t.Errorf("a disk that fails: %v", err)
	}
	for range 1000 {
		bit := rand.IntN(len(sealed) * 8)
		flipped := bytes.Clone(sealed)
		flipped[bit/8] ^= 1 << (bit % 8)
		if _, err := opened(bytes.NewReader(flipped), key); !fault.Is(err, fault.InvalidSnapshot) {
			t.Fatalf("bit %d of %d: %v", bit, len(sealed)*8, err)
		}
	}
}

// The first format in an encrypted file, written once and never again, stays
// readable by its key.
func TestGoldenV1Encrypted(t *testing.T) {
	ids, err := snapshot.ReadIdentities("testdata/identity.txt")
	check(t, err)
	f, err := os.Open("testdata/v1.snapshot.age")
	check(t, err)
	defer f.Close()
	sum, err := opened(f, ids...)
	check(t, err)
	if sum.SHA256.String() != "de320a6822732e9459d4dad960e2013552c2456263f7f8f472597e1effe74aba" {
		t.Errorf("summary %s", asJSON(t, sum))
	}
}

func TestKeysThatAreNone(t *testing.T) {
	for _, k := range []string{"", "age1", "AGE-SECRET-KEY-1", "ssh-ed25519 AAAA", "age1\nage1"} {
		if _, err := snapshot.ParseRecipients([]string{k}); err == nil {
			t.Errorf("%q was taken", k)
		}
	}
	const secret = "hunter2"
	name := t.TempDir() + "/key"
	check(t, os.WriteFile(name, []byte(secret), 0o600))
	if _, err := snapshot.ReadIdentities(name); err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("%v", err)
	}
}
