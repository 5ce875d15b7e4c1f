// Package rego owns the evaluation of policies: it compiles the modules of a
// revision, runs their tests, and answers questions by them in process. It is
// the one room that knows Open Policy Agent. It refuses modules that reach for
// the network or the node, and every question whose answer is not a plain yes:
// an error, a time-out, nothing, or two answers are a no.
package rego

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

// Options configure an engine. The zero value is usable.
type Options struct {
	// ValidSchema answers the built-in is_valid_schema: whether the decoded
	// JSON document is one that the parser of its format accepts. Nil: never.
	ValidSchema func(document any) bool

	// MinCoverage is how much of a revision's lines its own tests must
	// evaluate, in percent; 0: none.
	MinCoverage float64
	// Print keeps what print() says in tests; elsewhere print does nothing.
	Print bool

	// Limit is how long one evaluation may take; 0 means 50 ms.
	Limit time.Duration
	// TestLimit is how long all tests of a revision may take together; 0
	// means 10 s.
	TestLimit time.Duration
	// CompileLimit is how long compiling a revision and asking it for the
	// first time may take; 0 means 30 s.
	CompileLimit time.Duration
	// CacheTTL is how long a decision is remembered; 0 means 1 s, and less
	// than 0 that none is. Only decisions that are a pure function of what the
	// policy reads are remembered.
	CacheTTL time.Duration
	// CacheBytes bounds the remembered decisions; 0 means 32 MiB.
	CacheBytes uint64
	// Sets is how many compiled revisions are kept; 0 means 8.
	Sets int

	// Without names built-ins that this engine does not have, beside those
	// that no engine has. It must be the same on all nodes, or those that have
	// less leave service when a policy asks for more.
	Without []string

	// Compiled is told of every compilation: how long it took, and what was
	// wrong; nil: nobody is.
	Compiled func(took time.Duration, err error)

	// Logger is told what must not be shown to callers; nil: slog.Default().
	Logger *slog.Logger
}

