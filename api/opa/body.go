package opa

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"go.yaml.in/yaml/v3"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

// read reads the body, unpacked, and never more than limit bytes of either.
func (c *call) read(limit int64) ([]byte, error) {
	if c.r.ContentLength > limit {
		return nil, tooLarge(limit)
	}
	if c.r.ContentLength == 0 {
		return nil, nil
	}
	if c.r.ContentLength < 0 || c.r.ContentLength > 64<<10 {
		// A body has as long as the largest takes over a slow line, and no
		// longer: it holds one of the places that requests in flight have.
		deadlines := http.NewResponseController(c.w)
		_ = deadlines.SetReadDeadline(time.Now().Add(c.api.opt.BodyTimeout)) // not every writer can; a server's does
		defer func() { _ = deadlines.SetReadDeadline(time.Time{}) }()
	}
	var from io.Reader = http.MaxBytesReader(c.w, c.r.Body, limit)
	size := c.r.ContentLength
	switch encoding := strings.ToLower(strings.Join(c.r.Header["Content-Encoding"], ",")); encoding {
	case "", "identity":
	case "gzip":
		packed, err := gzip.NewReader(from)
		if err != nil {
			return nil, unreadable(err, limit)
		}
		defer packed.Close()
		from, size = packed, -1
	default:
		return nil, fault.New(fault.UnsupportedMediaType, "the body must be sent as it is or with Content-Encoding: gzip")
	}
	// One byte more than allowed tells a full body from one that is too long.
	b, err := c.visit.Read(c.r.Context(), io.LimitReader(from, limit+1), size)
	if err != nil {
		return nil, unreadable(err, limit)
	}
	if int64(len(b)) > limit {
		return nil, tooLarge(limit)
	}
	return b, c.turn()
}

func tooLarge(limit int64) error {
	return fault.New(fault.TooLarge, "request body too large: more than %d bytes", limit)
}

func unreadable(err error, limit int64) error {
	if _, ok := errors.AsType[*fault.Error](err); ok { // there was no room for it
		return err
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return tooLarge(limit)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fault.Wrap(fault.BadRequest, err, "the body did not arrive in time")
	}
	return fault.Wrap(fault.BadRequest, err, "could not decompress the body: it could not be read to its end, or says gzip and is not")
}

// readInput reads a body that holds an input, as JSON whatever it was sent as.
func (c *call) readInput() ([]byte, error) {
	body, err := c.read(c.api.opt.MaxBody)
	if err != nil || len(body) == 0 {
		return body, err
	}
	// There is no one name for YAML; OPA takes all that mention it.
	if types := c.r.Header["Content-Type"]; len(types) > 0 && strings.Contains(types[0], "yaml") {
		return c.fromYAML(body)
	}
	return body, nil
}

// Bounds of a document in YAML: as nodes, two bytes of it take some hundred.
const (
	maxYAML      = 1 << 20 // bytes
	maxYAMLNodes = 200_000
)

// fromYAML gives the JSON of a YAML document. Aliases are refused: a few bytes
// of them stand for any amount.
func (c *call) fromYAML(body []byte) ([]byte, error) {
	nodes := 1 // at least as many as the parser makes
	for _, b := range body {
		switch b {
		case '\n', ',', ':', '[', '{', '?', '-':
			nodes++
		}
	}
	if len(body) > maxYAML || nodes > maxYAMLNodes {
		return nil, fault.New(fault.TooLarge, "request body too large: a document in YAML may have %d bytes and %d values; send JSON", maxYAML, maxYAMLNodes)
	}
	release, err := c.api.engine.Room(c.r.Context(), 64*nodes)
	if err != nil {
		return nil, err
	}
	defer release()
	var document yaml.Node
	if err := yaml.Unmarshal(body, &document); err != nil {
		return nil, invalid("body contains malformed input document: %v", err)
	}
	if err := noAliases(&document, 0); err != nil {
		return nil, err
	}
	var x any
	if err := document.Decode(&x); err != nil {
		return nil, invalid("body contains malformed input document: %v", err)
	}
	b, err := json.Marshal(x)
	if err != nil {
		return nil, invalid("body contains malformed input document: %v", err)
	}
	return b, nil
}

func noAliases(n *yaml.Node, depth int) error {
	if n.Kind == yaml.AliasNode {
		return invalid("body contains malformed input document: line %d: aliases are not taken", n.Line)
	}
	if depth > policy.MaxDepth+2 {
		return invalid("body contains malformed input document: nested deeper than %d levels", policy.MaxDepth)
	}
	for _, kid := range n.Content {
		if err := noAliases(kid, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// decode reads a body that is a JSON request into v, with OPA's words for what
// is wrong. Members that v does not have are let pass, as OPA does.
func (c *call) decode(limit int64, v any, problem string) error {
	body, err := c.read(limit)
	if err != nil {
		return err
	}
	return decodeJSON(body, v, problem)
}

func decodeJSON(body []byte, v any, problem string) error {
	if len(bytes.TrimSpace(body)) == 0 {
		return invalid("%s%v", problem, io.EOF)
	}
	if err := policy.WellFormed(body); err != nil {
		return invalid("%s%s", problem, fault.From(err).Detail)
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	if err := d.Decode(v); err != nil {
		return invalid("%s%v", problem, err)
	}
	return nil
}
