package rego

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	"github.com/open-policy-agent/opa/v1/topdown"
	ndb "github.com/open-policy-agent/opa/v1/topdown/builtins"

	"github.com/muster-registry/muster/policy"
)

const (
	maxReasons = 100     // in one answer
	maxReason  = 1 << 10 // bytes each
)

// verdict is what an evaluation came to. It is shared by the cache: read-only.
type verdict struct {
	allow    bool
	missed   bool // nobody answered in time
	limited  bool // it would have cost too much: a limit stopped it
	pure     bool // the same question has the same answer
	reasons  []string
	filtered []byte
	response []byte // JSON; nil: none was asked for
	chance   ndb.NDBCache
	cause    policy.Cause
}

func (v *verdict) fill(d *policy.Decision) {
	d.Allow, d.Reasons, d.Filtered, d.Result, d.Missed = v.allow, v.reasons, v.filtered, v.response, v.missed
	d.Cause = v.cause
	if len(v.chance) > 0 {
		d.Chance = v.chance
	}
}

func (v *verdict) size() int {
	n := len(v.filtered)
	for _, r := range v.reasons {
		n += len(r) + 16
	}
	return n
}

// no is a refusal for a reason that does not lie in the question.
func no(format string, args ...any) *verdict {
	return &verdict{reasons: []string{fmt.Sprintf(format, args...)}}
}

// missed is a refusal because there was no answer in time.
func missed(format string, args ...any) *verdict {
	v := no(format, args...)
	v.missed = true
	return v
}

var noMetrics = metrics.NoOp()

// ask evaluates on the worker's goroutine. Chance holds the results of an
// earlier evaluation that this one repeats; nil where it repeats none.
func (e *Engine) ask(ctx context.Context, s *set, entry *entry, now time.Time, chance ndb.NDBCache, input func() ast.Value) (v *verdict) {
	defer func() {
		if p := recover(); p == errValues {
			v = no("%v", errValues)
		} else if p != nil {
			e.options.Logger.ErrorContext(ctx, "the policy engine panicked", "entry_point", entry.path, "panic", p)
			v = no("the policy engine failed on this question; the node's log says why")
		}
	}()
	document := ast.NewTerm(input())
	c := startClock(e.options.Limit)
	defer c.stop()
	query := topdown.NewQuery(entry.query).
		WithQueryCompiler(entry.compiler).
		WithCompiler(s.compiler).
		WithStore(s.store).
		WithTransaction(s.txn).
		WithBuiltins(s.catalog.functions).
		WithInterQueryBuiltinValueCache(e.tokens).
		WithMetrics(noMetrics).
		WithStrictBuiltinErrors(true).
		WithCancel(c).
		WithTime(now).
		WithInput(document)
	if chance == nil && entry.chance {
		chance = ndb.NDBCache{}
	}
	if chance != nil {
		query.WithNDBuiltinCache(chance)
		defer func() {
			if v != nil {
				v.chance = chance
			}
		}()
	}
	var result *ast.Term
	err := query.Iter(ctx, func(r topdown.QueryResult) error {
		result = r[resultVar]
		return nil
	})
	if c.Cancelled() || topdown.IsCancel(err) {
		v := missed("the policy took longer than %v and was cut off", e.options.Limit)
		v.limited = true
		return v
	}
	if err != nil {
		return &verdict{pure: true, limited: isLimit(err), reasons: []string{explain(err)}}
	}
	return judge(entry, result)
}

// explain puts an error of the evaluation into words.
func explain(err error) string {
	t, ok := errors.AsType[*topdown.Error](err)
	if !ok {
		return "the policy failed: " + clip(err.Error())
	}
	message := strings.Join(strings.Fields(t.Message), " ")
	if t.Code == topdown.ConflictErr {
		return clip("the policy gives two different answers: " + message)
	}
	where := ""
	if t.Location != nil && t.Location.File != "" {
		where = fmt.Sprintf(" at %s:%d", t.Location.File, t.Location.Row)
	}
	return clip(fmt.Sprintf("the policy failed%s: %s", where, message))
}

