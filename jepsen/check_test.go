package jepsen

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"
)

// at gives an operation its times: the two letters of the span.
func at(op Op, span string) Op {
	op.Invoke, op.Return = int64(span[0]), int64(span[1])
	op.Key = "k"
	return op
}

func wr(v string, o Outcome, span string) Op {
	return at(Op{Kind: Write, Value: v, Outcome: o}, span)
}

func rd(v, span string) Op { return at(Op{Kind: Read, Value: v, Outcome: OK}, span) }

func cas(from, to string, o Outcome, span string) Op {
	op := at(Op{Kind: CAS, Expect: from, Value: to, Outcome: o}, span)
	if o == Failed {
		op.Status = mismatch
	}
	return op
}

// TestCheckRegisters: the checker accepts what a register may do and catches
// each way of breaking it. Times are the letters of the last argument.
func TestCheckRegisters(t *testing.T) {
	refused := cas("1", "2", Failed, "cd")
	refused.Status = 503
	for name, c := range map[string]struct {
		ops   []Op
		wrong bool
	}{
		"empty at first":                         {ops: []Op{rd("", "ab"), wr("1", OK, "cd"), rd("1", "ef")}},
		"either while a write runs":              {ops: []Op{wr("1", OK, "ag"), rd("", "bc"), rd("1", "de")}},
		"back while a write runs":                {ops: []Op{wr("1", OK, "ag"), rd("1", "bc"), rd("", "de")}, wrong: true},
		"stale read":                             {ops: []Op{wr("1", OK, "ab"), wr("2", OK, "cd"), rd("1", "ef")}, wrong: true},
		"lost write":                             {ops: []Op{wr("1", OK, "ab"), rd("", "cd")}, wrong: true},
		"swap":                                   {ops: []Op{wr("1", OK, "ab"), cas("1", "2", OK, "cd"), rd("2", "ef")}},
		"swap from a value that is gone":         {ops: []Op{wr("1", OK, "ab"), wr("2", OK, "cd"), cas("1", "3", OK, "ef")}, wrong: true},
		"both of two swaps win":                  {ops: []Op{wr("1", OK, "ab"), cas("1", "2", OK, "cf"), cas("1", "3", OK, "de")}, wrong: true},
		"refused although it fits":               {ops: []Op{wr("1", OK, "ab"), cas("1", "2", Failed, "cd")}, wrong: true},
		"refused since it does not fit":          {ops: []Op{wr("2", OK, "ab"), cas("1", "3", Failed, "cd")}},
		"unknown that happened":                  {ops: []Op{wr("1", Unknown, "ab"), rd("1", "cd")}},
		"unknown that happened late":             {ops: []Op{wr("1", Unknown, "ab"), rd("", "cd"), rd("1", "ef")}},
		"unknown that never happened":            {ops: []Op{wr("1", Unknown, "ab"), rd("", "cd"), rd("", "ef")}},
		"unknown that happened twice":            {ops: []Op{wr("1", Unknown, "ab"), rd("1", "cd"), wr("2", OK, "ef"), rd("1", "gh")}, wrong: true},
		"unknown that happened before its call":  {ops: []Op{rd("1", "ab"), wr("1", Unknown, "cd")}, wrong: true},
		"unknown swap that happened":             {ops: []Op{wr("1", OK, "ab"), cas("1", "2", Unknown, "cd"), rd("1", "ef"), rd("2", "gh")}},
		"said not to have happened, and it has":  {ops: []Op{wr("1", OK, "ab"), refused, rd("2", "ef")}, wrong: true},
		"said not to have happened, and has not": {ops: []Op{wr("1", OK, "ab"), refused, rd("1", "ef")}},
	} {
		t.Run(name, func(t *testing.T) {
			err := CheckRegisters(c.ops, time.Minute, t.TempDir())
			if (err != nil) != c.wrong {
				t.Fatalf("wrong=%v, the checker says: %v", c.wrong, err)
			}
		})
	}
}

// TestCheckRegistersUndecided: a search that does not end is no success.
func TestCheckRegistersUndecided(t *testing.T) {
	var ops []Op
	for i := range 40 { // 40! orders, none of which fits
		ops = append(ops, wr(string(rune('A'+i)), Unknown, "ab"))
	}
	ops = append(ops, rd("never written", "cd"))
	err := CheckRegisters(ops, time.Millisecond, t.TempDir())
	if err == nil || !strings.Contains(err.Error(), "Unknown") {
		t.Fatalf("want Unknown as an error, got %v", err)
	}
}

