package definition

import (
	"maps"
	"slices"
	"strings"
)

// requirement is a security scheme that a caller must satisfy.
type requirement struct {
	Scheme string   `json:"scheme"`
	Scopes []string `json:"scopes"`
}

// securityFacts are an alternative of the security of operations or servers.
type securityFacts struct {
	Requirements []requirement `json:"requirements"` // all of which must be met
	Admin        bool          `json:"admin"`        // of an operation for administrators
}

// schemeFacts are what a definition says of one security scheme. All versions
// of OpenAPI speak of it as version 3 does.
type schemeFacts struct {
	Type         string `json:"type"`
	Scheme       string `json:"scheme"` // of type http, in lower case
	In           string `json:"in"`
	Parameter    string `json:"parameter"`
	BearerFormat string `json:"bearer_format"`
	Description  string `json:"description"`
	Flows        []flow `json:"flows"`
	Used         bool   `json:"used"`
	Places       int    `json:"places"`
}

type flow struct {
	Name    string   `json:"name"` // implicit, password, clientCredentials, authorizationCode
	Refresh bool     `json:"refresh"`
	URLs    []string `json:"urls"`
	Scopes  []string `json:"scopes"` // that are declared
}

// operationFacts are what a definition says of one operation.
type operationFacts struct {
	Method     string              `json:"method"`
	Admin      bool                `json:"admin"`          // a segment of its path says admin
	Asks       bool                `json:"asks"`           // for security, in some alternative of what holds for it in the end
	Secured    bool                `json:"secured"`        // and in each
	Opened     bool                `json:"opened"`         // it has security of its own that asks nothing
	Answers    map[string][]string `json:"answers"`        // names of headers, in lower case, by status
	All        []string            `json:"answer_headers"` // of all answers together
	Headers    []string            `json:"headers"`        // of requests, in lower case
	Tags       []string            `json:"tags"`
	Extensions []string            `json:"extensions"`
	Claimed    []string            `json:"claimed"` // by these other published versions
}

type parameterFacts struct {
	Name   string   `json:"name"`
	Words  []string `json:"words"` // of the name, in lower case
	In     string   `json:"in"`
	Types  []string `json:"types"`
	Format string   `json:"format"`
}

func (z *normaliser) openapi() {
	t := z.tree
	z.securitySchemes()
	z.hosts(0)
	common := [][]requirement{}
	if v, ok := t.member(0, "security"); ok {
		common = z.security(v)
	}
	base := strings.TrimSuffix(z.label(0, "basePath"), "/")
	z.each(0, "paths", func(c uint32) {
		if path := t.key(c); strings.HasPrefix(path, "/") {
			z.pathItem(c, base+path, common)
			if item := z.follow(c); item != c {
				z.pathItem(item, base+path, common)
			}
		}
	})
	z.each(0, "webhooks", func(c uint32) { z.incoming(z.follow(c)) })
	z.components()
	for _, a := range common {
		z.used(a)
	}
}

// components marks what is defined for use by others, used or not.
func (z *normaliser) components() {
	holder := uint32(0)
	if c, ok := z.tree.member(0, "components"); ok {
		holder = c
	}
	z.each(holder, "parameters", func(c uint32) { z.parameter(c) })
	z.each(holder, "requestBodies", func(c uint32) { z.content(z.follow(c), asRequest) })
	z.each(holder, "responses", func(c uint32) { z.answer(c, asAnswer) })
	z.each(holder, "headers", func(c uint32) { z.content(z.follow(c), asAnswer) })
	z.each(holder, "callbacks", func(c uint32) { z.callback(c) })
	z.each(holder, "pathItems", func(c uint32) { z.incoming(z.follow(c)) })
	z.each(holder, "links", func(c uint32) { z.link(c) })
	for _, name := range []string{"schemas", "definitions"} {
		z.each(holder, name, func(c uint32) { z.schema(c, 0) })
	}
	z.each(holder, "examples", func(c uint32) {
		if v, ok := z.tree.member(c, "externalValue"); ok {
			z.outside(v, z.tree.text(v))
		}
	})
}