// judge reads the answers: only an allow that is true, without any deny, is a
// yes.
func judge(entry *entry, result *ast.Term) *verdict {
	v := &verdict{pure: true}
	if result == nil {
		v.reasons = []string{"the policy gave no answer"}
		return v
	}
	answer := func(name string) *ast.Term {
		list, ok := value(result.Get(ast.InternedTerm(name))).(*ast.Array)
		if !ok || list.Len() == 0 {
			return nil
		}
		return list.Elem(0)
	}
	allow, deny := answer("allow"), answer("deny")
	if entry.responds {
		var err error
		if allow, v.response, err = respond(allow, answer); err != nil {
			return no("the policy's answer to a proxy cannot be used: %v", err)
		}
	}
	if v.reasons = denials(entry, deny); len(v.reasons) > 0 {
		v.cause = policy.Denied
	}
	if yes, ok := value(allow).(ast.Boolean); ok && bool(yes) {
		v.allow = len(v.reasons) == 0
	} else if len(v.reasons) == 0 {
		v.reasons, v.cause = []string{unmet(entry, allow)}, policy.NotAllowed
	}
	if filtered := answer("filtered"); v.allow && filtered != nil {
		b, err := encode(filtered)
		if err != nil {
			return no("the policy's filtered cannot be written out: %v", err)
		}
		v.filtered = b
	}
	return v
}

func value(t *ast.Term) ast.Value {
	if t == nil {
		return nil
	}
	return t.Value
}

func unmet(entry *entry, allow *ast.Term) string {
	name := "data." + dotted(entry.path) + ".allow"
	switch v := value(allow).(type) {
	case nil:
		return name + " is undefined: no rule allows this"
	case ast.Boolean:
		return name + " is false: no rule allows this"
	default:
		return name + " is " + article(v) + "; it must be true or false"
	}
}

func article(v ast.Value) string {
	name := ast.ValueName(v)
	if strings.ContainsAny(name[:1], "aeiou") {
		return "an " + name
	}
	return "a " + name
}

// denials gives the reasons that deny holds: the members of a set or an array,
// the keys of an object, one string. False, and what is undefined, holds none;
// anything else refuses.
func denials(entry *entry, deny *ast.Term) []string {
	name := "data." + dotted(entry.path) + ".deny"
	var reasons []string
	add := func(t *ast.Term) {
		if len(reasons) < maxReasons {
			reasons = append(reasons, reason(t))
		}
	}
	switch v := value(deny).(type) {
	case nil:
	case ast.Boolean:
		if v {
			reasons = []string{name + " is true"}
		}
	case ast.String:
		add(deny)
	case ast.Set:
		v.Foreach(add)
	case *ast.Array:
		v.Foreach(add)
	case ast.Object:
		v.Foreach(func(key, _ *ast.Term) { add(key) })
	default:
		reasons = []string{name + " is " + article(v) + "; it must be a set of messages"}
	}
	slices.Sort(reasons)
	return reasons
}

// reason is one message: a string, an object's msg, or else the JSON.
func reason(t *ast.Term) string {
	if o, ok := t.Value.(ast.Object); ok {
		for _, key := range []string{"msg", "message", "reason"} {
			if s, ok := value(o.Get(ast.StringTerm(key))).(ast.String); ok {
				return clip(string(s))
			}
		}
	}
	if s, ok := t.Value.(ast.String); ok {
		return clip(string(s))
	}
	b, err := encode(t)
	if err != nil {
		return "the policy gave a reason that cannot be written out"
	}
	return clip(string(b))
}

func encode(t *ast.Term) ([]byte, error) {
	if err := writable(t); err != nil {
		return nil, err
	}
	x, err := ast.JSON(t.Value)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(x); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

func clip(s string) string {
	if len(s) <= maxReason {
		return s
	}
	return strings.ToValidUTF8(s[:maxReason], "") + "…"
}

func dotted(path string) string { return strings.ReplaceAll(path, "/", ".") }
