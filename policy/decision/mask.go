package decision

import (
	"bytes"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// Masked stands where a value has been taken out.
const Masked = "***"

// DefaultMasks are the pointers that hold credentials in the input document of
// the public contract.
func DefaultMasks() []string {
	masks := []string{"/input/token"}
	for _, name := range []string{"authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key", "api-key", "x-auth-token", "x-access-token",
		"x-consul-token", "x-vault-token", "x-gitlab-token", "x-amz-security-token", "x-csrf-token", "x-forwarded-client-cert"} {
		masks = append(masks, plainHeaders+name)
	}
	return masks
}

// requestPath is where the contract's input has the path of a request with its
// query, which may hold a credential, too.
const requestPath = "/input/attributes/request/http/path"

// secretParams are the parameters of a query whose values are masked there.
var secretParams = map[string]bool{
	"token": true, "access_token": true, "id_token": true, "refresh_token": true, "auth_token": true, "private_token": true, "jwt": true,
	"api_key": true, "apikey": true, "api-key": true, "key": true, "secret": true, "client_secret": true, "password": true, "passwd": true,
	"code": true, "sig": true, "signature": true, "x-amz-signature": true, "x-amz-security-token": true, "client_assertion": true,
}

// Masker takes values out of inputs and results before anybody sees them. It
// is immutable.
type Masker struct{ root *mask }

// mask is a place in a document: below are the names that lead on.
type mask struct {
	all   bool
	query bool             // it is a path, and its query may hold credentials
	below map[string]*mask // by name in lower case; "*": every name
}

// NewMasker makes a masker of JSON pointers that begin with /input or
// /result. A segment * stands for every name and every index. Names are
// compared without regard to case, since headers are. A header is masked in
// both places that hold it. The error names the
// pointer that is not one.
func NewMasker(pointers []string) (*Masker, error) {
	m := &Masker{root: &mask{}}
	for _, p := range slices.Concat(pointers, twins(pointers)) {
		at := m.root
		segments := strings.Split(p, "/")
		if len(segments) < 2 || segments[0] != "" || (segments[1] != "input" && segments[1] != "result") {
			return nil, fmt.Errorf("%q is not a JSON pointer that begins with /input or /result, such as /input/token", p)
		}
		for _, s := range segments[1:] {
			s = strings.ToLower(strings.NewReplacer("~1", "/", "~0", "~").Replace(s))
			if at.below == nil {
				at.below = map[string]*mask{}
			}
			if at.below[s] == nil {
				at.below[s] = &mask{}
			}
			at = at.below[s]
		}
		at.all = true
	}
	at := m.root
	for _, s := range strings.Split(requestPath, "/")[1:] {
		if at.below == nil {
			at.below = map[string]*mask{}
		}
		if at.below[s] == nil {
			at.below[s] = &mask{}
		}
		at = at.below[s]
	}
	at.query = true
	return m, nil
}

// The two places that hold the headers of a request.
const (
	plainHeaders = "/input/headers/"
	envoyHeaders = "/input/attributes/request/http/headers/"
)

// twins gives the other places of the headers that are masked: whoever masks
// one means both.
func twins(pointers []string) (more []string) {
	for _, p := range pointers {
		if name, ok := strings.CutPrefix(p, plainHeaders); ok {
			more = append(more, envoyHeaders+name)
		} else if name, ok := strings.CutPrefix(p, envoyHeaders); ok {
			more = append(more, plainHeaders+name)
		}
	}
	return more
}

var defaults = func() *Masker {
	m, err := NewMasker(DefaultMasks())
	if err != nil {
		panic(err)
	}
	return m
}()

// Mask gives the input document without credentials, by the default masks.
func Mask(input []byte) []byte {
	out, _ := defaults.Mask("input", input)
	return out
}

// Mask gives the document, which is the input or the result, with Masked in
// place of what is masked, and the pointers where something was. What is null
// or empty stays as it is. A document that is not JSON is masked as a whole.
func (m *Masker) Mask(name string, document []byte) (out []byte, masked []string) {
	w := &walk{from: jsontext.NewDecoder(bytes.NewReader(document), lax), to: &bytes.Buffer{}}
	w.into = jsontext.NewEncoder(w.to, lax)
	if err := w.value(m.root.next(nil, name), "/"+name); err != nil {
		return []byte(`"` + Masked + `"`), []string{"/" + name}
	}
	return bytes.TrimSuffix(w.to.Bytes(), []byte("\n")), w.masked
}

// Secrets lists the texts that Mask takes out of the document.
func (m *Masker) Secrets(name string, document []byte) []string {
	w := &walk{from: jsontext.NewDecoder(bytes.NewReader(document), lax), to: &bytes.Buffer{}}
	w.into = jsontext.NewEncoder(w.to, lax)
	_ = w.value(m.root.next(nil, name), "/"+name) // as far as it can be read
	return w.secrets
}

var lax = jsontext.AllowDuplicateNames(true)

// next appends the places that the name leads to.
func (p *mask) next(to []*mask, name string) []*mask {
	for _, key := range [2]string{strings.ToLower(name), "*"} {
		if n := p.below[key]; n != nil {
			to = append(to, n)
		}
		if name == "*" {
			break
		}
	}
	return to
}

type walk struct {
	from    *jsontext.Decoder
	into    *jsontext.Encoder
	to      *bytes.Buffer
	masked  []string
	secrets []string
}

func (w *walk) value(places []*mask, pointer string) error {
	for _, p := range places {
		if p.all {
			return w.hide(pointer)
		}
	}
	kind := w.from.PeekKind()
	for _, p := range places {
		if p.query && kind == '"' {
			return w.hideParams(pointer)
		}
	}
	if len(places) == 0 || (kind != '{' && kind != '[') {
		v, err := w.from.ReadValue()
		if err != nil {
			return err
		}
		return w.into.WriteValue(v)
	}
	return w.members(places, pointer, kind)
}

func (w *walk) members(places []*mask, pointer string, kind jsontext.Kind) error {
	if err := w.copyToken(); err != nil {
		return err
	}
	for i := 0; ; i++ {
		switch w.from.PeekKind() {
		case '}', ']':
			return w.copyToken()
		}
		name := fmt.Sprint(i)
		if kind == '{' {
			t, err := w.from.ReadToken()
			if err != nil {
				return err
			}
			name = t.String()
			if err := w.into.WriteToken(jsontext.String(name)); err != nil {
				return err
			}
		}
		var next []*mask
		for _, p := range places {
			next = p.next(next, name)
		}
		if err := w.value(next, string(jsontext.Pointer(pointer).AppendToken(name))); err != nil {
			return err
		}
	}
}

func (w *walk) copyToken() error {
	t, err := w.from.ReadToken()
	if err != nil {
		return err
	}
	return w.into.WriteToken(t)
}

func (w *walk) hide(pointer string) error {
	v, err := w.from.ReadValue()
	if err != nil {
		return err
	}
	switch string(v) {
	case `""`, `null`, `{}`, `[]`:
		return w.into.WriteValue(v)
	}
	w.masked = append(w.masked, pointer)
	w.collect(v)
	return w.into.WriteToken(jsontext.String(Masked))
}

// hideParams takes the credentials out of the query of a path.
func (w *walk) hideParams(pointer string) error {
	t, err := w.from.ReadToken()
	if err != nil {
		return err
	}
	path, query, has := strings.Cut(t.String(), "?")
	if !has {
		return w.into.WriteToken(jsontext.String(path))
	}
	params, hidden := strings.FieldsFunc(query, func(r rune) bool { return r == '&' || r == ';' }), false
	for i, param := range params {
		name, value, _ := strings.Cut(param, "=")
		plain, err := url.QueryUnescape(name)
		// A URL within the query has one of its own.
		if value == "" || (err == nil && !secretParams[strings.ToLower(plain)] && !strings.Contains(value, "=")) {
			continue
		}
		hidden = true
		w.secrets = append(w.secrets, value)
		if plain, err := url.QueryUnescape(value); err == nil && plain != value {
			w.secrets = append(w.secrets, plain)
		}
		params[i] = name + "=" + Masked
	}
	if !hidden {
		return w.into.WriteToken(jsontext.String(path + "?" + query))
	}
	w.masked = append(w.masked, pointer)
	return w.into.WriteToken(jsontext.String(path + "?" + strings.Join(params, "&")))
}

// collect keeps the texts of what was hidden.
func (w *walk) collect(v jsontext.Value) {
	d := jsontext.NewDecoder(bytes.NewReader(v), lax)
	for {
		t, err := d.ReadToken()
		if err != nil {
			return
		}
		if t.Kind() == '"' {
			w.secrets = append(w.secrets, t.String())
		}
	}
}
