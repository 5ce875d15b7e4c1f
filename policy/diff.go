package policy

import (
	"bytes"
	"maps"
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// What became of a part of a content on the way from one revision to another.
const (
	Added   = "added"
	Removed = "removed"
	Changed = "changed"
)

// Diff is how one revision differs from another. Same says that both decide by
// the same modules, data and entry points.
type Diff struct {
	From        uint64             `json:"from"`
	To          uint64             `json:"to"`
	Same        bool               `json:"same"`
	Modules     []ModuleChange     `json:"modules"`
	Rules       []RuleChange       `json:"rules"` // those of tests left out
	Tests       []RuleChange       `json:"tests"`
	Data        []DataChange       `json:"data"`
	EntryPoints []EntryPointChange `json:"entry_points"`
}

// ModuleChange is one file of which the text differs.
type ModuleChange struct {
	Name   string `json:"name"`
	Change string `json:"change"`
}

// RuleChange is one rule, all of its definitions together, that means
// something else: white space and comments alone are no change.
type RuleChange struct {
	Package string `json:"package"` // as "a.b"
	Rule    string `json:"rule"`
	Change  string `json:"change"`
	Before  string `json:"before,omitempty"` // its text, with the imports it uses
	After   string `json:"after,omitempty"`
}

// DataChange is one place in the data; arrays are compared as a whole.
type DataChange struct {
	Pointer string         `json:"pointer"` // JSON Pointer; "" is the whole
	Change  string         `json:"change"`
	Before  jsontext.Value `json:"before,omitzero"`
	After   jsontext.Value `json:"after,omitzero"`
}

// EntryPointChange is one of the two packages that are asked.
type EntryPointChange struct {
	For    string `json:"for"` // write, lookup
	Before string `json:"before"`
	After  string `json:"after"`
}

// NewDiff compares everything but the rules, which only the engine can read.
func NewDiff(from, to *Content) *Diff {
	d := &Diff{
		Same: from.Digest() == to.Digest(), Modules: []ModuleChange{}, Rules: []RuleChange{}, Tests: []RuleChange{},
		Data: []DataChange{}, EntryPoints: []EntryPointChange{},
	}
	for _, name := range union(from.Modules, to.Modules) {
		before, had := from.Modules[name]
		after, has := to.Modules[name]
		if change := changeOf(had, has, before == after); change != "" {
			d.Modules = append(d.Modules, ModuleChange{Name: name, Change: change})
		}
	}
	d.data("", jsontext.Value(from.Data), jsontext.Value(to.Data))
	for _, e := range []struct {
		name string
		of   Action
	}{{"write", Register}, {"lookup", Lookup}} {
		if before, after := from.EntryPoints.For(e.of), to.EntryPoints.For(e.of); before != after {
			d.EntryPoints = append(d.EntryPoints, EntryPointChange{For: e.name, Before: before, After: after})
		}
	}
	return d
}

// changeOf is "" where nothing changed.
func changeOf(had, has, same bool) string {
	switch {
	case !had && has:
		return Added
	case had && !has:
		return Removed
	case !same:
		return Changed
	}
	return ""
}

func union[V any](a, b map[string]V) []string {
	all := slices.AppendSeq(slices.Collect(maps.Keys(a)), maps.Keys(b))
	slices.Sort(all)
	return slices.Compact(all)
}

// data compares two values at one place; both are canonical.
func (d *Diff) data(at jsontext.Pointer, before, after jsontext.Value) {
	if bytes.Equal(before, after) {
		return
	}
	var was, is map[string]jsontext.Value
	if before.Kind() != '{' || after.Kind() != '{' || json.Unmarshal(before, &was) != nil || json.Unmarshal(after, &is) != nil {
		d.Data = append(d.Data, DataChange{
			Pointer: string(at), Change: changeOf(before != nil, after != nil, false), Before: before, After: after,
		})
		return
	}
	for _, name := range union(was, is) {
		d.data(at.AppendToken(name), was[name], is[name])
	}
}

// Places lists the JSON Pointers, at most the first so many, at which two JSON
// values differ. It tells nothing of the values.
func Places(before, after []byte, most int) []string {
	was, is := jsontext.Value(before).Clone(), jsontext.Value(after).Clone()
	if was.Canonicalize() != nil || is.Canonicalize() != nil {
		return []string{""} // one of them is no JSON, so they differ as a whole
	}
	d := &Diff{}
	d.data("", was, is)
	var places []string
	for _, c := range d.Data[:min(most, len(d.Data))] {
		places = append(places, c.Pointer)
	}
	return places
}
