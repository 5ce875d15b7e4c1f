package rego

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/maypok86/otter/v2"
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
	ndb "github.com/open-policy-agent/opa/v1/topdown/builtins"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

// Answer is what asking for a document came to. It is shared: read-only.
type Answer struct {
	Result []byte        // JSON; nil: undefined
	Input  []byte        // the part of the body that is the input; nil: there was none
	Yes    bool          // true, an object whose allow is true, or any other document; not where undefined
	Ruled  bool          // there are rules for the document
	Name   string        // the reference, as data.a.b
	Time   time.Time     // as the policy saw it; when it was asked first, if the answer was remembered
	Chance policy.Chance // what may differ next time; nil: nothing
}

// Why says in words why the answer is no.
func (a *Answer) Why() string {
	if a.Result == nil {
		return a.Name + " is undefined"
	}
	return a.Name + " is not true"
}

// place is a document below data that is asked for as OPA's data API does it.
type place struct {
	ref      ast.Ref
	name     string // the reference, in words
	query    ast.Body
	compiler ast.QueryCompiler
	pure     bool // the same input has the same answer
	chance   bool // it may differ for the same input at the same time
	ruled    bool // there are rules for it
	err      error
}

// DataRef reads a path of OPA's data API, "a/b", as a reference below data.
// Each segment may be escaped as in a URL; whole numbers are indices. The error
// is bad_request: the path is not one.
func DataRef(path string) (ast.Ref, error) {
	ref := ast.Ref{ast.DefaultRootDocument}
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "" {
			continue
		}
		if plain, err := url.PathUnescape(segment); err == nil {
			segment = plain
		}
		if strings.Contains(segment, `"`) {
			return nil, fault.New(fault.BadRequest, "invalid path: invalid ref term '%s'", clip(segment))
		}
		if n, err := strconv.ParseInt(segment, 10, 64); err == nil && strconv.FormatInt(n, 10) == segment {
			ref = append(ref, ast.IntNumberTerm(int(n)))
			continue
		}
		ref = append(ref, ast.StringTerm(segment))
	}
	return ref, nil
}

// Ask is a question for a document.
type Ask struct {
	Path     string // as in OPA's data API, see [DataRef]
	Main     bool   // the revision's data.system.main in place of the path
	Body     []byte
	Envelope Envelope
	Strict   bool // an error of a built-in function is one of the query; otherwise it is undefined
}

// Document gives the document that is asked for. Without a revision there are
// no documents.
//
// Errors are bad_request for a path or a body that cannot be used, forbidden
// for what belongs to the engine itself, not_ready and policy_unavailable where
// nobody answered, and those of OPA's topdown.
func (e *Engine) Document(ctx context.Context, rev *policy.Revision, ask *Ask) (*Answer, error) {
	s, err := e.forQuery(ctx, rev)
	if err != nil {
		return nil, err
	}
	doc := s.main
	if !ask.Main {
		doc = s.place(ask.Path)
	}
	if doc.err != nil {
		return nil, doc.err
	}
	body, envelope, strict := ask.Body, ask.Envelope, ask.Strict
	key := posed{doc: doc, envelope: envelope, strict: strict}
	remember := e.answers != nil && doc.pure && len(body) <= maxKey
	if remember {
		key.body = string(body)
		if a, ok := e.answers.seen.GetIfPresent(key); ok {
			return a, nil
		}
	}
	release, err := e.Room(ctx, len(body))
	if err != nil {
		return nil, err
	}
	defer release()
	input, raw, err := envelope.Open(body)
	if err != nil {
		return nil, err
	}
	result, err := e.supervise(ctx, e.asked, s, doc.name, func() any { return e.fetch(ctx, s, doc, time.Now(), nil, input, strict) })
	if err != nil {
		return nil, err
	}
	if err, failed := result.(error); failed {
		return nil, err
	}
	a := result.(*Answer)
	a.Input, a.Ruled, a.Name = raw, doc.ruled, doc.name
	if remember && len(a.Result) <= maxVerdict {
		e.answers.seen.Set(key, a)
	}
	return a, nil
}

// forQuery gives the compiled revision that answers; an empty one for none.
func (e *Engine) forQuery(ctx context.Context, rev *policy.Revision) (*set, error) {
	if rev == nil {
		rev = &policy.Revision{}
	}
	s, err := e.soon(ctx, rev)
	if err != nil {
		return nil, fault.Wrap(fault.PolicyUnavailable, err, "%s", unavailable(rev, err))
	}
	return s, nil
}

