package definition

import (
	"slices"
	"strings"
)

// What is known of a node.
const (
	asRequest  uint8 = 1 << iota // a schema of what comes in
	asAnswer                     // a schema of what goes out
	asSchema                     // a schema of something
	asPart                       // of an allOf, or holds one
	asEntry                      // it is in its list already
	asDeclared                   // a parameter that a schema stands in
)

// visit is a schema to look at.
type visit struct {
	node uint32
	as   uint8
}

// schemaFacts are what a schema says of one of its types. The names are those
// of JSON Schema; a limit is true when it is set at all.
type schemaFacts struct {
	Type          string `json:"type"`
	Format        string `json:"format"`
	Side          string `json:"side"` // request, answer, both, none
	MaxLength     bool   `json:"max_length"`
	Pattern       bool   `json:"pattern"`
	Enum          bool   `json:"enum"` // or const
	Minimum       bool   `json:"minimum"`
	Maximum       bool   `json:"maximum"`
	MaxItems      bool   `json:"max_items"`
	MaxProperties bool   `json:"max_properties"`
	Properties    bool   `json:"properties"`
	Additional    string `json:"additional"`  // additionalProperties: absent, open, closed, schema
	Unevaluated   string `json:"unevaluated"` // unevaluatedProperties, likewise
	Composed      bool   `json:"composed"`    // part of an allOf, or holds one
}

// schema marks a schema, and what it consists of, as seen on one side.
func (z *normaliser) schema(n uint32, as uint8) {
	z.pending = append(z.pending, visit{n, as | asSchema})
	for len(z.pending) > 0 {
		v := z.pending[len(z.pending)-1]
		z.pending = z.pending[:len(z.pending)-1]
		z.look(v)
	}
}

func (z *normaliser) look(v visit) {
	t := z.tree
	if t.nodes[v.node].kind != '{' || z.seen[v.node]&v.as == v.as {
		return
	}
	z.seen[v.node] |= v.as
	if r, ok := t.member(v.node, "$ref"); ok && t.nodes[r].kind == '"' {
		if to := z.resolve(t.text(r)); to.mistake == "" && to.node != 0 {
			z.pending = append(z.pending, visit{to.node, v.as})
		}
		if !z.siblings {
			return
		}
	}
	below := v.as &^ asPart
	z.children(v.node, func(c uint32) {
		switch t.key(c) {
		case "properties", "patternProperties", "dependentSchemas", "anyOf", "oneOf", "prefixItems":
			z.children(c, func(p uint32) { z.push(p, below) })
		case "allOf":
			z.seen[v.node] |= asPart
			z.children(c, func(p uint32) { z.push(p, below|asPart) })
		case "items":
			if t.nodes[c].kind == '[' {
				z.children(c, func(p uint32) { z.push(p, below) })
			} else {
				z.push(c, below)
			}
		case "additionalProperties", "unevaluatedProperties", "if", "then", "else":
			z.push(c, below)
		}
	})
}

// push is schema for a part; what only goes out, or only comes in, stays so.
func (z *normaliser) push(n uint32, as uint8) {
	if z.tree.nodes[n].kind != '{' {
		return
	}
	if z.is(n, "readOnly", "true") {
		as &^= asRequest
	}
	if z.is(n, "writeOnly", "true") {
		as &^= asAnswer
	}
	z.pending = append(z.pending, visit{n, as})
}

// schemas lists all schemas that were marked.
func (z *normaliser) schemas() {
	numbers := map[schemaFacts]int{}
	for i, as := range z.seen {
		if as&asSchema == 0 {
			continue
		}
		n := uint32(i)
		if !z.siblings && z.has(n, "$ref") {
			continue
		}
		z.mappings(n)
		for _, kind := range z.types(n) {
			facts := z.schemaOfType(n, kind, as)
			at, ok := numbers[facts]
			if !ok {
				z.add(&z.shapes, facts, n)
				numbers[facts] = len(z.places) - 1
				continue
			}
			z.places[at] = append(z.places[at], n)
		}
	}
}

// types of a schema, but null; where it names none, by what it holds.
func (z *normaliser) types(n uint32) []string {
	t := z.tree
	v, ok := t.member(n, "type")
	var kinds []string
	switch {
	case ok && t.nodes[v].kind == '[':
		kinds = slices.Compact(slices.Sorted(slices.Values(z.texts(v))))
	case ok:
		kinds = []string{t.text(v)}
	case z.has(n, "properties"):
		kinds = []string{"object"}
	case z.has(n, "items"):
		kinds = []string{"array"}
	}
	return slices.DeleteFunc(kinds, func(k string) bool {
		switch k {
		case "string", "integer", "array", "object", "number":
			return false
		}
		return true
	})
}

func (z *normaliser) schemaOfType(n uint32, kind string, as uint8) schemaFacts {
	f := schemaFacts{Type: kind, Side: side(as), Enum: z.has(n, "enum") || z.has(n, "const")}
	if f.Format = z.label(n, "format"); len(f.Format) > 32 {
		f.Format = "other"
	}
	switch kind {
	case "string":
		f.MaxLength, f.Pattern = z.has(n, "maxLength"), z.has(n, "pattern")
	case "integer", "number":
		f.Minimum = z.has(n, "minimum") || z.has(n, "exclusiveMinimum")
		f.Maximum = z.has(n, "maximum") || z.has(n, "exclusiveMaximum")
	case "array":
		f.MaxItems, f.Format = z.has(n, "maxItems"), ""
	case "object":
		f.Format = ""
		f.MaxProperties, f.Properties = z.has(n, "maxProperties"), z.has(n, "properties")
		f.Additional, f.Unevaluated = z.rest(n, "additionalProperties"), z.rest(n, "unevaluatedProperties")
		f.Composed = as&asPart != 0
	}
	return f
}

func side(as uint8) string {
	switch as & (asRequest | asAnswer) {
	case asRequest:
		return "request"
	case asAnswer:
		return "answer"
	case asRequest | asAnswer:
		return "both"
	}
	return "none"
}

// rest says what becomes of the properties that a schema does not name.
func (z *normaliser) rest(n uint32, name string) string {
	v, ok := z.tree.member(n, name)
	if !ok {
		return "absent"
	}
	switch z.tree.nodes[v].kind {
	case 'f':
		return "closed"
	case '{':
		if z.tree.nodes[v].next > v+1 {
			return "schema"
		}
	}
	return "open"
}

// mappings notes where a discriminator leads out of the document.
func (z *normaliser) mappings(n uint32) {
	d, ok := z.tree.member(n, "discriminator")
	if !ok {
		return
	}
	z.each(d, "mapping", func(c uint32) {
		to := z.tree.text(c)
		if !strings.HasPrefix(to, "#") && strings.ContainsAny(to, "/#") {
			z.outside(c, to)
		}
	})
}

// outside notes a reference that leads out of the document and stands where
// no parser follows it.
func (z *normaliser) outside(n uint32, to string) {
	z.add(&z.references, struct {
		To string `json:"to"`
	}{clip(to)}, n)
}
