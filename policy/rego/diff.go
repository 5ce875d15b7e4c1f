package rego

import (
	"maps"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/muster-registry/muster/policy"
)

// Diff compares two contents, by rule. Nothing is compiled: a module that this
// engine cannot read counts as changed and has no rules.
func (e *Engine) Diff(from, to *policy.Content) *policy.Diff {
	d := policy.NewDiff(from, to)
	before, after := e.rules(from.Modules), e.rules(to.Modules)
	keys := slices.Collect(maps.Keys(before))
	for key := range after {
		if _, both := before[key]; !both {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, ruleKey.compare)
	for _, key := range keys {
		was, is := before[key], after[key]
		c := policy.RuleChange{Package: key.pkg, Rule: key.name}
		switch {
		case was == nil:
			c.Change, c.After = policy.Added, is.source()
		case is == nil:
			c.Change, c.Before = policy.Removed, was.source()
		case was.meaning() != is.meaning():
			c.Change, c.Before, c.After = policy.Changed, was.source(), is.source()
		default:
			continue
		}
		if key.test {
			d.Tests = append(d.Tests, c)
		} else {
			d.Rules = append(d.Rules, c)
		}
	}
	return d
}

type ruleKey struct {
	pkg, name string
	test      bool
}

func (k ruleKey) compare(o ruleKey) int {
	return strings.Compare(k.pkg+"\x00"+k.name, o.pkg+"\x00"+o.name)
}

// definitions are all parts of one rule.
type definitions struct {
	imports  []string // that a part of it uses
	meanings []string // of its parts, as the parser understood them
	texts    []string // of its parts, as written
}

func (d *definitions) source() string {
	text := strings.Join(d.texts, "\n\n")
	if len(d.imports) == 0 {
		return text
	}
	return strings.Join(d.imports, "\n") + "\n\n" + text
}

// meaning is the same for two rules of which neither order nor looks matter.
func (d *definitions) meaning() string {
	return strings.Join(slices.Sorted(slices.Values(d.meanings)), "\n")
}

// rules reads the modules and gathers the rules by package and name.
func (e *Engine) rules(sources map[string]string) map[ruleKey]*definitions {
	all := map[ruleKey]*definitions{}
	for _, file := range slices.Sorted(maps.Keys(sources)) {
		module, errs := parseModule(file, sources[file], e.catalog.capabilities)
		if len(errs) > 0 {
			continue
		}
		pkg := strings.TrimPrefix(module.Package.Path.String(), "data.")
		for _, rule := range module.Rules {
			key := ruleKey{pkg: pkg, name: rule.Head.Ref().GroundPrefix().String(), test: strings.HasSuffix(file, testSuffix)}
			if all[key] == nil {
				all[key] = &definitions{}
			}
			all[key].add(module, rule)
		}
	}
	return all
}

func (d *definitions) add(m *ast.Module, rule *ast.Rule) {
	used := imports(m, rule)
	for _, i := range used {
		if !slices.Contains(d.imports, i) {
			d.imports = append(d.imports, i)
		}
	}
	d.meanings = append(d.meanings, strings.Join(append(used, rule.String()), "\n"))
	text := rule.String()
	if !rule.Default && rule.Location != nil && len(rule.Location.Text) > 0 {
		text = string(rule.Location.Text)
	}
	d.texts = append(d.texts, text)
}

// imports lists the imports of a module by whose name a rule reaches what it
// means: without them, the same rule means something else.
func imports(m *ast.Module, rule *ast.Rule) (used []string) {
	names := map[ast.Var]bool{}
	ast.WalkVars(rule, func(v ast.Var) bool {
		names[v] = true
		return false
	})
	for _, i := range m.Imports {
		if path := i.Path.String(); names[i.Name()] && path != "rego.v1" && !strings.HasPrefix(path, "future.keywords") {
			used = append(used, i.String())
		}
	}
	slices.Sort(used)
	return used
}