// pathItem lists the operations of a path.
func (z *normaliser) pathItem(item uint32, path string, common [][]requirement) {
	t := z.tree
	if z.seen[item]&asEntry != 0 {
		return
	}
	z.seen[item] |= asEntry
	z.hosts(item)
	headers := z.parameterHeaders(item)
	for _, verb := range verbs {
		op, ok := t.member(item, verb)
		if !ok || t.nodes[op].kind != '{' {
			continue
		}
		z.seen[op] |= asEntry
		z.hosts(op)
		f := operationFacts{Method: strings.ToUpper(verb), Admin: admin(path), Tags: []string{}, Extensions: z.extensions(op), Claimed: []string{}}
		f.Headers = slices.Concat(headers, z.parameterHeaders(op))
		slices.Sort(f.Headers)
		f.Headers = slices.Compact(f.Headers)
		own, hasOwn := t.member(op, "security")
		alternatives := common
		if hasOwn {
			alternatives = z.security(own)
		}
		f.Asks, f.Secured = z.asks(alternatives, f.Admin, op)
		f.Opened = hasOwn && !f.Secured
		if tags, ok := t.member(op, "tags"); ok {
			f.Tags = z.texts(tags)
		}
		f.Answers = z.answers(op, asAnswer)
		f.All = slices.Sorted(maps.Keys(union(f.Answers)))
		if body, ok := t.member(op, "requestBody"); ok {
			z.content(z.follow(body), asRequest)
		}
		z.each(op, "callbacks", func(c uint32) { z.callback(c) })
		if l := z.claims[Route{Method: f.Method, Path: path}.anonymous()]; l != nil {
			f.Claimed = l
		}
		z.add(&z.operations, f, op)
	}
}

func union(lists map[string][]string) map[string]bool {
	out := map[string]bool{}
	for _, l := range lists {
		for _, s := range l {
			out[s] = true
		}
	}
	return out
}

// admin says whether a path is one for administrators.
func admin(path string) bool {
	for segment := range strings.SplitSeq(path, "/") {
		if strings.HasPrefix(segment, "{") || !strings.Contains(strings.ToLower(segment), "admin") {
			continue
		}
		for _, w := range words(segment) {
			switch w {
			case "admin", "admins", "administration", "administrator", "administrators":
				return true
			}
		}
	}
	return false
}

// asks lists the alternatives of the security of an operation or a server, and
// says whether any and all of them ask for something.
func (z *normaliser) asks(alternatives [][]requirement, admin bool, at uint32) (some, all bool) {
	for _, a := range alternatives {
		if some = some || len(a) > 0; len(a) > 0 {
			z.add(&z.alternatives, securityFacts{a, admin}, at)
			z.used(a)
		}
	}
	return some, secured(alternatives)
}

func secured(alternatives [][]requirement) bool {
	return len(alternatives) > 0 && !slices.ContainsFunc(alternatives, func(a []requirement) bool { return len(a) == 0 })
}

// security gives the alternatives of a security member.
func (z *normaliser) security(n uint32) [][]requirement {
	out := [][]requirement{}
	z.children(n, func(alternative uint32) {
		if z.listed(len(out)) {
			out = append(out, z.requirements(alternative))
		}
	})
	return out
}

// requirements gives the schemes that one alternative asks for together.
func (z *normaliser) requirements(alternative uint32) []requirement {
	all := []requirement{}
	z.children(alternative, func(c uint32) {
		if z.listed(len(all)) {
			all = append(all, requirement{clip(z.tree.key(c)), z.texts(c)})
		}
	})
	return all
}

// parameterHeaders looks at the parameters of an operation or a path and gives the
// names of those that are headers.
func (z *normaliser) parameterHeaders(holder uint32) (headers []string) {
	z.each(holder, "parameters", func(c uint32) {
		if f := z.parameter(c); f != nil && f.In == "header" && z.listed(len(headers)) {
			headers = append(headers, strings.ToLower(f.Name))
		}
	})
	return headers
}