func (o *Options) setDefaults() {
	if o.ValidSchema == nil {
		o.ValidSchema = func(any) bool { return false }
	}
	if o.Limit <= 0 {
		o.Limit = 50 * time.Millisecond
	}
	if o.TestLimit <= 0 {
		o.TestLimit = 10 * time.Second
	}
	if o.CompileLimit <= 0 {
		o.CompileLimit = 30 * time.Second
	}
	if o.CacheTTL == 0 {
		o.CacheTTL = time.Second
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = 32 << 20
	}
	if o.Sets <= 0 {
		o.Sets = 8
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Compiled == nil {
		o.Compiled = func(time.Duration, error) {}
	}
}

// Engine answers questions by policy revisions. It is safe for concurrent use.
type Engine struct {
	options Options
	catalog *catalog
	shelf   *shelf
	cache   *cache        // nil: decisions are not remembered
	answers *answerCache  // nil: nor are documents
	tokens  *tokens       // signatures that were verified
	slots   chan struct{} // one for each decision of the registry that runs and is not given up
	asked   chan struct{} // the same for questions that callers put to the policy
	queries chan struct{} // and for what is no part of it, given up or not
	large   chan struct{} // one for each large input that is in memory
	jobs    chan *job     // to workers that have nothing to do
	done    chan struct{}
	latest  atomic.Pointer[set]     // the one compiled last
	tested  atomic.Pointer[set]     // likewise, with its tests
	linted  atomic.Pointer[remarks] // likewise, of its modules
	told    atomic.Pointer[telling]
}

var _ policy.Decider = (*Engine)(nil)

// New makes an engine. Close it when it is no longer needed.
func New(o Options) *Engine {
	o.setDefaults()
	e := &Engine{
		options: o,
		catalog: newCatalog(o.ValidSchema).without(o.Without),
		shelf:   newShelf(o.Sets),
		// More evaluations at once than processors would only make each of
		// them slower, and run into the limit for want of a processor.
		slots:   make(chan struct{}, 2*runtime.GOMAXPROCS(0)),
		asked:   make(chan struct{}, 2*runtime.GOMAXPROCS(0)),
		queries: make(chan struct{}, max(2, runtime.GOMAXPROCS(0))),
		large:   make(chan struct{}, max(2, runtime.GOMAXPROCS(0))),
		jobs:    make(chan *job),
		done:    make(chan struct{}),

		tokens: newTokens(),
	}
	if o.CacheTTL > 0 {
		e.cache = newCache(o.CacheTTL, o.CacheBytes)
		e.answers = newAnswerCache(o.CacheTTL, o.CacheBytes)
	}
	return e
}

// Close ends the engine's own goroutines.
func (e *Engine) Close() {
	close(e.done)
	if e.cache != nil {
		e.cache.close()
		e.answers.close()
	}
	e.tokens.close()
}

// Prepare compiles the revision and warms it up, off to the side. Decisions
// by it are fast from the first one on. The error is invalid_policy, or the
// context's.
func (e *Engine) Prepare(ctx context.Context, rev *policy.Revision) error {
	_, err := e.compiled(ctx, rev.Digest, &rev.Content)
	return err
}

// Prepared says whether the revision is compiled, so that [Engine.Decide] will
// not have to.
func (e *Engine) Prepared(rev *policy.Revision) bool {
	s := e.shelf.get(rev.Digest)
	return s != nil && s.err == nil
}

// Broken tells why the revision does not compile on this node, where that has
// been tried: an invalid_policy. It costs no more than a pointer.
func (e *Engine) Broken(rev *policy.Revision) error {
	if s := e.shelf.get(rev.Digest); s != nil {
		return s.err
	}
	return nil
}

func (e *Engine) compiled(ctx context.Context, digest string, c *policy.Content) (*set, error) {
	if s := e.shelf.get(digest); s != nil {
		return s, s.err
	}
	wait, cancel := context.WithTimeout(ctx, e.options.CompileLimit)
	defer cancel()
	s, err := e.shelf.make(wait, digest, func() *set {
		began := time.Now()
		s := e.compile(c)
		e.options.Compiled(time.Since(began), s.err)
		if s.err == nil {
			e.latest.Store(s)
			e.warm(s)
		}
		if s.stuck.Load() > 0 {
			return &set{err: fault.New(fault.InvalidPolicy, "an evaluation of the policy cannot be interrupted: it compares or builds a document in which one part stands very many times; simplify it")}
		}
		return s
	})
	switch {
	case err == nil:
		return s, s.err
	case ctx.Err() == nil:
		return nil, fault.New(fault.InvalidPolicy, "the policy did not compile within %v; make it smaller", e.options.CompileLimit)
	}
	return nil, err
}

// warm asks each entry point once, so that what is built on first use is there.
func (e *Engine) warm(s *set) {
	for _, action := range []policy.Action{policy.Register, policy.Lookup} {
		in := &policy.Input{Action: action, Time: time.Now(), Protocol: "https", Method: "PUT", Path: []string{"v1"}}
		if entry := s.entry(s.entryPoints.For(action)); entry.defined && entry.err == nil {
			e.evaluate(context.Background(), s, entry, in.Time, func() ast.Value { return entry.input(in) })
		}
	}
}

// Decide implements [policy.Decider].
func (e *Engine) Decide(ctx context.Context, rev *policy.Revision, in *policy.Input) policy.Decision {
	if rev == nil {
		return policy.Decision{Allow: true, Default: true, ID: newID(), Time: in.Time}
	}
	d := policy.Decision{ID: newID(), PolicyRevision: rev.Number, Time: in.Time}
	s, err := e.soon(ctx, rev)
	if err != nil {
		d.Reasons, d.Missed, d.Unavailable = []string{unavailable(rev, err)}, true, true
		return d
	}
	entry := s.entry(s.entryPoints.For(in.Action))
	d.EntryPoint = entry.path
	if !entry.defined && entry.err == nil {
		d.Allow, d.Default = true, true
		return d
	}
	v := e.decide(ctx, s, entry, in)
	v.fill(&d)
	e.tell(ctx, v, &d)
	return d
}

// tell names in the log what a limit stopped, once in a second for each
// revision that is asked.
func (e *Engine) tell(ctx context.Context, v *verdict, d *policy.Decision) {
	if !v.limited {
		return
	}
	now := telling{time.Now().Unix(), d.PolicyRevision}
	if last := e.told.Load(); (last == nil || *last != now) && e.told.CompareAndSwap(last, &now) {
		e.options.Logger.WarnContext(ctx, "a policy evaluation cost too much and was stopped",
			"policy_revision", d.PolicyRevision, "entry_point", d.EntryPoint, "decision_id", d.ID, "reasons", d.Reasons)
	}
}

// telling is a second and a revision that the log has a line about.
type telling struct {
	second   int64
	revision uint64
}

// soon is compiled for a question that waits: it has less time than the compiler.
func (e *Engine) soon(ctx context.Context, rev *policy.Revision) (*set, error) {
	if s := e.shelf.get(rev.Digest); s != nil {
		return s, s.err
	}
	ctx, cancel := context.WithTimeout(ctx, questionWait)
	defer cancel()
	return e.compiled(ctx, rev.Digest, &rev.Content)
}

// decide answers from the cache or by evaluating.
func (e *Engine) decide(ctx context.Context, s *set, entry *entry, in *policy.Input) *verdict {
	if e.cache == nil || !entry.cacheable {
		return e.evaluate(ctx, s, entry, in.Time, func() ast.Value { return entry.input(in) })
	}
	buf := keyPool.Get().(*[]byte)
	defer keyPool.Put(buf)
	*buf = entry.appendKey((*buf)[:0], in)
	if len(*buf) > maxKey {
		return e.evaluate(ctx, s, entry, in.Time, func() ast.Value { return entry.input(in) })
	}
	if v, ok := e.cache.get(entry, *buf); ok {
		return v
	}
	v := e.evaluate(ctx, s, entry, in.Time, func() ast.Value { return entry.input(in) })
	if v.pure {
		e.cache.put(entry, *buf, v)
	}
	return v
}

func unavailable(rev *policy.Revision, err error) string {
	if f := fault.From(err); f.Code == fault.InvalidPolicy {
		return fmt.Sprintf("policy revision %d does not compile on this node: %s", rev.Number, f.Detail)
	}
	return fmt.Sprintf("policy revision %d was not ready in time; try again", rev.Number)
}

// Remembered counts the decisions that were in the cache of decisions, and
// those that could have been and were not.
func (e *Engine) Remembered() (hits, misses uint64) {
	if e.cache == nil {
		return 0, 0
	}
	return e.cache.hits.Load(), e.cache.misses.Load()
}