// fetch evaluates on the worker's goroutine and gives an *Answer or an error.
// Chance holds the results of an earlier evaluation that this one repeats; nil
// where it repeats none.
func (e *Engine) fetch(ctx context.Context, s *set, doc *place, now time.Time, chance ndb.NDBCache, input ast.Value, strict bool) (result any) {
	defer e.recovered(&result)
	c := startClock(e.options.Limit)
	defer c.stop()
	query := topdown.NewQuery(doc.query).
		WithQueryCompiler(doc.compiler).
		WithCompiler(s.compiler).
		WithStore(s.store).
		WithTransaction(s.txn).
		WithBuiltins(s.catalog.functions).
		WithInterQueryBuiltinValueCache(e.tokens).
		WithMetrics(noMetrics).
		WithStrictBuiltinErrors(strict).
		WithStackTraces(true).
		WithCancel(c).
		WithTime(now)
	if chance == nil && doc.chance {
		chance = ndb.NDBCache{}
	}
	if chance != nil {
		query.WithNDBuiltinCache(chance)
	}
	if input != nil {
		query = query.WithInput(ast.NewTerm(input))
	}
	var found *ast.Term
	err := query.Iter(ctx, func(r topdown.QueryResult) error {
		found = r[resultVar]
		return nil
	})
	if err != nil || c.Cancelled() {
		return e.evaluationError(c, err)
	}
	a := &Answer{Time: now}
	if len(chance) > 0 {
		a.Chance = chance
	}
	if found == nil {
		return a
	}
	if len(doc.ref) == 1 {
		found = withoutSystem(found)
	}
	if a.Result, err = encode(found); err != nil {
		return &topdown.Error{Code: topdown.InternalErr, Message: err.Error()}
	}
	a.Yes = yes(found.Value)
	return a
}

// evaluationError gives an evaluation that was cut off OPA's own form, with
// the limit named.
func (e *Engine) evaluationError(c *clock, err error) error {
	if c.Cancelled() || topdown.IsCancel(err) {
		return &topdown.Error{Code: topdown.CancelErr, Message: fault.From(e.cutOff()).Detail}
	}
	return err
}

// recovered turns a panic of the evaluation into its result.
func (e *Engine) recovered(result *any) {
	switch p := recover(); {
	case p == nil:
	case p == errValues: //nolint:errorlint // a sentinel panic value
		*result = &topdown.Error{Code: topdown.InternalErr, Message: errValues.Error()}
	case p == errParts: //nolint:errorlint // a sentinel panic value
		*result = &topdown.Error{Code: topdown.InternalErr, Message: errParts.Error()}
	default:
		e.options.Logger.Error("the policy engine panicked", "panic", fmt.Sprint(p))
		*result = errors.New("the policy engine failed on this question; the node's log says why")
	}
}

// withoutSystem leaves out what belongs to the engine itself.
func withoutSystem(t *ast.Term) *ast.Term {
	o, ok := t.Value.(ast.Object)
	if !ok || o.Get(systemKey) == nil {
		return t
	}
	rest := ast.NewObject()
	o.Foreach(func(key, value *ast.Term) {
		if !key.Equal(systemKey) {
			rest.Insert(key, value)
		}
	})
	return ast.NewTerm(rest)
}

var systemKey = ast.StringTerm("system")

func yes(v ast.Value) bool {
	if o, ok := v.(ast.Object); ok {
		if allow := o.Get(ast.InternedTerm("allow")); allow != nil {
			v = allow.Value
		}
	}
	b, ok := v.(ast.Boolean)
	return !ok || bool(b)
}

// place gives the document at a path; it is compiled when first asked for.
func (s *set) place(path string) *place {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.places[path]; d != nil {
		return d
	}
	d := s.newPlace(DataRef(path))
	if len(d.ref) > 1 && d.ref[1].Equal(systemKey) {
		d.err = errSystem
	}
	if d.err == nil || len(path) <= policy.MaxModuleName {
		if len(s.places) >= maxNamed {
			clear(s.places)
		}
		s.places[path] = d
	}
	return d
}

func (s *set) newPlace(ref ast.Ref, err error) *place {
	d := &place{ref: ref, name: ref.String(), err: err}
	if err != nil {
		return d
	}
	d.compiler = s.compiler.QueryCompiler()
	asked, err := ast.ParseTerm(d.name) // for the places in it
	if err != nil {
		d.err = fault.New(fault.BadRequest, "invalid path: %s is not a reference", clip(d.name))
		return d
	}
	expr := ast.Equality.Expr(ast.VarTerm(string(resultVar)), asked)
	expr.Location = asked.Location
	body := ast.NewBody(expr)
	if d.query, d.err = d.compiler.Compile(body); d.err != nil {
		return d
	}
	reads := s.readsOf(d.ref)
	d.pure, d.chance = !reads.impure, reads.chance
	d.ruled = len(s.compiler.GetRulesForVirtualDocument(d.ref)) > 0
	return d
}

// answerCache remembers documents by the whole body they were asked for with.
type answerCache struct {
	seen *otter.Cache[posed, *Answer]
}

type posed struct {
	doc      *place // belongs to one compiled set
	envelope Envelope
	strict   bool
	body     string
}

func newAnswerCache(ttl time.Duration, bytes uint64) *answerCache {
	return &answerCache{seen: otter.Must(&otter.Options[posed, *Answer]{
		MaximumWeight:    bytes,
		Weigher:          func(p posed, a *Answer) uint32 { return uint32(entryCost + len(p.body) + len(a.Result) + len(a.Input)) },
		ExpiryCalculator: otter.ExpiryWriting[posed, *Answer](ttl),
	})}
}

func (c *answerCache) close() { c.seen.StopAllGoroutines() }
