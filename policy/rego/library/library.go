// Package library owns the built-in rules about API definitions: Rego modules
// that are part of the program, and their evaluation. It has no opinion in Go:
// what is found, how severe it is and what is left out is said by the modules
// beside this file, and by the data of the active policy revision. It refuses
// to call a definition clean that it could not judge.
package library

import (
	"cmp"
	"context"
	"embed"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/topdown"

	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry/definition"
)

//go:embed *.rego
var files embed.FS

// Modules gives the source of the rules by file name.
func Modules() (map[string]string, error) {
	entries, err := files.ReadDir(".")
	if err != nil {
		return nil, err
	}
	out := make(map[string]string, len(entries))
	for _, e := range entries {
		b, err := files.ReadFile(e.Name())
		if err != nil {
			return nil, err
		}
		out[e.Name()] = string(b)
	}
	return out, nil
}

// Options configure a library. The zero value is usable.
type Options struct {
	// Limit is how long all rules may take over one definition; 0 means 2 s.
	Limit time.Duration
	// Entries is how many different things a definition may consist of; 0
	// means 50 000.
	Entries int
	// Reviews is how many definitions are judged at once; 0 means 2.
	Reviews int
	// Logger is told why a definition was not judged; nil: slog.Default().
	Logger *slog.Logger
}

// Library judges definitions. It is safe for concurrent use.
type Library struct {
	options  Options
	compiler *ast.Compiler
	query    ast.Body
	asker    ast.QueryCompiler
	rules    []definition.Rule
	slots    chan struct{}

	mu     sync.Mutex // guards the two below
	digest string     // of the policy revision whose settings are kept
	data   ast.Object
}

