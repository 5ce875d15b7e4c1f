// Package definition reads API definitions: it says whether a document is a
// definition of its format at all, what it offers (routes), and what stands
// out in it (findings). It never fetches anything and has no code that could:
// a reference that leads out of the document is refused. Time and memory are
// bounded for any input; what would need more is refused as too large.
//
// It reads OpenAPI, Swagger and AsyncAPI itself. The parsers that were tried build a Go
// object for everything a document holds, which takes seconds and more than
// half a gigabyte for 16 MiB, and they refuse published documents that differ
// from the letter of the specification where routes do not depend on it.
package definition

import (
	"bytes"
	"strings"
	"unicode/utf8"

	"github.com/muster-registry/muster/fault"
)

// Route is one thing a definition offers: a method on a path template, or a
// named operation where the format has no paths.
type Route struct {
	Method    string `json:"method,omitempty"`
	Path      string `json:"path,omitempty"`
	Operation string `json:"operation,omitempty"`
}

// Finding is something to know about an accepted definition. Path is an
// RFC 6901 JSON pointer into the document; empty means all of it.
type Finding struct {
	Rule     string `json:"rule"`
	Severity string `json:"severity"` // high, medium, low, info
	Path     string `json:"path"`
	Message  string `json:"message"`
}

// Definition is what Parse learned from a document.
type Definition struct {
	Format      string // as given to Parse
	Dialect     string // such as "openapi 3.1.0"; the format's name where it is not known
	ContentType string // application/json, application/yaml, application/xml or text/plain
	Routes      []Route
	Findings    []Finding
}

// Formats are the formats Parse knows.
var Formats = []string{"openapi", "asyncapi", "graphql", "wsdl", "protobuf"}

// The limits of a document.
const (
	maxDepth   = 64       // objects and arrays, or elements, inside each other
	maxSize    = 16 << 20 // bytes of any document
	maxValues  = 3 << 20  // JSON values of any kind
	maxYAML    = 4 << 20  // bytes of YAML, which costs far more to read than JSON
	maxXML     = 4 << 20  // bytes of XML, likewise
	maxNodes   = 1 << 20  // nodes of YAML, by a cautious estimate
	maxAliased = 32 << 10 // nodes that YAML aliases may add
	maxErrors  = 16       // mistakes listed in one answer
	maxRoutes  = 20_000   // operations of any definition: each is judged, listed and replicated
)

// Parse reads a document of a format. OpenAPI 3.0 and 3.1, Swagger 2.0 and
// AsyncAPI 2 and 3, as JSON or YAML, are checked in their structure, every
// reference is resolved, and their routes are listed in order of path and
// method. The other formats are only checked for being text or XML within
// bounds, and a finding says so. What rules say of a definition is no part of
// this: see [Normalise].
//
// Errors are invalid_definition, whose fields carry a JSON pointer or a line,
// too_large, or invalid_field at /format for a format that is not known.
func Parse(format string, document []byte) (*Definition, error) {
	if len(document) > maxSize {
		return nil, tooLarge("it has %d bytes, and %d is the most; split it", len(document), maxSize)
	}
	d := &Definition{Format: format, Dialect: format, ContentType: "text/plain", Routes: []Route{}, Findings: []Finding{}}
	var err error
	switch format {
	case "openapi":
		return d, d.openapi(document)
	case "asyncapi":
		return d, d.asyncapi(document)
	case "wsdl":
		d.ContentType = "application/xml"
		err = checkXML(document)
	case "graphql", "protobuf":
		err = checkText(document)
	default:
		return nil, fault.Invalid("/format", "must be one of %s", strings.Join(Formats, ", "))
	}
	if err != nil {
		return nil, err
	}
	d.Findings = append(d.Findings, Finding{Rule: "not-checked", Severity: "info",
		Message: "definitions of format " + format + " are stored as they are; only their size and form are checked"})
	return d, nil
}

// FormatOf tells asyncapi from openapi by what stands at the top of a
// document. What is neither is taken for openapi, of which Parse says what is
// wrong with it.
func FormatOf(document []byte) string {
	if t, err := readTree(document); err == nil {
		if _, ok := t.member(0, "asyncapi"); ok {
			return "asyncapi"
		}
	}
	return "openapi"
}

func (d *Definition) openapi(document []byte) error {
	t, err := readTree(document)
	if err != nil {
		return err
	}
	d.ContentType = t.contentType()
	w := &walk{tree: t}
	root, name, err := w.dialect()
	if err != nil {
		return err
	}
	d.Dialect = name
	if err := few(w.members("paths")); err != nil {
		return err
	}
	w.check(0, root)
	if err := w.err(); err != nil {
		return err
	}
	d.Routes = w.routes()
	return few(len(d.Routes))
}

func (d *Definition) asyncapi(document []byte) error {
	t, err := readTree(document)
	if err != nil {
		return err
	}
	d.ContentType = t.contentType()
	w := &walk{tree: t}
	root, name, err := w.asyncapiDialect()
	if err != nil {
		return err
	}
	d.Dialect = name
	w.check(0, root)
	if err := w.err(); err != nil {
		return err
	}
	d.Routes = w.asyncapiRoutes()
	return few(len(d.Routes))
}

// few refuses a definition of too many operations.
func few(n int) error {
	if n > maxRoutes {
		return tooLarge("it has %d paths or operations, and %d is the most; make several services of it", n, maxRoutes)
	}
	return nil
}

// members counts what is inside a member at the top.
func (w *walk) members(name string) (n int) {
	if at, ok := w.tree.member(0, name); ok {
		w.tree.children(at, func(uint32) bool { n++; return true })
	}
	return n
}

// Valid reports whether a decoded JSON value, or the text of a document, is a
// definition that the parser of its format accepts. The format is told by the
// document itself: openapi, swagger or asyncapi at the top. Anything else is
// not valid.
func Valid(document any) bool {
	var text []byte
	switch v := document.(type) {
	case string:
		text = []byte(v)
	case map[string]any:
		var ok bool
		if text, ok = appendAny(nil, v, 0); !ok {
			return false
		}
	default:
		return false
	}
	if len(text) > maxSize {
		return false
	}
	t, err := readTree(text)
	if err != nil {
		return false
	}
	w := &walk{tree: t}
	dialect := w.dialect
	if _, ok := t.member(0, "asyncapi"); ok {
		dialect = w.asyncapiDialect
	}
	root, _, err := dialect()
	if err != nil {
		return false
	}
	w.check(0, root)
	return w.err() == nil
}

func checkText(document []byte) error {
	if len(bytes.TrimSpace(document)) == 0 {
		return invalid("", "the document is empty")
	}
	if !utf8.Valid(document) {
		return invalid("", "the document is not UTF-8 text")
	}
	if i := bytes.IndexByte(document, 0); i >= 0 {
		return invalid("", "line %d: the document contains NUL", 1+bytes.Count(document[:i], []byte("\n")))
	}
	return nil
}

// invalid is an invalid_definition at one place.
func invalid(pointer, format string, args ...any) *fault.Error {
	e := fault.New(fault.InvalidDefinition, format, args...)
	e.Fields = []fault.Field{{Pointer: pointer, Message: e.Detail}}
	if pointer != "" {
		e.Detail = pointer + ": " + e.Detail
	}
	return e
}

func tooLarge(format string, args ...any) *fault.Error {
	e := fault.New(fault.TooLarge, format, args...)
	e.Detail = "the definition is too large: " + e.Detail
	return e
}
