package definition

import (
	"slices"
	"strings"
)

// securitySchemes lists the schemes of a definition by name.
func (z *normaliser) securitySchemes() {
	z.schemes = map[string]*schemeFacts{}
	holder := uint32(0)
	if c, ok := z.tree.member(0, "components"); ok {
		holder = c
	}
	z.each(holder, "securitySchemes", func(c uint32) { z.schemes[clip(z.tree.key(c))] = z.scheme(c) })
	z.each(0, "securityDefinitions", func(c uint32) { z.schemes[clip(z.tree.key(c))] = z.scheme2(c) })
}

func (z *normaliser) scheme(c uint32) *schemeFacts {
	n := z.follow(c)
	f := &schemeFacts{Type: z.label(n, "type"), Scheme: strings.ToLower(clip(z.label(n, "scheme"))), In: z.label(n, "in"), Parameter: clip(z.label(n, "name")),
		BearerFormat: clip(z.label(n, "bearerFormat")), Description: z.prose(n), Flows: []flow{}, Places: z.place(n)}
	z.each(n, "flows", func(c uint32) {
		if !strings.HasPrefix(z.tree.key(c), "x-") {
			f.Flows = append(f.Flows, z.flow(c, clip(z.tree.key(c))))
		}
	})
	return f
}

// scheme2 is scheme for Swagger, in the words of OpenAPI 3.
func (z *normaliser) scheme2(n uint32) *schemeFacts {
	f := &schemeFacts{Type: z.label(n, "type"), In: z.label(n, "in"), Parameter: clip(z.label(n, "name")), Description: z.prose(n), Flows: []flow{}, Places: z.place(n)}
	switch f.Type {
	case "basic":
		f.Type, f.Scheme = "http", "basic"
	case "oauth2":
		name := z.label(n, "flow")
		switch name {
		case "accessCode":
			name = "authorizationCode"
		case "application":
			name = "clientCredentials"
		}
		f.Flows = append(f.Flows, z.flow(n, clip(name)))
	}
	return f
}

// prose is a description, of which rules read the beginning only.
func (z *normaliser) prose(n uint32) string {
	s := z.label(n, "description")
	const most = 2000
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "")
	}
	return s
}

func (z *normaliser) flow(n uint32, name string) flow {
	f := flow{Name: name, Refresh: z.has(n, "refreshUrl"), URLs: []string{}, Scopes: []string{}}
	for _, name := range []string{"authorizationUrl", "tokenUrl", "refreshUrl"} {
		if u := z.label(n, name); u != "" {
			f.URLs = append(f.URLs, clip(u))
		}
	}
	for _, name := range []string{"scopes", "availableScopes"} {
		if v, ok := z.tree.member(n, name); ok && z.tree.nodes[v].kind == '{' {
			z.children(v, func(c uint32) { f.Scopes = append(f.Scopes, clip(z.tree.key(c))) })
		}
	}
	slices.Sort(f.Scopes)
	return f
}

// used marks schemes that are asked for.
func (z *normaliser) used(all []requirement) {
	for _, r := range all {
		if s := z.schemes[r.Scheme]; s != nil {
			s.Used = true
		}
	}
}
