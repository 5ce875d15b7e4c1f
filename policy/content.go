package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/muster-registry/muster/fault"
)

// Limits on the content of a revision.
const (
	MaxModules    = 1000 // modules in one revision
	MaxModuleName = 255  // bytes in the name of a module
	MaxNote       = 4096 // bytes in the note
)

// The entry points a revision has unless it says otherwise.
const (
	DefaultWrite  = "api/registry/authz"
	DefaultLookup = "api/security/authz"
)

// EntryPoints are the packages that are asked, as paths "a/b" below data.
// Empty means the default.
type EntryPoints struct {
	Write  string `json:"write,omitempty"`
	Lookup string `json:"lookup,omitempty"`
}

// For gives the entry point that answers for the action.
func (e EntryPoints) For(a Action) string {
	if a.LookUp() {
		return orDefault(e.Lookup, DefaultLookup)
	}
	return orDefault(e.Write, DefaultWrite)
}

func orDefault(s, d string) string {
	if s == "" {
		return d
	}
	return s
}

// Content is what a revision consists of. It is immutable once it is part of
// one.
type Content struct {
	Modules     map[string]string `json:"modules,omitzero"` // file name to Rego source; *_test.rego are tests
	Data        jsontext.Value    `json:"data,omitzero"`    // a JSON object; nil is {}
	Note        string            `json:"note"`
	EntryPoints EntryPoints       `json:"entry_points,omitzero"`
}

// ParseContent reads the body of a call that makes a revision, strictly, and
// brings it into canonical form. Errors are bad_request and invalid_field.
func ParseContent(body []byte) (*Content, error) {
	if err := WellFormed(body); err != nil {
		return nil, err
	}
	var c Content
	if err := json.Unmarshal(body, &c, json.RejectUnknownMembers(true)); err != nil {
		return nil, decodeFault(err)
	}
	if err := c.Normalize(); err != nil {
		return nil, err
	}
	return &c, nil
}

// Push is a content on its way into the cluster, and what came along with it.
type Push struct {
	Content
	Number    uint64     `json:"number,omitzero"` // that was signed; 0: none
	Signature *Signature `json:"-"`               // that was verified; nil: none
}

// ParsePush reads the body of a call that brings a content as JSON, strictly.
// Errors are as of [ParseContent].
func ParsePush(body []byte) (*Push, error) {
	if err := WellFormed(body); err != nil {
		return nil, err
	}
	var p Push
	if err := json.Unmarshal(body, &p, json.RejectUnknownMembers(true)); err != nil {
		return nil, decodeFault(err)
	}
	if err := p.Normalize(); err != nil {
		return nil, err
	}
	return &p, nil
}

// Normalize brings the content into its canonical form, in place, or says why
// it cannot be one (invalid_field).
func (c *Content) Normalize() error {
	if len(c.Modules) == 0 && len(c.Data) == 0 {
		return fault.Invalid("/modules", "give at least one module: its file name and its Rego source; or data alone")
	}
	if len(c.Modules) > MaxModules {
		return fault.Invalid("/modules", "%d modules are more than the limit of %d", len(c.Modules), MaxModules)
	}
	for name, source := range c.Modules {
		if err := validModule(name, source); err != nil {
			return err
		}
	}
	if len(c.Note) > MaxNote {
		return fault.Invalid("/note", "%d bytes are more than the limit of %d", len(c.Note), MaxNote)
	}
	if err := c.normalizeData(); err != nil {
		return err
	}
	for _, e := range []struct {
		pointer string
		value   *string
	}{{"/entry_points/write", &c.EntryPoints.Write}, {"/entry_points/lookup", &c.EntryPoints.Lookup}} {
		if *e.value == "" {
			continue
		}
		path, err := EntryPoint(*e.value)
		if err != nil {
			return fault.Invalid(e.pointer, "%q is not a path of names like %s", *e.value, DefaultWrite)
		}
		*e.value = path
	}
	return nil
}

func (c *Content) normalizeData() error {
	if len(c.Data) == 0 || string(c.Data) == "null" {
		c.Data = jsontext.Value("{}")
		return nil
	}
	if c.Data.Kind() != '{' {
		return fault.Invalid("/data", "must be an object")
	}
	data := c.Data.Clone()
	// Numbers stay as they were written: a policy may compare large integers.
	if err := data.Canonicalize(jsontext.CanonicalizeRawInts(false), jsontext.CanonicalizeRawFloats(false)); err != nil {
		return decodeFault(err)
	}
	c.Data = data
	return nil
}

func validModule(name, source string) error {
	pointer := string(jsontext.Pointer("/modules").AppendToken(name))
	switch {
	case name == "":
		return fault.Invalid("/modules", "a module has an empty name; name it like a file, such as authz.rego")
	case len(name) > MaxModuleName:
		return fault.Invalid("/modules", "the name of a module is longer than %d bytes", MaxModuleName)
	case !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl):
		return fault.Invalid("/modules", "%q has control characters or is not UTF-8", name)
	case !plainName(name):
		return fault.Invalid(pointer, "%q is not plain: name a module like a file, such as teams/authz.rego, without an empty part, . or .. between slashes and without a backslash", name)
	case !utf8.ValidString(source):
		return fault.Invalid(pointer, "is not UTF-8")
	case strings.ContainsRune(source, 0):
		return fault.Invalid(pointer, "contains a NUL character")
	}
	return nil
}

// plainName says whether a name stays below where it is written to: findings
// name files by it, and an export makes them.
func plainName(name string) bool {
	if strings.ContainsRune(name, '\\') {
		return false
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." || part == ".." {
			return false
		}
	}
	return true
}

var entryPointPattern = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*$`)

// EntryPoint checks the name of an entry point, written "a/b", "a.b" or
// "data.a.b", and gives it as "a/b". The error is bad_request.
func EntryPoint(name string) (string, error) {
	path := name
	if !strings.Contains(path, "/") {
		path = strings.ReplaceAll(path, ".", "/")
	}
	path = strings.TrimPrefix(path, "data/")
	if len(path) > MaxModuleName || !entryPointPattern.MatchString(path) {
		return "", fault.New(fault.BadRequest, "the entry point %s is not a path of names; write it like %s", shorten(name), DefaultWrite)
	}
	return path, nil
}

func shorten(s string) string {
	if len(s) > 64 {
		return strconv.Quote(strings.ToValidUTF8(s[:64], "")) + "…"
	}
	return strconv.Quote(s)
}

// Encode gives the content as canonical JSON: equal contents give equal bytes.
func (c *Content) Encode() []byte {
	b, err := json.Marshal(c, json.Deterministic(true))
	if err != nil {
		panic("policy: content that was normalized does not encode: " + err.Error())
	}
	return b
}

// Digest is "sha256:" and the hex digest of everything that decides: modules,
// data and entry points, and not the note.
func (c *Content) Digest() string {
	_, digest := c.EncodeAndDigest()
	return digest
}

// EncodeAndDigest gives both, for what one of them costs.
func (c *Content) EncodeAndDigest() ([]byte, string) {
	deciding := Content{Modules: c.Modules, Data: c.Data, EntryPoints: c.EntryPoints}
	b := deciding.Encode()
	sum := sha256.Sum256(b)
	digest := "sha256:" + hex.EncodeToString(sum[:])
	if c.Note == "" {
		return b, digest
	}
	// The note stands near the end: what follows it is short.
	short := Content{EntryPoints: c.EntryPoints, Note: c.Note}
	with := short.Encode()
	short.Note = ""
	cut := len(b) - len(short.Encode()) + len("{")
	return append(b[:cut:cut], with[len("{"):]...), digest
}
