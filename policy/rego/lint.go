package rego

import (
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/muster-registry/muster/policy"
)

// remark is what lint has to say of one module, whatever the others are.
type remark struct {
	verified []string // tokens whose signature something here verifies
	decoded  []decoded
	found    []policy.Finding
}

// decoded is a call of io.jwt.decode, which is a mistake where no module
// verifies the token.
type decoded struct {
	token   string
	finding policy.Finding
}

// remarks are those of modules as they were parsed. They are read-only.
type remarks map[*ast.Module]*remark

// lint looks at the modules as they are written, whether they compile or not.
// What is known of a module is not looked for again.
func lint(modules map[string]*ast.Module, known remarks) (found []policy.Finding, all remarks) {
	all = make(remarks, len(modules))
	verified := map[string]bool{}
	for _, m := range modules {
		r := known[m]
		if r == nil {
			r = remarkOn(m)
		}
		all[m] = r
		for _, token := range r.verified {
			verified[token] = true
		}
	}
	for _, r := range all {
		found = append(found, r.found...)
		for _, d := range r.decoded {
			if !verified[d.token] {
				found = append(found, d.finding)
			}
		}
	}
	return found, all
}

func remarkOn(m *ast.Module) *remark {
	r, names := &remark{}, namesOf(m)
	for _, rule := range m.Rules {
		l := names.in(rule)
		for _, c := range l.calls {
			r.call(l, c)
		}
		r.found = append(r.found, l.decodeOrder()...)
		r.found = append(r.found, l.negations(l.rule)...)
	}
	return r
}

func (r *remark) call(l *local, c call) {
	if strings.HasPrefix(c.name, "io.jwt.verify_") || c.name == "io.jwt.decode_verify" {
		r.verified = append(r.verified, l.key(c.args))
	}
	b := ast.BuiltinMap[c.name]
	switch {
	case b == nil:
		return
	case b.IsDeprecated():
		r.found = append(r.found, deprecated(c.name, c.at))
	case c.name == ast.JWTDecode.Name:
		r.decoded = append(r.decoded, decoded{l.key(c.args), finding(ruleUnverified, c.at, "io.jwt.decode does not verify the token, and nothing else does")})
	}
	if strings.HasPrefix(c.name, "io.jwt.") && len(c.args) > 0 && isAuthorization(l.resolve(c.args[0])) {
		r.found = append(r.found, finding(ruleBearer, c.at, "%s is given the whole authorization header", c.name))
	}
	if comparisons[c.name] && len(c.args) >= 2 {
		r.found = append(r.found, l.comparison(c)...)
	}
}

var comparisons = map[string]bool{
	ast.Equality.Name: true, ast.Equal.Name: true, ast.NotEqual.Name: true,
	ast.LessThan.Name: true, ast.LessThanEq.Name: true, ast.GreaterThan.Name: true, ast.GreaterThanEq.Name: true,
}

// comparison looks at two things that are compared.
func (l *local) comparison(c call) (found []policy.Finding) {
	for _, pair := range [][2]*ast.Term{{c.args[0], c.args[1]}, {c.args[1], c.args[0]}} {
		if l.seconds(pair[0]) && l.nanoseconds(pair[1]) {
			found = append(found, finding(ruleNanoseconds, c.at, "%s counts seconds and is compared with nanoseconds", pair[0]))
		}
		if isAuthorization(l.resolve(pair[0])) && withoutScheme(l.resolve(pair[1])) {
			found = append(found, finding(ruleBearer, c.at, "the whole authorization header is compared with what has no scheme before it"))
		}
	}
	return found
}

// withoutScheme says whether the header cannot be equal to this, or only to
// what a client is not meant to send.
func withoutScheme(t *ast.Term) bool {
	switch v := t.Value.(type) {
	case ast.String:
		return !strings.Contains(string(v), " ")
	case ast.Ref:
		return v[0].Equal(ast.DefaultRootDocument) || isToken(v)
	}
	return false
}

