package definition

import (
	"bytes"
	"errors"
	"io"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"
	"go.yaml.in/yaml/v3"

	"github.com/muster-registry/muster/fault"
)

// fromYAML turns one YAML document into JSON, with the line of each value in
// the order in which the values begin. Scalars keep their meaning, dates stay
// text. What aliases may add is bounded, and nothing is expanded before that
// bound is checked.
func fromYAML(document []byte) (text []byte, lines []int32, err error) {
	if len(document) > maxYAML {
		return nil, nil, tooLarge("it has %d bytes of YAML, and %d is the most; send JSON", len(document), maxYAML)
	}
	if estimate(document) > maxNodes {
		return nil, nil, tooLarge("it holds more YAML values than can be read at once; send JSON")
	}
	var root, more yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(document))
	if err := dec.Decode(&root); err != nil {
		return nil, nil, invalid("", "is not valid YAML: %s", clip(err.Error()))
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, nil, invalid("", "must be one YAML document, and a second one follows")
	}
	if len(root.Content) != 1 {
		return nil, nil, invalid("", "the document is empty")
	}
	c := &converter{out: make([]byte, 0, len(document)+len(document)/4)}
	if err := c.value(root.Content[0], 0, false); err != nil {
		return nil, nil, err
	}
	return c.out, c.lines, nil
}

// errBomb is behind every refusal of aliases that stand for too much.
var errBomb = errors.New("an alias bomb")

func bomb(format string, args ...any) error {
	e := fault.Wrap(fault.InvalidDefinition, errBomb, format, args...)
	e.Fields = []fault.Field{{Message: e.Detail}}
	return e
}

// estimate gives at least the number of nodes that the parser will make.
func estimate(document []byte) int {
	n := 1
	for _, c := range document {
		switch c {
		case '\n':
			n += 2
		case ',', ':', '[', '{', '?':
			n++
		}
	}
	return n + bytes.Count(document, []byte("- "))
}

// converter writes YAML nodes as JSON.
type converter struct {
	out     []byte
	lines   []int32
	aliased int // nodes written on behalf of aliases
	bytes   int // of scalars, likewise
}

func (c *converter) value(n *yaml.Node, depth int, aliased bool) error {
	for n.Kind == yaml.AliasNode {
		n, aliased = n.Alias, true
	}
	if depth > maxDepth {
		if aliased {
			return bomb("line %d: nests deeper than %d levels by an alias", n.Line, maxDepth)
		}
		return invalid("", "line %d: nests deeper than %d levels", n.Line, maxDepth)
	}
	if aliased {
		c.aliased++
		c.bytes += len(n.Value)
		if c.aliased > maxAliased || c.bytes > 16*maxAliased {
			return bomb("line %d: YAML aliases repeat too much; write out what they stand for", n.Line)
		}
	}
	c.lines = append(c.lines, int32(n.Line))
	switch n.Kind {
	case yaml.MappingNode:
		return c.mapping(n, depth, aliased)
	case yaml.SequenceNode:
		c.out = append(c.out, '[')
		for i, item := range n.Content {
			if i > 0 {
				c.out = append(c.out, ',')
			}
			if err := c.value(item, depth+1, aliased); err != nil {
				return err
			}
		}
		c.out = append(c.out, ']')
	default:
		c.scalar(n)
	}
	return nil
}

// mapping writes the members of a mapping, then those it merges in that it
// does not have itself.
func (c *converter) mapping(n *yaml.Node, depth int, aliased bool) error {
	c.out = append(c.out, '{')
	seen := make(map[string]bool, len(n.Content)/2)
	var merges []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if key.Kind == yaml.ScalarNode && key.ShortTag() == "!!merge" {
			merges = append(merges, n.Content[i+1])
			continue
		}
		for key.Kind == yaml.AliasNode {
			key = key.Alias
		}
		if key.Kind != yaml.ScalarNode {
			return invalid("", "line %d: a key must be a single value", key.Line)
		}
		if seen[key.Value] {
			return invalid("", "line %d: the key %s stands twice in one mapping", n.Content[i].Line, strconv.Quote(clip(key.Value)))
		}
		if err := c.member(seen, key.Value, n.Content[i+1], depth, aliased); err != nil {
			return err
		}
	}
	for _, m := range merges {
		if err := c.merge(seen, m, depth, 0); err != nil {
			return err
		}
	}
	c.out = append(c.out, '}')
	return nil
}

func (c *converter) member(seen map[string]bool, key string, v *yaml.Node, depth int, aliased bool) error {
	if len(seen) > 0 {
		c.out = append(c.out, ',')
	}
	seen[key] = true
	c.out, _ = jsontext.AppendQuote(c.out, key)
	c.out = append(c.out, ':')
	return c.value(v, depth+1, aliased)
}

// merge adds what "<<" names: a mapping, or several in order of precedence.
func (c *converter) merge(seen map[string]bool, m *yaml.Node, depth, nested int) error {
	for m.Kind == yaml.AliasNode {
		m = m.Alias
	}
	if c.aliased++; c.aliased > maxAliased || nested > maxDepth {
		return bomb("line %d: YAML merges repeat too much; write out what they stand for", m.Line)
	}
	switch m.Kind {
	case yaml.SequenceNode:
		for _, item := range m.Content {
			if err := c.merge(seen, item, depth, nested+1); err != nil {
				return err
			}
		}
		return nil
	case yaml.MappingNode:
	default:
		return invalid("", "line %d: << must name a mapping", m.Line)
	}
	for i := 0; i+1 < len(m.Content); i += 2 {
		key := m.Content[i]
		if key.ShortTag() == "!!merge" {
			if err := c.merge(seen, m.Content[i+1], depth, nested+1); err != nil {
				return err
			}
			continue
		}
		if c.aliased++; c.aliased > maxAliased {
			return invalid("", "line %d: YAML merges repeat too much; write out what they stand for", m.Line)
		}
		if key.Kind != yaml.ScalarNode || seen[key.Value] {
			continue
		}
		if err := c.member(seen, key.Value, m.Content[i+1], depth, true); err != nil {
			return err
		}
	}
	return nil
}

func (c *converter) scalar(n *yaml.Node) {
	switch n.ShortTag() {
	case "!!null":
		c.out = append(c.out, "null"...)
		return
	case "!!bool":
		var b bool
		if n.Decode(&b) == nil {
			c.out = strconv.AppendBool(c.out, b)
			return
		}
	case "!!int", "!!float":
		if number := jsontext.Value(n.Value); number.Kind() == '0' && number.IsValid() {
			c.out = append(c.out, n.Value...)
			return
		}
		var v int64
		if n.ShortTag() == "!!int" && n.Decode(&v) == nil {
			c.out = strconv.AppendInt(c.out, v, 10)
			return
		}
	}
	c.out, _ = jsontext.AppendQuote(c.out, n.Value)
}
