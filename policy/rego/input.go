package rego

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/textproto"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/muster-registry/muster/policy"
)

// node is a place in the input document: an object of further places, or a
// leaf, with two views of its value: the one that rules see, and the one that
// the cache compares.
type node struct {
	name *ast.Term
	kids []node
	leaf leaf
}

type leaf struct {
	term func(in *policy.Input) *ast.Term // nil: not there
	key  func(b []byte, in *policy.Input) []byte
	some func(names []string) leaf // the leaf with only these names; nil: cannot be divided
}

func at(name string, l leaf) node { return node{name: ast.StringTerm(name), leaf: l} }

func under(name string, kids ...node) node { return node{name: ast.StringTerm(name), kids: kids} }

// document is the whole input document of the public contract.
var document = under("input",
	at("action", text(func(in *policy.Input) string { return string(in.Action) })),
	at("time", text(func(in *policy.Input) string { return in.Time.UTC().Format(time.RFC3339Nano) })),
	at("protocol", text(func(in *policy.Input) string { return in.Protocol })),
	at("method", text(func(in *policy.Input) string { return in.Method })),
	at("path", list(func(in *policy.Input) []string { return in.Path })),
	at("headers", headers(false)),
	at("token", text(func(in *policy.Input) string { return in.Token })),
	under("principal",
		at("id", text(func(in *policy.Input) string { return in.Principal.ID })),
		at("kind", text(func(in *policy.Input) string { return in.Principal.Kind })),
		at("roles", list(func(in *policy.Input) []string { return in.Principal.Roles })),
		at("namespaces", list(func(in *policy.Input) []string { return in.Principal.Namespaces })),
		at("claims", raw(emptyObject, func(in *policy.Input) []byte { return in.Principal.Claims }))),
	under("attributes",
		under("request", under("http",
			at("method", text(func(in *policy.Input) string { return in.Method })),
			at("path", text(func(in *policy.Input) string { return in.RawPath })),
			at("host", text(func(in *policy.Input) string { return in.Host })),
			at("scheme", text(func(in *policy.Input) string { return in.Scheme })),
			at("headers", headers(true)))),
		under("source",
			at("address", text(func(in *policy.Input) string { return in.Source })),
			at("principal", text(func(in *policy.Input) string { return in.Principal.ID })))),
	under("resource",
		at("kind", text(func(in *policy.Input) string { return in.Resource.Kind })),
		at("namespace", text(func(in *policy.Input) string { return in.Resource.Namespace })),
		at("name", text(func(in *policy.Input) string { return in.Resource.Name })),
		at("metadata", raw(emptyObject, func(in *policy.Input) []byte { return in.Resource.MetadataJSON() })),
		at("payload", raw(null, func(in *policy.Input) []byte { return in.Resource.Payload })),
		at("previous", raw(null, func(in *policy.Input) []byte { return in.Resource.Previous })),
		at("findings", raw(nil, func(in *policy.Input) []byte { return in.Resource.Findings })),
		at("finding_counts", raw(nil, func(in *policy.Input) []byte { return in.Resource.FindingCounts }))),
)

var (
	emptyObject = ast.InternedEmptyObject
	null        = ast.InternedNullTerm
)

// text is a leaf of one string.
func text(get func(*policy.Input) string) leaf {
	return leaf{
		term: func(in *policy.Input) *ast.Term { return ast.InternedTerm(get(in)) },
		key:  func(b []byte, in *policy.Input) []byte { return appendText(b, get(in)) },
	}
}

func list(get func(*policy.Input) []string) leaf {
	return leaf{
		term: func(in *policy.Input) *ast.Term {
			items := get(in)
			terms := make([]*ast.Term, len(items))
			for i, s := range items {
				terms[i] = ast.InternedTerm(s)
			}
			return ast.ArrayTerm(terms...)
		},
		key: func(b []byte, in *policy.Input) []byte {
			items := get(in)
			b = binary.AppendUvarint(b, uint64(len(items)))
			for _, s := range items {
				b = appendText(b, s)
			}
			return b
		},
	}
}

