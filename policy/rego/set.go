package rego

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

// testSuffix marks modules that are tests and take no part in decisions.
const testSuffix = "_test.rego"

// maxNamed bounds the entry points compiled because a caller named them.
const maxNamed = 64

// set is one compiled revision. All of it is read-only, apart from the entry
// points that callers name, which are compiled when first asked for.
type set struct {
	err         error // invalid_policy: it does not compile; nothing else is set, but modules where they parse
	catalog     *catalog
	entryPoints policy.EntryPoints
	compiler    *ast.Compiler
	modules     map[string]*ast.Module // as parsed, tests left out
	tests       map[string]*ast.Module
	sources     map[string]string    // of modules and tests
	data        []byte               // JSON
	base        *set                 // whose work is used, while this one is made
	seen        map[*ast.Rule]*reads // what each rule looks at itself
	depends     edges                // between the compiled rules
	indexed     map[string]bool      // files with a comprehension that has an index
	tried       bool                 // its modules are tests and what they test; see trial
	print       bool                 // what print() says is kept
	made        bool                 // all of it but what is named later
	linked      bool                 // made out of an earlier one
	store       storage.Store
	txn         storage.Transaction // one for ever: nothing is ever written
	used        atomic.Uint64       // see shelf
	once        sync.Once
	written     *ast.Compiler // see asWritten
	queried     sync.Once
	graphed     *ast.Compiler // see evaluating
	stuck       atomic.Int32  // evaluations that were given up and still run
	weigher     *weigher      // of queries

	ready map[string]*entry // both of the revision's entry points
	mu    sync.Mutex
	named map[string]*entry // guarded by mu

	main   *place            // data.system.main
	places map[string]*place // guarded by mu; see Document
}

// compile makes a set of the content. It does not fail: the set carries the
// error, so that a revision that cannot compile is not compiled again for
// every question.
func (e *Engine) compile(c *policy.Content) (s *set) {
	defer func() {
		if p := recover(); p != nil {
			e.options.Logger.Error("the policy compiler panicked", "panic", p)
			s = &set{err: fault.New(fault.InvalidPolicy, "the policy compiler failed on these modules; simplify them, and report the modules as a bug")}
		}
	}()
	s = &set{catalog: e.catalog, entryPoints: c.EntryPoints, named: map[string]*entry{}, ready: map[string]*entry{}, places: map[string]*place{}}
	base := e.latest.Load()
	s.base = base
	defer func() { s.base, s.made = nil, true }()
	if err := s.build(c, base); err != nil {
		return &set{err: err, modules: s.modules}
	}
	s.weigher = newWeigher(s.compiler)
	s.main = s.newPlace(DataRef("system/main"))
	for _, action := range []policy.Action{policy.Register, policy.Lookup} {
		path := c.EntryPoints.For(action)
		s.ready[path] = s.prepare(path, answers)
		if err := s.ready[path].err; err != nil {
			return &set{err: err, modules: s.modules}
		}
	}
	return s
}

func (s *set) build(c *policy.Content, base *set) error {
	var err error
	if s.modules, s.tests, err = parseAgain(base, c.Modules, s.catalog.capabilities); err != nil {
		return err
	}
	data := ast.NewObject()
	if len(c.Data) > 0 {
		v, err := fromJSON(c.Data)
		object, ok := v.(ast.Object)
		if err != nil || !ok {
			return fault.Wrap(fault.InvalidPolicy, err, "the data of the policy is not an object that policies can read")
		}
		data = object
	}
	s.store = inmem.NewFromASTObject(data)
	if s.txn, err = s.store.NewTransaction(context.Background()); err != nil {
		return fault.Wrap(fault.Internal, err, "the policy's data cannot be opened")
	}
	s.sources, s.data = maps.Clone(c.Modules), c.Data
	if s.linked = s.link(base); s.linked {
		return nil
	}
	return s.whole()
}

// whole compiles all modules.
func (s *set) whole() error {
	s.compiler = s.newCompiler()
	if s.run(s.compiler, s.modules); s.compiler.Failed() {
		return invalid(s.compiler.Errors, s.modules)
	}
	s.depends, s.indexed = edges{}, map[string]bool{}
	s.depends.add(s.compiler.Graph, s.compiler.Modules)
	for file, m := range s.compiler.Modules {
		if comprehensions(s.compiler, m) {
			s.indexed[file] = true
		}
	}
	return nil
}

// newCompiler makes the compiler for what is evaluated.
func (s *set) newCompiler() *ast.Compiler {
	return s.plainCompiler().WithStageAfterID(ast.StageCheckDeprecatedBuiltins, ast.CompilerStageDefinition{
		Name: "BoundUnification", MetricName: "compile_stage_bound_unification", Stage: boundUnification,
	}).WithEnablePrintStatements(s.print)
}

