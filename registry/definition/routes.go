package definition

import (
	"cmp"
	"slices"
	"strings"
)

// dialect tells the version of OpenAPI by the document's own word.
func (w *walk) dialect() (root *shape, name string, err error) {
	t := w.tree
	if v, ok := t.member(0, "openapi"); ok {
		s := t.text(v)
		switch {
		case t.nodes[v].kind == '"' && version(s, "3.0."):
			return openapi30, "openapi " + s, nil
		case t.nodes[v].kind == '"' && version(s, "3.1."):
			w.siblings = true
			return openapi31, "openapi " + s, nil
		}
		return nil, "", invalid("/openapi", "must be a version 3.0.x or 3.1.x (line %d)", t.line(v))
	}
	if v, ok := t.member(0, "swagger"); ok {
		if t.text(v) == "2.0" {
			return swagger20, "swagger 2.0", nil
		}
		return nil, "", invalid("/swagger", "must be \"2.0\" (line %d)", t.line(v))
	}
	return nil, "", invalid("", "must have openapi or swagger at the top, with the version it is written in")
}

var verbs = []string{"get", "put", "post", "delete", "options", "head", "patch", "trace"}

// routes lists the operations under paths of a checked document.
func (w *walk) routes() []Route {
	t := w.tree
	base := ""
	if b, ok := t.member(0, "basePath"); ok {
		base = strings.TrimSuffix(t.text(b), "/")
	}
	out := []Route{}
	paths, ok := t.member(0, "paths")
	if !ok {
		return out
	}
	t.children(paths, func(item uint32) bool {
		path := t.key(item)
		if !strings.HasPrefix(path, "/") {
			return true
		}
		out = w.operations(out, item, base+path)
		if r, ok := t.member(item, "$ref"); ok {
			out = w.operations(out, w.resolve(t.text(r)).node, base+path)
		}
		return true
	})
	slices.SortFunc(out, func(a, b Route) int {
		return cmp.Or(strings.Compare(a.Path, b.Path), strings.Compare(a.Method, b.Method))
	})
	return slices.Compact(out)
}

// operations appends those of a path item.
func (w *walk) operations(out []Route, item uint32, path string) []Route {
	for _, verb := range verbs {
		if op, ok := w.tree.member(item, verb); ok && w.tree.nodes[op].kind == '{' {
			out = append(out, Route{Method: strings.ToUpper(verb), Path: path})
		}
	}
	return out
}