func TestCheckRevisions(t *testing.T) {
	write := func(v string, revision uint64, span string) Op {
		op := wr(v, OK, span)
		op.Revision = revision
		return op
	}
	read := func(v string, revision uint64, span string) Op {
		op := rd(v, span)
		op.Revision = revision
		return op
	}
	for name, c := range map[string]struct {
		ops   []Op
		wrong bool
	}{
		"rising":             {ops: []Op{write("1", 5, "ab"), write("2", 7, "cd"), read("2", 7, "ef")}},
		"crossing":           {ops: []Op{write("1", 7, "ac"), write("2", 5, "bd")}},
		"falling":            {ops: []Op{write("1", 7, "ab"), write("2", 5, "cd")}, wrong: true},
		"shared":             {ops: []Op{write("1", 5, "ac"), write("2", 5, "bd")}, wrong: true},
		"another at reading": {ops: []Op{write("1", 5, "ab"), read("2", 5, "cd")}, wrong: true},
	} {
		t.Run(name, func(t *testing.T) {
			if err := CheckRevisions(c.ops); (err != nil) != c.wrong {
				t.Fatalf("wrong=%v, the checker says: %v", c.wrong, err)
			}
		})
	}
}

func TestCheckSet(t *testing.T) {
	ops := []Op{
		{Kind: Write, Key: "acknowledged", Outcome: OK, Revision: 3},
		{Kind: Write, Key: "unknown", Outcome: Unknown},
		{Kind: Write, Key: "refused", Outcome: Failed},
		{Kind: Fault, Outcome: OK},
	}
	for name, c := range map[string]struct {
		found map[string]uint64
		wrong string
	}{
		"as told":          {found: map[string]uint64{"acknowledged": 3}},
		"unknown happened": {found: map[string]uint64{"acknowledged": 3, "unknown": 4}},
		"lost":             {found: map[string]uint64{"unknown": 4}, wrong: "lost: acknowledged"},
		"changed":          {found: map[string]uint64{"acknowledged": 5}, wrong: "changed: acknowledged"},
		"undead":           {found: map[string]uint64{"acknowledged": 3, "refused": 4}, wrong: "undead: refused"},
		"strange":          {found: map[string]uint64{"acknowledged": 3, "other": 4}, wrong: "strange: nobody has registered other"},
	} {
		t.Run(name, func(t *testing.T) {
			n, err := CheckSet(ops, c.found)
			if n != 1 {
				t.Errorf("looked for %d acknowledged, want 1", n)
			}
			if c.wrong == "" && err != nil || c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)) {
				t.Fatalf("want %q, the checker says: %v", c.wrong, err)
			}
		})
	}
}

// TestOutcome: a caller counts a change as not done only where that is certain.
func TestOutcome(t *testing.T) {
	const definite, unknown = `{"code":"no_leader","status":503}`, `{"code":"no_leader","status":503,"outcome":"unknown"}`
	broken := errors.New("connection reset")
	for name, c := range map[string]struct {
		method string
		status int
		body   string
		err    error
		sent   bool
		want   Outcome
	}{
		"done":                       {http.MethodPut, 201, `{}`, nil, true, OK},
		"refused":                    {http.MethodPut, 503, definite, nil, true, Failed},
		"unknown":                    {http.MethodPut, 503, unknown, nil, true, Unknown},
		"a proxy's word":             {http.MethodPut, 502, `<html>`, nil, true, Unknown},
		"broken before it was sent":  {http.MethodPut, 0, "", broken, false, Failed},
		"broken after it was sent":   {http.MethodPut, 0, "", broken, true, Unknown},
		"broken while it was read":   {http.MethodPut, 201, `{`, broken, true, Unknown},
		"a read without an answer":   {http.MethodGet, 0, "", broken, true, Failed},
		"a read of unknown fate":     {http.MethodGet, 503, unknown, nil, true, Failed},
		"a read that was answered":   {http.MethodGet, 200, `{}`, nil, true, OK},
		"not modified is not a word": {http.MethodPut, 304, "", nil, true, Unknown},
	} {
		t.Run(name, func(t *testing.T) {
			a := &Answer{Status: c.status, Body: []byte(c.body)}
			if a.judge(c.method, c.err, c.sent); a.Outcome != c.want {
				t.Fatalf("%s, want %s", a, c.want)
			}
		})
	}
}
