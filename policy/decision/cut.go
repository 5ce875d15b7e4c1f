package decision

import (
	"bytes"
	"errors"
	"io"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"github.com/go-json-experiment/json/jsontext"
)

// cuts are the places of a document where something is masked. The document
// is gone through once, and what is not masked is never written anew: it
// leaves as it came.
type cuts struct {
	document []byte
	prefix   string // of the pointers
	spans    []span
	masked   []string // pointers
	broken   bool     // it is no JSON, so nothing of it may be seen
}

// span is a part of a document that something else stands for. Its places are
// bytes of the document.
type span struct {
	from, to int
	instead  string   // a JSON value
	secrets  []string // what was taken out; nil: the whole value
}

const maskedValue = `"` + Masked + `"`

var lax = jsontext.AllowDuplicateNames(true)

// reader is a decoder with what it reads from.
type reader struct {
	decoder *jsontext.Decoder
	from    bytes.Buffer
}

var readers = sync.Pool{New: func() any { return &reader{decoder: new(jsontext.Decoder)} }}

// cut finds what is masked in the document. What c had before is gone.
func (m *Masker) cut(c *cuts, name string, document []byte) {
	*c = cuts{document: document, prefix: "/" + name, spans: c.spans[:0], masked: c.masked[:0]}
	r := readers.Get().(*reader)
	defer readers.Put(r)
	r.from = *bytes.NewBuffer(document)
	r.decoder.Reset(&r.from, lax)
	var room [4]*mask
	err := c.value(r.decoder, m.root.next(room[:0], []byte(name)))
	if err == nil {
		_, err = r.decoder.ReadToken()
	}
	c.broken = !errors.Is(err, io.EOF) || len(document) == 0 // or there is something after it
	r.from = bytes.Buffer{}
}

// append writes the document without what is masked, on one line.
func (c *cuts) append(b []byte) []byte {
	if c.broken {
		return append(b, maskedValue...)
	}
	from, began := 0, len(b)
	for _, s := range c.spans {
		b = append(append(b, c.document[from:s.from]...), s.instead...)
		from = s.to
	}
	b = append(b, c.document[from:]...)
	if bytes.IndexByte(b[began:], '\n') < 0 && bytes.IndexByte(b[began:], '\r') < 0 {
		return b
	}
	one := jsontext.Value(b[began:])
	if one.Compact(lax) != nil {
		return append(b[:began], maskedValue...)
	}
	return append(b[:began], one...)
}

// pointers lists where something was masked.
func (c *cuts) pointers() []string {
	if c.broken {
		return []string{c.prefix}
	}
	return c.masked
}

// texts lists what was taken out.
func (c *cuts) texts() (all []string) {
	for _, s := range c.spans {
		if s.secrets != nil {
			all = append(all, s.secrets...)
			continue
		}
		d := jsontext.NewDecoder(bytes.NewBuffer(c.document[s.from:s.to:s.to]), lax)
		for {
			t, err := d.ReadToken()
			if err != nil {
				break
			}
			if t.Kind() == '"' {
				all = append(all, t.String())
			}
		}
	}
	return all
}

// value goes through the next value, which stands at the places.
func (c *cuts) value(d *jsontext.Decoder, places []*mask) error {
	if len(places) == 0 {
		return skip(d)
	}
	kind := d.PeekKind()
	for _, p := range places {
		if p.all {
			return c.hide(d)
		}
	}
	for _, p := range places {
		if p.query && kind == '"' {
			return c.hideParams(d)
		}
	}
	if kind != '{' && kind != '[' {
		return skip(d)
	}
	return c.members(d, places, kind)
}

func skip(d *jsontext.Decoder) error {
	_, err := d.ReadValue() // one step, where SkipValue takes one for each token
	return err
}

func (c *cuts) members(d *jsontext.Decoder, places []*mask, kind jsontext.Kind) error {
	if _, err := d.ReadToken(); err != nil {
		return err
	}
	for i := 0; ; i++ {
		switch d.PeekKind() {
		case '}', ']':
			_, err := d.ReadToken()
			return err
		}
		var written [64]byte
		name := written[:0]
		if kind == '{' {
			quoted, err := d.ReadValue()
			if err != nil {
				return err
			}
			if name, err = lower(name, quoted); err != nil {
				return err
			}
		} else {
			name = strconv.AppendInt(name, int64(i), 10)
		}
		var room [4]*mask
		next := room[:0]
		for _, p := range places {
			next = p.next(next, name)
		}
		if err := c.value(d, next); err != nil {
			return err
		}
	}
}

// lower appends a name as masks have it.
func lower(to []byte, quoted []byte) ([]byte, error) {
	plain := quoted[1 : len(quoted)-1]
	if bytes.IndexByte(plain, '\\') >= 0 {
		var err error
		if plain, err = jsontext.AppendUnquote(nil, quoted); err != nil {
			return nil, err
		}
	}
	for _, b := range plain {
		if b >= 0x80 {
			return append(to, strings.ToLower(string(plain))...), nil
		}
		if b >= 'A' && b <= 'Z' {
			b += 'a' - 'A'
		}
		to = append(to, b)
	}
	return to, nil
}

// take adds the value that was just read to what is masked.
func (c *cuts) take(d *jsontext.Decoder, v jsontext.Value, instead string, secrets []string) {
	to := int(d.InputOffset())
	c.spans = append(c.spans, span{from: to - len(v), to: to, instead: instead, secrets: secrets})
	c.masked = append(c.masked, c.prefix+string(d.StackPointer()))
}

func (c *cuts) hide(d *jsontext.Decoder) error {
	v, err := d.ReadValue()
	if err != nil {
		return err
	}
	switch v.Kind() {
	case 'n':
		return nil
	case '"', '{', '[':
		if len(bytes.Trim(v[1:len(v)-1], " \t\r\n")) == 0 && (v.Kind() != '"' || len(v) == 2) {
			return nil
		}
	}
	c.take(d, v, maskedValue, nil)
	return nil
}

// hideParams takes the credentials out of the query of a path.
func (c *cuts) hideParams(d *jsontext.Decoder) error {
	v, err := d.ReadValue()
	if err != nil || bytes.IndexByte(v, '?') < 0 && bytes.IndexByte(v, '\\') < 0 {
		return err
	}
	text, err := jsontext.AppendUnquote(nil, v)
	if err != nil {
		return err
	}
	path, query, _ := strings.Cut(string(text), "?")
	params, secrets := strings.FieldsFunc(query, func(r rune) bool { return r == '&' || r == ';' }), []string(nil)
	for i, param := range params {
		name, value, _ := strings.Cut(param, "=")
		plain, err := url.QueryUnescape(name)
		// A URL within the query has one of its own.
		if value == "" || (err == nil && !secretParams[strings.ToLower(plain)] && !strings.Contains(value, "=")) {
			continue
		}
		secrets = append(secrets, value)
		if plain, err := url.QueryUnescape(value); err == nil && plain != value {
			secrets = append(secrets, plain)
		}
		params[i] = name + "=" + Masked
	}
	if secrets == nil {
		return nil
	}
	instead, err := jsontext.AppendQuote(nil, path+"?"+strings.Join(params, "&"))
	if err != nil {
		return err
	}
	c.take(d, v, string(instead), secrets)
	return nil
}