// run compiles modules, and tests as OPA's runner does.
func (s *set) run(c *ast.Compiler, modules map[string]*ast.Module) {
	if s.tried {
		compileTests(c, modules)
	} else {
		c.Compile(modules)
	}
}

// plainCompiler leaves the rules as their author wrote them.
func (s *set) plainCompiler() *ast.Compiler {
	return ast.NewCompiler().
		WithCapabilities(s.catalog.capabilities).
		WithPathConflictsCheck(storage.NonEmpty(context.Background(), s.store, s.txn)).
		WithStageAfterID(ast.StageCheckRecursion, ast.CompilerStageDefinition{
			Name: "BoundTypes", MetricName: "compile_stage_bound_types", Stage: boundTypes,
		})
}

// entry gives the entry point of that path, "a/b"; the path has been checked.
func (s *set) entry(path string) *entry {
	if e := s.ready[path]; e != nil {
		return e
	}
	return s.remembered(path, func() *entry { return s.prepare(path, answers) })
}

// remembered gives the entry point of that name, and makes it for the first who asks.
func (s *set) remembered(name string, make func() *entry) *entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.named[name]; e != nil {
		return e
	}
	if len(s.named) >= maxNamed {
		clear(s.named)
	}
	e := make()
	s.named[name] = e
	return e
}

// entry is one entry point of a set: the query that asks it, and what it reads.
type entry struct {
	path      string
	defined   bool // something is defined there, or below
	err       error
	query     ast.Body
	compiler  ast.QueryCompiler
	cacheable bool
	responds  bool // it is asked by [Engine.DecideResponse]
	chance    bool // it may ask for what differs from one evaluation to the next at the same time
	projection
}

// answers are the rules of an entry point that are asked.
var answers = []string{"allow", "deny", "filtered"}

const resultVar = ast.Var("result")

func (s *set) prepare(path string, answers []string) *entry {
	e := &entry{path: path, defined: s.defines(path)}
	if !e.defined {
		return e
	}
	var items []string
	for _, name := range answers {
		if name == "allow" || s.mayDefine(path, name) {
			// In a comprehension, what is undefined becomes an empty array.
			items = append(items, fmt.Sprintf("%q: [v | v = %s]", name, reference(path, name)))
		}
	}
	if s.ask(e, items); e.err != nil {
		if len(s.compiler.GetRulesExact(dataRef(path))) > 0 {
			e.err = fault.Wrap(fault.InvalidPolicy, e.err, "it is a rule; name the package that it is in")
		}
		return e
	}
	reads := s.analyse(path, answers)
	e.chance = reads.chance
	e.cacheable = !reads.impure && !reads.input.covers("time")
	e.projection = project(&reads.input)
	return e
}

// ask compiles the query for the items of the answer.
func (s *set) ask(e *entry, items []string) {
	body, err := ast.ParseBody(string(resultVar) + " = {" + strings.Join(items, ", ") + "}")
	if err != nil {
		e.err = fault.Wrap(fault.InvalidPolicy, err, "the entry point %s cannot be asked", e.path)
		return
	}
	e.compiler = s.compiler.QueryCompiler()
	if e.query, err = e.compiler.Compile(body); err != nil {
		e.err = invalid(err, s.modules)
	}
}

func reference(path string, more ...string) string {
	var b strings.Builder
	b.WriteString("data")
	for _, name := range append(strings.Split(path, "/"), more...) {
		fmt.Fprintf(&b, "[%q]", name)
	}
	return b.String()
}

func dataRef(path string, more ...string) ast.Ref {
	ref := ast.Ref{ast.DefaultRootDocument}
	for _, name := range append(strings.Split(path, "/"), more...) {
		ref = append(ref, ast.StringTerm(name))
	}
	return ref
}

// defines says whether anything is at the path or below it: a package, a rule
// or data. Only where there is nothing at all do the roles decide alone.
func (s *set) defines(path string) bool {
	ref := dataRef(path)
	for _, m := range s.modules {
		if m.Package.Path.HasPrefix(ref) {
			return true
		}
	}
	return len(s.compiler.GetRulesDynamicWithOpts(ref, ast.RulesOptions{})) > 0 || s.hasData(path)
}

// mayDefine is false only when the name is certainly undefined there.
func (s *set) mayDefine(path, name string) bool {
	return len(s.compiler.GetRulesDynamicWithOpts(dataRef(path, name), ast.RulesOptions{})) > 0 || s.hasData(path, name)
}

func (s *set) hasData(path string, more ...string) bool {
	_, err := s.store.Read(context.Background(), s.txn, slices.Concat(strings.Split(path, "/"), more))
	return err == nil
}
