package opa

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

// read reads the body, unpacked, and never more than limit bytes of either.
func (c *call) read(limit int64) ([]byte, error) {
	if c.r.ContentLength == 0 {
		return nil, nil
	}
	timeout := time.Duration(0)
	if c.r.ContentLength < 0 || c.r.ContentLength > 64<<10 {
		timeout = c.api.opt.BodyTimeout // what is small has the server's own
	}
	b, err := door.Body(c.w, c.r, &c.visit, limit, timeout)
	switch {
	case fault.Is(err, fault.TooLarge):
		return nil, tooLarge(limit)
	case fault.Is(err, fault.BadRequest):
		return nil, fault.Wrap(fault.BadRequest, err, "could not decompress the body: %s", fault.From(err).Detail)
	case err != nil:
		return nil, err
	}
	return b, c.turn()
}

func tooLarge(limit int64) error {
	return fault.New(fault.TooLarge, "request body too large: more than %d bytes", limit)
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
