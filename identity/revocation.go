package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"slices"
	"strings"
	"time"

	"github.com/muster-registry/muster/fault"
)

// What a revocation can name.
const (
	RevokeToken   = "token"   // one of muster's tokens: its id, the name of a static one, or sha256: and the hex SHA-256 of any bearer token's text
	RevokeJTI     = "jti"     // a JWT by its id, whoever issued it
	RevokeSubject = "subject" // everything that proves this sub, this common name, this name in a principal id, or the whole id
	RevokeSerial  = "serial"  // a certificate by its serial number, in hex, whoever issued it
	RevokeSPIFFE  = "spiffe"  // everything that proves this SPIFFE id
	RevokeKey     = "key"     // certificates with this public key: the hex SHA-256 of its DER form (SubjectPublicKeyInfo)
)

// RevocationKinds lists what a revocation can name.
func RevocationKinds() []string {
	return []string{RevokeToken, RevokeJTI, RevokeSubject, RevokeSerial, RevokeSPIFFE, RevokeKey}
}

const (
	maxRevoked = 1024 // bytes of a value
	maxReason  = 1024
	hashPrefix = "sha256:"
)

// Revocation says that credentials are no longer good.
type Revocation struct {
	Kind      string    `json:"kind"`
	Value     string    `json:"value"`
	Reason    string    `json:"reason"`
	ExpiresAt time.Time `json:"expires_at,omitzero"` // from then on it may be forgotten; zero: never
}

// ID names the revocation: the same for the same kind and value.
func (r *Revocation) ID() string {
	sum := sha256.Sum256([]byte(r.Kind + "\x00" + r.Value))
	return r.Kind + "-" + hex.EncodeToString(sum[:12])
}

// Canonical brings the revocation into the one form that credentials are
// compared with, or refuses it with invalid_field.
func (r *Revocation) Canonical() error {
	if !slices.Contains(RevocationKinds(), r.Kind) {
		return fault.Invalid("/kind", "must be one of %s", strings.Join(RevocationKinds(), ", "))
	}
	if r.Reason = strings.TrimSpace(r.Reason); r.Reason == "" || len(r.Reason) > maxReason || !printable(r.Reason) {
		return fault.Invalid("/reason", "say why, for those who read it later, in at most %d bytes on one line", maxReason)
	}
	if r.Value == "" || len(r.Value) > maxRevoked || !printable(r.Value) {
		return fault.Invalid("/value", "give what is revoked, in at most %d bytes", maxRevoked)
	}
	r.ExpiresAt = r.ExpiresAt.UTC()
	return r.canonicalValue()
}

func (r *Revocation) canonicalValue() error {
	switch r.Kind {
	case RevokeToken:
		if strings.HasPrefix(r.Value, tokenPrefix) {
			return fault.Invalid("/value", "give the token's id, never its text: the %d hex digits behind %s", idLength, tokenPrefix)
		}
		if digits, ok := strings.CutPrefix(r.Value, hashPrefix); ok {
			if r.Value = hashPrefix + strings.ToLower(digits); !hexOf(r.Value[len(hashPrefix):], sha256.Size) {
				return fault.Invalid("/value", "behind sha256: stand the %d hex digits of the SHA-256 of the token's text", 2*sha256.Size)
			}
		}
	case RevokeSerial:
		r.Value = strings.TrimLeft(strings.ToLower(strings.ReplaceAll(r.Value, ":", "")), "0")
		if r.Value == "" || strings.Trim(r.Value, "0123456789abcdef") != "" {
			return fault.Invalid("/value", "give the serial number in hex, as openssl x509 -serial prints it")
		}
	case RevokeKey:
		r.Value = strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(r.Value, hashPrefix), ":", ""))
		if !hexOf(r.Value, sha256.Size) {
			return fault.Invalid("/value", "give the hex SHA-256 of the public key in DER form (openssl x509 -pubkey -noout | openssl pkey -pubin -outform der | sha256sum)")
		}
	case RevokeSPIFFE:
		if !strings.HasPrefix(r.Value, "spiffe://") {
			return fault.Invalid("/value", "a SPIFFE id begins with spiffe://")
		}
	}
	return nil
}

func hexOf(s string, size int) bool {
	raw, err := hex.DecodeString(s)
	return err == nil && len(raw) == size
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f || r == '\uFFFD' })
}

// Fingerprint is what a revocation of the kind key names: the hex SHA-256 of
// the certificate's public key in DER form.
func Fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// revoked is a kind and a value.
type revoked struct{ kind, value string }

// names lists by what revocations can name the credential of p.
func names(p *Principal) (all []revoked) {
	add := func(kind, value string) {
		if value != "" {
			all = append(all, revoked{kind, value})
		}
	}
	c := &p.Credential
	add(RevokeToken, c.TokenID)
	if c.TextHash != [sha256.Size]byte{} {
		add(RevokeToken, hashPrefix+hex.EncodeToString(c.TextHash[:]))
	}
	add(RevokeJTI, c.JTI)
	add(RevokeSubject, c.Subject)
	add(RevokeSubject, p.ID)
	// What names the caller need not be its sub: the configuration may say
	// another claim.
	if name, ok := strings.CutPrefix(p.ID, KindOIDC+":"+c.Provider+"/"); ok {
		add(RevokeSubject, name)
	}
	for _, id := range []string{p.ID, c.Subject} {
		if strings.HasPrefix(id, "spiffe://") {
			add(RevokeSPIFFE, id)
		}
	}
	return append(all, certificateNames(c.Certificate)...)
}

// certificateNames lists by what revocations can name a certificate.
func certificateNames(cert *x509.Certificate) (all []revoked) {
	if cert == nil {
		return nil
	}
	if cert.SerialNumber != nil {
		all = append(all, revoked{RevokeSerial, strings.TrimLeft(cert.SerialNumber.Text(16), "0")})
	}
	all = append(all, revoked{RevokeKey, Fingerprint(cert)})
	for _, u := range cert.URIs {
		all = append(all, revoked{RevokeSPIFFE, u.String()}, revoked{RevokeSubject, u.String()})
	}
	if cn := cert.Subject.CommonName; cn != "" {
		all = append(all, revoked{RevokeSubject, cn})
	}
	return all
}
