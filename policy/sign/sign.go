// Package sign owns who may vouch for a policy: the trusted keys, and what a
// signature by one of them is worth at a moment. It verifies OpenPGP
// signatures over exact bytes and signed Git commits; OPA's own signed bundles
// are verified where OPA is, with the keys that this room has checked.
//
// It refuses to believe a signature that is not by a trusted key, by a key
// that has expired or was revoked, in OpenPGP's terms or in muster's, by a key
// that is not meant for signing, over a weak hash, dated in the future, or one
// of several. It refuses to hold private keys. It reads no clock: its callers
// bring the time.
package sign

import (
	"bytes"
	"time"

	"github.com/muster-registry/muster/fault"
)

// MaxSignature is the size of the largest signature that is looked at, in
// bytes. One by a post-quantum key takes about 70 KiB when armored.
const MaxSignature = 128 << 10

// skew is how far a signer's clock may be ahead.
const skew = time.Minute

// Verifier checks signatures against the trusted keys of the moment. It is
// safe for concurrent use when its two functions are.
type Verifier struct {
	keys func() []*Key
	now  func() time.Time
}

// New makes a verifier on what keys gives each time it is asked.
func New(keys func() []*Key, now func() time.Time) *Verifier {
	return &Verifier{keys: keys, now: now}
}

// Keys gives the trusted keys of a kind, those that may no longer sign
// included.
func (v *Verifier) Keys(kind Kind) []*Key {
	var out []*Key
	for _, k := range v.keys() {
		if k.Kind == kind {
			out = append(out, k)
		}
	}
	return out
}

// Now is the moment that signatures are judged at.
func (v *Verifier) Now() time.Time { return v.now() }

// Detached verifies an OpenPGP signature, armored or binary, over exactly the
// bytes of message, and gives the trusted key that made it. The error is
// invalid_policy.
func (v *Verifier) Detached(message, signature []byte) (*Key, error) {
	if bytes.Contains(signature, []byte(sshArmor)) {
		return nil, Refused("the signature is an SSH signature, which muster takes on Git commits only; sign with gpg --detach-sign")
	}
	return v.openPGP(message, signature)
}

// Commit verifies the signature of a Git commit, OpenPGP or SSH, over the
// commit object without its signature, and gives the name of the trusted key
// that made it. The error is invalid_policy.
func (v *Verifier) Commit(payload, signature []byte) (key string, err error) {
	if len(bytes.TrimSpace(signature)) == 0 {
		return "", Refused("the commit is not signed; sign it with git commit -S")
	}
	verify := v.openPGP
	if bytes.Contains(signature, []byte(sshArmor)) {
		verify = v.ssh
	}
	k, err := verify(payload, signature)
	if err != nil {
		return "", err
	}
	return k.Name, nil
}

// Refused is an invalid_policy error about a signature: one sentence on what
// is wrong with it and what to do.
func Refused(format string, args ...any) error {
	f := fault.New(fault.InvalidPolicy, format, args...)
	f.Places = []fault.Place{{Message: f.Detail}}
	return f
}