func isToken(ref ast.Ref) bool {
	return len(ref) == 2 && ref[0].Equal(ast.InputRootDocument) && ref[1].Equal(ast.StringTerm("token"))
}

func isAuthorization(t *ast.Term) bool {
	ref, ok := t.Value.(ast.Ref)
	if !ok || !ref[0].Equal(ast.InputRootDocument) {
		return false
	}
	name, ok := ref[len(ref)-1].Value.(ast.String)
	return ok && strings.EqualFold(string(name), "authorization")
}

// seconds says whether the term is one of a token's times, as it stands there.
func (l *local) seconds(t *ast.Term) bool {
	switch v := l.resolve(t).Value.(type) {
	case ast.Var:
		return times[string(v)]
	case ast.Ref:
		name, ok := v[len(v)-1].Value.(ast.String)
		return ok && times[string(name)]
	case ast.Call:
		return sums[v[0].String()] && (l.seconds(v[1]) || l.seconds(v[2]))
	}
	return false
}

// nanoseconds says whether the term is a time in nanoseconds.
func (l *local) nanoseconds(t *ast.Term) bool {
	v, ok := l.resolve(t).Value.(ast.Call)
	if !ok {
		return false
	}
	name := v[0].String()
	return clocksNS[name] || sums[name] && (l.nanoseconds(v[1]) || l.nanoseconds(v[2]))
}

var (
	times    = map[string]bool{"exp": true, "iat": true, "nbf": true, "auth_time": true}
	sums     = map[string]bool{ast.Plus.Name: true, ast.Minus.Name: true}
	clocksNS = map[string]bool{ast.NowNanos.Name: true, ast.ParseNanos.Name: true, ast.ParseRFC3339Nanos.Name: true, ast.AddDate.Name: true}
)

// decodeOrder finds the values of io.jwt.decode used in the order of those of
// io.jwt.decode_verify.
func (l *local) decodeOrder() (found []policy.Finding) {
	for _, c := range l.calls {
		if !assigns[c.name] || len(c.args) != 2 {
			continue
		}
		decode, ok := c.args[1].Value.(ast.Call)
		if !ok || decode[0].String() != ast.JWTDecode.Name {
			continue
		}
		first, third := "", ""
		switch v := c.args[0].Value.(type) {
		case *ast.Array:
			if v.Len() != 3 {
				continue
			}
			first, third = v.Elem(0).String(), v.Elem(2).String()
		case ast.Var:
			first, third = string(v)+"[0]", string(v)+"[2]"
		}
		if l.verdicts[first] || verdictNames[first] {
			found = append(found, finding(ruleDecodeOrder, c.at, "%s is the header of the token, not whether it is valid", first))
		}
		if l.opened[third] {
			found = append(found, finding(ruleDecodeOrder, c.at, "%s is the signature of the token, a string without fields", third))
		}
	}
	return found
}

var (
	assigns      = map[string]bool{ast.Assign.Name: true, ast.Equality.Name: true}
	verdictNames = map[string]bool{"valid": true, "is_valid": true, "verified": true, "ok": true}
)

// forbiddenCalls finds the built-ins that modules may not call, also where one
// stands as a value or is replaced by one.
func forbiddenCalls(modules map[string]*ast.Module) (found []policy.Finding) {
	for _, m := range modules {
		names := namesOf(m)
		add := func(t *ast.Term, head ast.Var, name string) {
			if _, own := names.imports[head]; !own && forbidden(name) && t.Location != nil {
				found = append(found, finding(ruleForbidden, t.Location, "%s is not available to policies", name))
			}
		}
		ast.WalkTerms(m, func(t *ast.Term) bool {
			switch v := t.Value.(type) {
			case ast.Ref:
				if head, ok := v[0].Value.(ast.Var); ok {
					add(t, head, v.String())
				}
			case ast.Var:
				add(t, v, string(v))
			}
			return false
		})
	}
	return found
}