// raw is a leaf of JSON, which is parsed only where a rule reads it. It panics
// on what is not JSON, since a rule must not take that for absent.
func raw(absent *ast.Term, get func(*policy.Input) []byte) leaf {
	return leaf{
		term: func(in *policy.Input) *ast.Term {
			b := get(in)
			if len(b) == 0 {
				return absent
			}
			v, err := inputJSON(b)
			if errors.Is(err, errValues) {
				panic(errValues)
			}
			if err != nil {
				panic(fmt.Errorf("the input holds what is not JSON: %w", err))
			}
			return ast.NewTerm(v)
		},
		key: func(b []byte, in *policy.Input) []byte {
			value := get(in)
			b = binary.AppendUvarint(b, uint64(len(value)))
			return append(b, value...)
		},
	}
}

// headers is a leaf of all request headers. Lower says that rules see their
// names in lower case, as Envoy has them.
func headers(lower bool) leaf {
	return leaf{
		term: func(in *policy.Input) *ast.Term {
			o := ast.NewObjectWithCapacity(len(in.Headers))
			for name, value := range in.Headers {
				if lower {
					name = strings.ToLower(name)
				}
				o.Insert(ast.StringTerm(name), ast.StringTerm(value))
			}
			return ast.NewTerm(o)
		},
		key: func(b []byte, in *policy.Input) []byte {
			b = binary.AppendUvarint(b, uint64(len(in.Headers)))
			for _, name := range slices.Sorted(maps.Keys(in.Headers)) {
				b = appendText(appendText(b, name), in.Headers[name])
			}
			return b
		},
		some: func(names []string) leaf { return someHeaders(names, lower) },
	}
}

// someHeaders is a leaf of the headers that rules name.
func someHeaders(names []string, lower bool) leaf {
	type wanted struct {
		name      *ast.Term
		canonical string
	}
	var all []wanted
	for _, name := range names {
		w := wanted{ast.StringTerm(name), name}
		if lower {
			w.canonical = textproto.CanonicalMIMEHeaderKey(name)
			if strings.ToLower(w.canonical) != name {
				continue // in upper case no header is there
			}
		}
		all = append(all, w)
	}
	return leaf{
		term: func(in *policy.Input) *ast.Term {
			o := ast.NewObjectWithCapacity(len(all))
			for _, w := range all {
				if value, ok := in.Headers[w.canonical]; ok {
					o.Insert(w.name, ast.StringTerm(value))
				}
			}
			return ast.NewTerm(o)
		},
		key: func(b []byte, in *policy.Input) []byte {
			for _, w := range all {
				value, ok := in.Headers[w.canonical]
				if !ok {
					b = append(b, 0)
					continue
				}
				b = appendText(append(b, 1), value)
			}
			return b
		},
	}
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// projection is the part of the input document that an entry point reads.
type projection struct {
	root   node
	leaves []leaf
}

// project leaves out of the document what no rule reads.
func project(p *paths) projection {
	var pr projection
	pr.root = pr.prune(document, p)
	return pr
}

func (pr *projection) prune(n node, p *paths) node {
	if n.kids == nil {
		if n.leaf.some != nil && !p.all {
			n.leaf = n.leaf.some(slices.Sorted(maps.Keys(p.next)))
		}
		pr.leaves = append(pr.leaves, n.leaf)
		return n
	}
	var kids []node
	for _, kid := range n.kids {
		below := p.next[string(kid.name.Value.(ast.String))]
		if p.all {
			below = p
		}
		if below != nil {
			kids = append(kids, pr.prune(kid, below))
		}
	}
	n.kids = kids
	return n
}

// input builds the document that rules see.
func (pr *projection) input(in *policy.Input) ast.Value { return pr.root.build(in).Value }

func (n *node) build(in *policy.Input) *ast.Term {
	if n.leaf.term != nil {
		return n.leaf.term(in)
	}
	o := ast.NewObjectWithCapacity(len(n.kids))
	for i := range n.kids {
		if kid := n.kids[i].build(in); kid != nil {
			o.Insert(n.kids[i].name, kid)
		}
	}
	return ast.NewTerm(o)
}

// appendKey appends all that rules may see of the input, such that different
// views give different bytes: every part has its length before it, and the
// parts and their order are fixed for an entry point.
func (pr *projection) appendKey(b []byte, in *policy.Input) []byte {
	for i := range pr.leaves {
		b = pr.leaves[i].key(b, in)
	}
	return b
}
