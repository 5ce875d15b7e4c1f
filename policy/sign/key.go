package sign

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/crypto/ssh"

	"github.com/muster-registry/muster/fault"
)

// Kind is the world that a key and its signatures belong to.
type Kind string

// The kinds.
const (
	OpenPGP Kind = "openpgp" // bundles and pushes with a detached signature, and Git commits
	OPA     Kind = "opa"     // OPA's signed bundles
	SSH     Kind = "ssh"     // Git commits
)

// Limits on a key.
const (
	MaxMaterial = 256 << 10 // bytes
	maxWords    = 1024      // bytes in a reason or a scope
	minSecret   = 32        // bytes in a shared secret
	minRSA      = 2048      // bits
)

// Algorithms are OPA's names of the algorithms that a key of kind opa may
// have; one key has one, so that a signature cannot choose.
var Algorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "HS256", "HS384", "HS512"}

var errPrivate = errors.New("is a private key; send the public key, and treat this private key as known to others")

// Key is a trusted key: the record of it that an operator writes, and what is
// derived from it.
type Key struct {
	Name string `json:"-"`

	Kind      Kind   `json:"kind"`
	Material  string `json:"material"`            // armored OpenPGP public key; PEM public key; shared secret for HS…; line of an SSH public key
	Algorithm string `json:"algorithm,omitempty"` // kind opa: one of Algorithms
	Scope     string `json:"scope,omitempty"`     // kind opa: the scope that the signature must have

	NotAfter      time.Time `json:"not_after,omitzero"`  // signatures are refused from then on
	RevokedAt     time.Time `json:"revoked_at,omitzero"` // signatures are refused, whenever they were made
	RevokedReason string    `json:"revoked_reason,omitempty"`

	Fingerprint string `json:"fingerprint"` // derived from the material
}

// ReadKey reads the stored record of a trusted key.
func ReadKey(name string, spec []byte) (*Key, error) {
	k := &Key{Name: name}
	if err := json.Unmarshal(spec, k); err != nil {
		return nil, fmt.Errorf("sign: the trusted key %s cannot be read: %w", name, err)
	}
	return k, nil
}

// Parse reads what an operator sends about a key and checks it whole. Before
// is what is stored under the name, nil if nothing is. Where the body has only
// the reason of a revocation, the rest is taken from there; a revocation takes
// effect at now and stays. Errors are bad_request, invalid_field, not_found
// and conflict.
func Parse(name string, body []byte, before *Key, now time.Time) (*Key, error) {
	k := &Key{Name: name}
	if err := json.Unmarshal(body, k, json.RejectUnknownMembers(true)); err != nil {
		if e, ok := errors.AsType[*json.SemanticError](err); ok {
			if errors.Is(e.Err, json.ErrUnknownName) {
				return nil, fault.Invalid(string(e.JSONPointer), "is not a known field of a key")
			}
			return nil, fault.Invalid(string(e.JSONPointer), "has the wrong type")
		}
		return nil, fault.Wrap(fault.BadRequest, err, "the body is not valid JSON")
	}
	if k.Kind == "" && k.Material == "" && k.RevokedReason != "" {
		if before == nil {
			return nil, fault.New(fault.NotFound, "there is no trusted key %s to revoke", name)
		}
		reason := k.RevokedReason
		*k = *before
		if k.RevokedAt.IsZero() {
			k.RevokedReason = reason
		}
	}
	if err := k.words(); err != nil {
		return nil, err
	}
	if err := k.revocation(before, now); err != nil {
		return nil, err
	}
	return k, k.derive()
}

// words checks what is neither material nor time.
func (k *Key) words() error {
	switch {
	case !slices.Contains([]Kind{OpenPGP, OPA, SSH}, k.Kind):
		return fault.Invalid("/kind", "must be openpgp, opa or ssh")
	case k.Material == "":
		return fault.Invalid("/material", "give the public key")
	case len(k.Material) > MaxMaterial:
		return fault.Invalid("/material", "%d bytes are more than the limit of %d", len(k.Material), MaxMaterial)
	case k.Kind == OPA && !slices.Contains(Algorithms, k.Algorithm):
		return fault.Invalid("/algorithm", "must be one of %s, as the key signs", strings.Join(Algorithms, ", "))
	case k.Kind != OPA && k.Algorithm != "":
		return fault.Invalid("/algorithm", "only a key of kind opa has one")
	case k.Kind != OPA && k.Scope != "":
		return fault.Invalid("/scope", "only a key of kind opa has one")
	case len(k.Scope) > maxWords:
		return fault.Invalid("/scope", "is longer than %d bytes", maxWords)
	case len(k.RevokedReason) > maxWords:
		return fault.Invalid("/revoked_reason", "is longer than %d bytes", maxWords)
	}
	return nil
}