// parameter lists a parameter once, where it is defined.
func (z *normaliser) parameter(c uint32) *parameterFacts {
	t := z.tree
	p := z.follow(c)
	if t.nodes[p].kind != '{' {
		return nil
	}
	f := &parameterFacts{Name: clip(z.label(p, "name")), In: z.label(p, "in")}
	if z.seen[p]&asDeclared != 0 {
		return f
	}
	z.seen[p] |= asDeclared
	typed := p
	if s, ok := t.member(p, "schema"); ok {
		typed = z.follow(s)
		z.schema(s, asRequest)
	} else if z.has(p, "type") {
		z.schema(p, asRequest)
	}
	z.content(p, asRequest)
	f.Words, f.Types, f.Format = words(f.Name), z.types(typed), clip(z.label(typed, "format"))
	if f.In != "body" {
		full := *f
		z.add(&z.parameters, &full, p)
	}
	return f
}

// content marks the schemas of a body, an answer, a header or a parameter.
func (z *normaliser) content(n uint32, as uint8) {
	if s, ok := z.tree.member(n, "schema"); ok {
		z.schema(s, as)
	}
	z.each(n, "content", func(media uint32) {
		if s, ok := z.tree.member(media, "schema"); ok {
			z.schema(s, as)
		}
	})
}

// answers gives the headers of an operation's answers by status, and marks
// their schemas.
func (z *normaliser) answers(op uint32, as uint8) map[string][]string {
	out := map[string][]string{}
	z.each(op, "responses", func(c uint32) {
		if status := strings.ToUpper(z.tree.key(c)); !strings.HasPrefix(status, "X-") {
			out[clip(status)] = z.answer(c, as)
		}
	})
	return out
}

func (z *normaliser) answer(c uint32, as uint8) []string {
	r := z.follow(c)
	z.content(r, as)
	headers := []string{}
	z.each(r, "headers", func(h uint32) {
		if !z.listed(len(headers)) {
			return
		}
		headers = append(headers, strings.ToLower(clip(z.tree.key(h))))
		z.content(z.follow(h), as)
	})
	z.each(r, "links", func(l uint32) { z.link(l) })
	slices.Sort(headers)
	return slices.Compact(headers)
}

// callback looks at calls that the API makes.
func (z *normaliser) callback(c uint32) {
	callback := z.follow(c)
	if z.seen[callback]&asEntry != 0 {
		return
	}
	z.seen[callback] |= asEntry
	z.children(callback, func(item uint32) {
		if to := z.tree.key(item); !strings.HasPrefix(to, "x-") {
			z.add(&z.callbacks, struct {
				URL string `json:"url"`
			}{clip(to)}, item)
			z.incoming(z.follow(item))
		}
	})
}

// incoming marks the schemas of calls that go the other way: what is asked
// goes out, what is answered comes in.
func (z *normaliser) incoming(item uint32) {
	if z.tree.nodes[item].kind != '{' {
		return
	}
	for _, verb := range verbs {
		op, ok := z.tree.member(item, verb)
		if !ok || z.seen[op]&asEntry != 0 {
			continue
		}
		z.seen[op] |= asEntry
		if body, ok := z.tree.member(op, "requestBody"); ok {
			z.content(z.follow(body), asAnswer)
		}
		z.answers(op, asRequest)
		if v, ok := z.tree.member(op, "security"); ok {
			for _, a := range z.security(v) {
				z.used(a)
			}
		}
	}
}

func (z *normaliser) link(c uint32) {
	l := z.follow(c)
	if z.seen[l]&asEntry != 0 {
		return
	}
	z.seen[l] |= asEntry
	if r, ok := z.tree.member(l, "operationRef"); ok && !strings.HasPrefix(z.tree.text(r), "#") {
		z.outside(r, z.tree.text(r))
	}
	if s, ok := z.tree.member(l, "server"); ok {
		z.add(&z.links, z.server(s), s)
	}
}
