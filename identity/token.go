package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/fault"
)

const (
	tokenPrefix  = "muster_"
	idLength     = 16 // hex digits
	secretLength = 43 // base64url of 32 bytes
	tokenLength  = len(tokenPrefix) + idLength + 1 + secretLength
)

// The life of a token: the default where none is asked for, and the limits.
const (
	DefaultTTL = 90 * 24 * time.Hour
	MinTTL     = time.Second
	MaxTTL     = 10 * 365 * 24 * time.Hour
)

// Stamp is what a command brings along: the revision the state machine gave
// the change, the leader's time and the principal that asked.
type Stamp struct {
	Revision uint64
	Time     time.Time
	By       string
}

// Meta is what every record carries.
type Meta struct {
	Revision  uint64    `json:"revision"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
	CreatedBy string    `json:"created_by"`
}

// Token is a stored bearer token without its secret. It is immutable: a token
// is created and revoked, never changed.
type Token struct {
	ID string `json:"id"`
	Spec
	Meta

	// JSON is the record as it is served: without the hash.
	JSON []byte `json:"-"`

	digest    [sha256.Size]byte
	principal *Principal
}

// Spec is what a token's creator decides, and the hash of its text.
type Spec struct {
	Role       string    `json:"role"`
	Namespaces []string  `json:"namespaces"` // empty: all
	ExpiresAt  time.Time `json:"expires_at"`
	Hash       string    `json:"hash,omitempty"` // SHA-256 of the whole text, hex
}

// Minted is a new token on the one occasion its text is known.
type Minted struct {
	ID   string
	Text string // muster_ID_SECRET: shown to its owner once, stored nowhere
	Spec []byte // canonical JSON for the replicated command; holds the hash only
}

// Mint makes a new token that expires ttl after now; 0 means [DefaultTTL].
// Role and namespaces are taken as they are: the caller has checked them.
// It refuses a ttl out of range with invalid_field.
func Mint(role string, namespaces []string, ttl time.Duration, now time.Time) (*Minted, error) {
	if ttl == 0 {
		ttl = DefaultTTL
	}
	if ttl < MinTTL || ttl > MaxTTL {
		return nil, fault.Invalid("/ttl", "give a duration from %s to %s", MinTTL, MaxTTL)
	}
	var raw [idLength/2 + 32]byte
	rand.Read(raw[:]) // never fails: the runtime aborts instead
	id := hex.EncodeToString(raw[:idLength/2])
	text := tokenPrefix + id + "_" + base64.RawURLEncoding.EncodeToString(raw[idLength/2:])
	if namespaces == nil {
		namespaces = []string{}
	}
	spec, err := json.Marshal(Spec{
		Role:       role,
		Namespaces: namespaces,
		ExpiresAt:  now.UTC().Add(ttl).Truncate(time.Second),
		Hash:       Hash(text),
	})
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "the token could not be encoded")
	}
	return &Minted{ID: id, Text: text, Spec: spec}, nil
}

// Hash is the hex SHA-256 of a token's whole text: the only form of it that
// is ever kept.
func Hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// ValidID reports whether s has the form of a token's id.
func ValidID(s string) bool {
	return len(s) == idLength && strings.Trim(s, "0123456789abcdef") == ""
}

// Mask takes the secrets of tokens out of a text, such as a path into which
// somebody put a token in the place of its id. The ids stay.
func Mask(s string) string {
	if !strings.Contains(s, tokenPrefix) {
		return s
	}
	return tokenText.ReplaceAllString(s, "${1}***")
}

var tokenText = regexp.MustCompile(`(` + tokenPrefix + `[0-9a-f]{16}_)[A-Za-z0-9_-]+`)

// idOf takes the id out of a token's text; false when the text has not the
// form of a token of ours.
func idOf(text string) (string, bool) {
	if len(text) != tokenLength || !strings.HasPrefix(text, tokenPrefix) || text[len(tokenPrefix)+idLength] != '_' {
		return "", false
	}
	id := text[len(tokenPrefix) : len(tokenPrefix)+idLength]
	return id, ValidID(id)
}

// newToken makes the record complete: the digest to compare with, the
// principal to hand out, and the JSON to serve.
func newToken(id string, spec Spec, meta Meta) (*Token, error) {
	if !ValidID(id) {
		return nil, fault.New(fault.BadRequest, "a token's id is %d hex digits", idLength)
	}
	if spec.Role == "" {
		return nil, fault.Invalid("/role", "give a role")
	}
	t := &Token{ID: id, Spec: spec, Meta: meta}
	if n, err := hex.Decode(t.digest[:], []byte(shorten(spec.Hash))); err != nil || n != sha256.Size || len(spec.Hash) != 2*sha256.Size {
		return nil, fault.Invalid("/hash", "give the hex SHA-256 of the token's text")
	}
	t.Namespaces = slices.Clone(spec.Namespaces)
	if t.Namespaces == nil {
		t.Namespaces = []string{}
	}
	t.principal = newPrincipal("token:"+id, KindToken, spec.Role, t.Namespaces)
	t.principal.Credential = Credential{TokenID: id, TextHash: t.digest, ExpiresAt: spec.ExpiresAt}

	served := *t
	served.Hash = ""
	data, err := json.Marshal(&served)
	if err != nil {
		return nil, fault.Wrap(fault.BadRequest, err, "the token cannot be written as JSON")
	}
	t.JSON = data
	return t, nil
}

// shorten keeps a hash of the wrong length from overrunning the digest.
func shorten(hash string) string { return hash[:min(len(hash), 2*sha256.Size)] }

func newPrincipal(id, kind, role string, namespaces []string) *Principal {
	p := &Principal{ID: id, Kind: kind, Roles: []string{}, Namespaces: namespaces, Claims: map[string]any{}}
	if role != "" {
		p.Roles = []string{role}
	}
	return p
}