// New compiles the rules.
func New(o Options) (*Library, error) {
	o.Limit, o.Entries = cmp.Or(o.Limit, 2*time.Second), cmp.Or(o.Entries, 50_000)
	l := &Library{options: o, slots: make(chan struct{}, cmp.Or(o.Reviews, 2))}
	if o.Logger == nil {
		l.options.Logger = slog.Default()
	}
	sources, err := Modules()
	if err != nil {
		return nil, err
	}
	modules := map[string]*ast.Module{}
	for name, source := range sources {
		m, err := ast.ParseModuleWithOpts(name, source, ast.ParserOptions{RegoVersion: ast.RegoV1, ProcessAnnotation: true})
		if err != nil {
			return nil, err
		}
		modules[name] = m
		if l.rules, err = appendRules(l.rules, m); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(l.rules, func(a, b definition.Rule) int {
		return cmp.Or(cmp.Compare(len(a.OWASP), len(b.OWASP)), strings.Compare(a.OWASP, b.OWASP), strings.Compare(a.ID, b.ID))
	})
	l.compiler = ast.NewCompiler()
	if l.compiler.Compile(modules); l.compiler.Failed() {
		return nil, l.compiler.Errors
	}
	l.asker = l.compiler.QueryCompiler()
	l.query, err = l.asker.Compile(ast.MustParseBody("findings = data.muster.review.findings; except = data.muster.review.except"))
	return l, err
}

// appendRules reads the annotations of a module's rules.
func appendRules(rules []definition.Rule, m *ast.Module) ([]definition.Rule, error) {
	for _, a := range m.Annotations {
		if a.Scope != "rule" || a.Custom["id"] == nil {
			continue
		}
		custom, err := json.Marshal(a.Custom)
		if err != nil {
			return nil, err
		}
		r := definition.Rule{Title: a.Title, Description: a.Description, Package: strings.TrimPrefix(m.Package.Path.String(), "data.")}
		if err := json.Unmarshal(custom, &r); err != nil {
			return nil, err
		}
		rules = append(rules, r)
	}
	return rules, nil
}

// Rules lists the rules by OWASP reference and id.
func (l *Library) Rules() []definition.Rule { return slices.Clone(l.rules) }

// Review judges a definition under the settings in the data of a policy
// revision, which may be nil. A definition that cannot be judged gets one
// finding, not-checked, that says why; nothing is counted then. c is what the
// registry knows about the version, nil for a document on its own.
func (l *Library) Review(ctx context.Context, rev *policy.Revision, format string, document []byte, c *definition.Context) *definition.Review {
	select {
	case l.slots <- struct{}{}:
		defer func() { <-l.slots }()
	case <-ctx.Done():
		return definition.Unchecked("high", "the definition was not checked in time, because others were; put it again")
	}
	normal, err := definition.Normalise(format, document, c)
	if err != nil {
		return definition.Unchecked("high", "the definition was not checked: "+err.Error())
	}
	if normal == nil {
		return definition.Unchecked("info", "definitions of format "+format+" are stored as they are; only their size and form are checked")
	}
	if normal.Partial || normal.Entries > l.options.Entries {
		return definition.Unchecked("high", fmt.Sprintf("the definition was not checked: it consists of more than %d different parts, or its references multiply; split it", l.options.Entries))
	}
	judgements, err := l.judge(ctx, normal, l.settings(rev))
	if err != nil {
		l.options.Logger.Error("a definition was not checked", "format", format, "bytes", len(document), "entries", normal.Entries, "error", err)
		return definition.Unchecked("high", "the definition was not checked: "+err.Error())
	}
	return normal.Review(judgements)
}

// settings gives data.muster.definition of a revision as the rules see it.
func (l *Library) settings(rev *policy.Revision) ast.Object {
	if rev == nil || len(rev.Content.Data) == 0 {
		return ast.NewObject()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.data != nil && l.digest == rev.Digest {
		return l.data
	}
	var data struct {
		Muster jsontext.Value `json:"muster"`
	}
	var muster struct {
		Definition jsontext.Value `json:"definition"`
	}
	l.digest, l.data = rev.Digest, ast.NewObject()
	if json.Unmarshal(rev.Content.Data, &data) != nil || json.Unmarshal(data.Muster, &muster) != nil || len(muster.Definition) == 0 {
		return l.data
	}
	if v, err := ast.ValueFromReader(strings.NewReader(`{"muster":{"definition":` + string(muster.Definition) + `}}`)); err == nil {
		if o, ok := v.(ast.Object); ok {
			l.data = o
		}
	}
	return l.data
}

// judge evaluates the rules over a normal form.
func (l *Library) judge(ctx context.Context, n *definition.Normal, data ast.Object) (out []definition.Judgement, err error) {
	defer func() {
		if p := recover(); p != nil {
			out, err = nil, fmt.Errorf("the rules failed: %v", p)
		}
	}()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	input, err := ast.ValueFromReader(strings.NewReader(string(n.JSON)))
	if err != nil {
		return nil, err
	}
	store := inmem.NewFromASTObject(data)
	txn, err := store.NewTransaction(ctx)
	if err != nil {
		return nil, err
	}
	defer store.Abort(ctx, txn)
	began := time.Now()
	cancel := topdown.NewCancel()
	timer := time.AfterFunc(l.options.Limit, cancel.Cancel)
	defer timer.Stop()
	defer context.AfterFunc(ctx, cancel.Cancel)()
	query := topdown.NewQuery(l.query).
		WithQueryCompiler(l.asker).WithCompiler(l.compiler).
		WithStore(store).WithTransaction(txn).
		WithStrictBuiltinErrors(true).
		WithCancel(cancel).
		WithInput(ast.NewTerm(input))
	var result, except *ast.Term
	err = query.Iter(ctx, func(r topdown.QueryResult) error {
		result, except = r[ast.Var("findings")], r[ast.Var("except")]
		return nil
	})
	switch {
	case topdown.IsCancel(err) || time.Since(began) > l.options.Limit:
		return nil, fmt.Errorf("the rules took longer than %v", l.options.Limit)
	case err != nil:
		return nil, err
	case result == nil:
		return nil, fmt.Errorf("the rules gave no answer")
	}
	return judgements(result, except)
}

// judgements reads the answer of the rules: what they found, and the exceptions
// by rule.
func judgements(result, except *ast.Term) ([]definition.Judgement, error) {
	set, ok := result.Value.(ast.Set)
	if !ok {
		return nil, fmt.Errorf("the rules gave %s, not a set", ast.ValueName(result.Value))
	}
	exceptions := map[string][]string{}
	out := make([]definition.Judgement, 0, set.Len())
	err := set.Iter(func(t *ast.Term) error {
		j := definition.Judgement{Rule: text(t, "rule"), Severity: text(t, "severity"), Message: text(t, "message")}
		places, ok := t.Get(ast.InternedTerm("places")).Value.(ast.Number)
		if !ok {
			return fmt.Errorf("the rule %s names no places", j.Rule)
		}
		if j.Places, ok = places.Int(); !ok || j.Rule == "" || !slices.Contains(definition.Severities, j.Severity) {
			return fmt.Errorf("the rule %q gave what is no finding", j.Rule)
		}
		if j.Except, ok = exceptions[j.Rule]; !ok {
			j.Except = texts(except.Get(ast.StringTerm(j.Rule)))
			exceptions[j.Rule] = j.Except
		}
		out = append(out, j)
		return nil
	})
	return out, err
}

// texts gives the strings of a set.
func texts(t *ast.Term) (out []string) {
	if t == nil {
		return nil
	}
	if set, ok := t.Value.(ast.Set); ok {
		set.Foreach(func(e *ast.Term) {
			if s, ok := e.Value.(ast.String); ok {
				out = append(out, string(s))
			}
		})
	}
	return out
}

func text(t *ast.Term, name string) string {
	if v := t.Get(ast.InternedTerm(name)); v != nil {
		if s, ok := v.Value.(ast.String); ok {
			return string(s)
		}
	}
	return ""
}
