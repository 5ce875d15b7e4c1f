package main

import (
	"fmt"
	"regexp"

	"github.com/go-json-experiment/json/jsontext"
	"go.yaml.in/yaml/v3"
)

// converter writes YAML as JSON in the same order: what a person wrote as text
// stays text, a date included, and keys are text. The budget bounds how many
// values come out, so that aliases cannot multiply.
type converter struct{ budget int }

var number = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?$`)

func (c *converter) value(out []byte, n *yaml.Node) ([]byte, error) {
	if c.budget--; c.budget < 0 {
		return nil, fmt.Errorf("line %d: too many values; are there aliases that multiply?", n.Line)
	}
	switch n.Kind {
	case yaml.DocumentNode:
		return c.value(out, n.Content[0])
	case yaml.AliasNode:
		return c.value(out, n.Alias)
	case yaml.SequenceNode:
		out = append(out, '[')
		for i, v := range n.Content {
			if i > 0 {
				out = append(out, ',')
			}
			var err error
			if out, err = c.value(out, v); err != nil {
				return nil, err
			}
		}
		return append(out, ']'), nil
	case yaml.MappingNode:
		return c.mapping(out, n)
	}
	return scalar(out, n)
}

func (c *converter) mapping(out []byte, n *yaml.Node) ([]byte, error) {
	out = append(out, '{')
	seen := map[string]bool{}
	for i := 0; i < len(n.Content); i += 2 {
		k := n.Content[i]
		if k.Kind != yaml.ScalarNode {
			return nil, fmt.Errorf("line %d: a key must be text", k.Line)
		}
		if k.Tag == "!!merge" {
			return nil, fmt.Errorf("line %d: merge keys (<<) are not taken; write the values out", k.Line)
		}
		if seen[k.Value] {
			return nil, fmt.Errorf("line %d: the key %q stands here twice", k.Line, k.Value)
		}
		seen[k.Value] = true
		if i > 0 {
			out = append(out, ',')
		}
		var err error
		if out, err = jsontext.AppendQuote(out, k.Value); err != nil {
			return nil, fmt.Errorf("line %d: %w", k.Line, err)
		}
		if out, err = c.value(append(out, ':'), n.Content[i+1]); err != nil {
			return nil, err
		}
	}
	return append(out, '}'), nil
}

func scalar(out []byte, n *yaml.Node) ([]byte, error) {
	switch n.ShortTag() {
	case "!!null":
		return append(out, "null"...), nil
	case "!!bool":
		var b bool
		if err := n.Decode(&b); err != nil {
			return nil, err
		}
		return fmt.Append(out, b), nil
	case "!!int", "!!float":
		if number.MatchString(n.Value) {
			return append(out, n.Value...), nil
		}
		var i int64
		if n.ShortTag() == "!!int" && n.Decode(&i) == nil {
			return fmt.Append(out, i), nil
		}
	}
	out, err := jsontext.AppendQuote(out, n.Value)
	if err != nil {
		return nil, fmt.Errorf("line %d: %w", n.Line, err)
	}
	return out, nil
}