// revocation settles when the key was revoked: once, at the time of the call.
func (k *Key) revocation(before *Key, now time.Time) error {
	now = now.UTC().Truncate(time.Second)
	k.NotAfter = k.NotAfter.UTC()
	was := time.Time{}
	if before != nil {
		was = before.RevokedAt
	}
	switch {
	case !was.IsZero() && (!k.RevokedAt.Equal(was) || k.Material != before.Material):
		return fault.New(fault.Conflict, "the key %s is revoked and stays so; give the new key another name", k.Name)
	case !was.IsZero():
		k.RevokedAt = was
	case k.RevokedAt.IsZero() && k.RevokedReason == "":
	case k.RevokedReason == "":
		return fault.Invalid("/revoked_reason", "say why the key is revoked")
	case k.RevokedAt.After(now):
		return fault.Invalid("/revoked_at", "is in the future; to end a key later set not_after")
	default:
		k.RevokedAt = now
	}
	return nil
}

// Encode gives the record as it is stored.
func (k *Key) Encode() []byte {
	b, err := json.Marshal(k, json.Deterministic(true))
	if err != nil {
		panic("sign: a key that was checked does not encode: " + err.Error())
	}
	return b
}

// Secret says whether the material is a shared secret, which is shown to
// nobody.
func (k *Key) Secret() bool { return strings.HasPrefix(k.Algorithm, "HS") }

// Usable says why signatures by the key are refused at that moment by what its
// record says; nil if they are not. The error is invalid_policy.
func (k *Key) Usable(now time.Time) error {
	if !k.RevokedAt.IsZero() {
		return Refused("the key %s was revoked at %s: %s", k.Name, stamp(k.RevokedAt), k.RevokedReason)
	}
	if !k.NotAfter.IsZero() && !now.Before(k.NotAfter) {
		return Refused("the key %s has expired: it was trusted until %s", k.Name, stamp(k.NotAfter))
	}
	return nil
}

// derive checks the material and fills in the fingerprint.
func (k *Key) derive() error {
	var err error
	switch k.Kind {
	case OpenPGP:
		err = k.deriveOpenPGP()
	case SSH:
		var key ssh.PublicKey
		if key, err = readSSH(k.Material); err == nil {
			k.Fingerprint = ssh.FingerprintSHA256(key)
		}
	case OPA:
		err = k.deriveOPA()
	}
	if err != nil {
		return fault.Invalid("/material", "%v", err)
	}
	return nil
}

func (k *Key) deriveOpenPGP() error {
	e, err := readEntity(k.Material)
	if err != nil {
		return err
	}
	k.Fingerprint = strings.ToUpper(hex.EncodeToString(e.PrimaryKey.Fingerprint))
	return nil
}

// deriveOPA holds the material to the one algorithm of the key. A shared
// secret that is somebody's public key would let everybody sign.
func (k *Key) deriveOPA() error {
	block, rest := pem.Decode([]byte(k.Material))
	if k.Secret() {
		if block != nil || strings.Contains(k.Material, "-----BEGIN") {
			return fmt.Errorf("is PEM, and %s needs a shared secret; for a public key choose its algorithm, such as RS256 or ES256", k.Algorithm)
		}
		if len(k.Material) < minSecret {
			return fmt.Errorf("is a shared secret of %d bytes; %d is the least", len(k.Material), minSecret)
		}
		k.Fingerprint = fingerprint([]byte(k.Material))
		return nil
	}
	switch {
	case block == nil || strings.TrimSpace(string(rest)) != "":
		return errors.New("is not one PEM public key; make one with openssl pkey -pubout")
	case strings.Contains(block.Type, "PRIVATE KEY"):
		return errPrivate
	}
	public, err := publicPEM(block)
	if err != nil {
		return err
	}
	if err := strongEnough(public); err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil || !fits(k.Algorithm, public) {
		return fmt.Errorf("is a key of another type than %s needs: name the algorithm that it signs with", k.Algorithm)
	}
	k.Fingerprint = fingerprint(der)
	return nil
}

func fingerprint(b []byte) string {
	sum := sha256.Sum256(b)
	return "SHA256:" + hex.EncodeToString(sum[:])
}

func publicPEM(block *pem.Block) (public crypto.PublicKey, err error) {
	switch block.Type {
	case "PUBLIC KEY":
		public, err = x509.ParsePKIXPublicKey(block.Bytes)
	case "RSA PUBLIC KEY":
		public, err = x509.ParsePKCS1PublicKey(block.Bytes)
	default:
		return nil, fmt.Errorf("is PEM of type %q; send a PUBLIC KEY", block.Type)
	}
	if err != nil {
		return nil, errors.New("cannot be read as a public key")
	}
	return public, nil
}

func strongEnough(public crypto.PublicKey) error {
	if r, ok := public.(*rsa.PublicKey); ok && r.N.BitLen() < minRSA {
		return fmt.Errorf("is an RSA key of %d bits; %d is the least", r.N.BitLen(), minRSA)
	}
	return nil
}

var curves = map[string]string{"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}

// fits says whether the key can have made a signature by the algorithm.
func fits(algorithm string, public crypto.PublicKey) bool {
	switch k := public.(type) {
	case *rsa.PublicKey:
		return strings.HasPrefix(algorithm, "RS") || strings.HasPrefix(algorithm, "PS")
	case *ecdsa.PublicKey:
		return curves[algorithm] == k.Curve.Params().Name
	case ed25519.PublicKey:
		return algorithm == "EdDSA"
	}
	return false
}
