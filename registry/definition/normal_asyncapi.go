package definition

import (
	"maps"
	"slices"
	"strings"
)

func (z *normaliser) asyncapi() {
	t := z.tree
	z.securitySchemes()
	secure := map[string]bool{} // of servers, by name
	z.each(0, "servers", func(c uint32) {
		f := z.asyncapiServer(c)
		secure[f.Name] = f.Secured
		z.add(&z.servers, f, z.follow(c))
	})
	z.each(0, "channels", func(c uint32) { z.channel(c, secure) })
	z.each(0, "operations", func(c uint32) { z.operation(c, secure) })
	components, ok := t.member(0, "components")
	if !ok {
		return
	}
	for _, name := range []string{"channels", "messages", "schemas"} {
		z.each(components, name, func(c uint32) {
			switch name {
			case "channels":
				z.each(z.follow(c), "messages", func(m uint32) { z.message(m, 0) })
			case "messages":
				z.message(c, 0)
			default:
				z.multiFormat(c)
			}
		})
	}
}

// asyncapiServer is server for AsyncAPI, whose version 3 has host and pathname
// in place of a URL.
func (z *normaliser) asyncapiServer(c uint32) serverFacts {
	n := z.follow(c)
	protocol := strings.ToLower(clip(z.label(n, "protocol")))
	f := serverFacts{Name: clip(z.tree.key(c)), URL: clip(z.label(n, "url")), Description: clip(z.label(n, "description")),
		Extensions: z.extensions(n), Access: z.has(n, "x-internal")}
	if host := z.label(n, "host"); host != "" {
		f.URL = clip(protocol + "://" + host + z.label(n, "pathname"))
	}
	z.variables(n, &f.URL)
	if !strings.Contains(f.URL, "://") {
		f.URL = protocol + "://" + f.URL
	}
	if v, ok := z.tree.member(n, "security"); ok {
		alternatives := z.asyncapiSecurity(v)
		_, f.Secured = z.asks(alternatives, false, n)
		for _, a := range alternatives {
			for _, r := range a {
				f.Schemes = append(f.Schemes, r.Scheme)
			}
		}
	}
	f = z.serverAt(f)
	f.Protocols = []string{protocol}
	return f
}

// asyncapiSecurity is security for AsyncAPI, whose version 3 has a list of
// schemes, mostly by reference, in place of names.
func (z *normaliser) asyncapiSecurity(n uint32) [][]requirement {
	out := [][]requirement{}
	z.children(n, func(c uint32) {
		switch scheme := z.follow(c); {
		case !z.listed(len(out)):
		case z.has(scheme, "type"):
			r := requirement{Scheme: z.schemeAt(scheme), Scopes: []string{}}
			if v, ok := z.tree.member(scheme, "scopes"); ok {
				r.Scopes = z.texts(v)
			}
			out = append(out, []requirement{r})
		default:
			out = append(out, z.requirements(c))
		}
	})
	return out
}

// schemeAt gives the name of the scheme defined at n. One that is written
// where it is needed gets the pointer to it for a name.
func (z *normaliser) schemeAt(n uint32) string {
	if !z.spend(len(z.schemes)) {
		return ""
	}
	for name, s := range z.schemes {
		if z.places[s.Places][0] == n {
			return name
		}
	}
	if !z.spend(len(z.tree.nodes) / 8) {
		return ""
	}
	name := pointers(z.tree, []uint32{n})[n]
	z.schemes[name] = z.scheme(n)
	return name
}

// channel lists the operations that version 2 has in channels, and looks at
// the messages that version 3 has there.
func (z *normaliser) channel(c uint32, secure map[string]bool) {
	t := z.tree
	channel := z.follow(c)
	z.each(channel, "parameters", func(p uint32) {
		if s, ok := t.member(z.follow(p), "schema"); ok {
			z.schema(s, asRequest)
		}
	})
	for _, action := range []string{"publish", "subscribe"} {
		op, ok := t.member(channel, action)
		if !ok {
			continue
		}
		as := asAnswer
		if action == "publish" {
			as = asRequest
		}
		if m, ok := t.member(op, "message"); ok {
			z.message(m, as)
		}
		z.asyncapiOperation(op, op, action, z.serversOf(channel), secure)
	}
	z.each(channel, "messages", func(m uint32) { z.message(m, 0) })
}

// serversOf lists the names of the servers of a channel; none means all.
func (z *normaliser) serversOf(channel uint32) []string {
	v, ok := z.tree.member(channel, "servers")
	if !ok {
		return nil
	}
	names := z.texts(v)
	z.children(v, func(c uint32) {
		if ref := z.label(c, "$ref"); ref != "" {
			names = append(names, ref[strings.LastIndexByte(ref, '/')+1:])
		}
	})
	return names
}

// operation lists an operation of version 3.
func (z *normaliser) operation(c uint32, secure map[string]bool) {
	t := z.tree
	op := z.follow(c)
	action := z.label(op, "action")
	as := asAnswer
	if action == "receive" {
		as = asRequest
	}
	var servers []string
	if v, ok := t.member(op, "channel"); ok {
		channel := z.follow(v)
		servers = z.serversOf(channel)
		if !z.has(op, "messages") {
			z.each(channel, "messages", func(m uint32) { z.message(m, as) })
		}
	}
	z.each(op, "messages", func(m uint32) { z.message(m, as) })
	if reply, ok := t.member(op, "reply"); ok {
		z.each(z.follow(reply), "messages", func(m uint32) { z.message(m, as^(asRequest|asAnswer)) })
	}
	z.asyncapiOperation(op, op, action, servers, secure)
}

// asyncapiOperation notes an operation. It is secured by itself, or when all
// the servers that its channel is on are.
func (z *normaliser) asyncapiOperation(op, at uint32, action string, servers []string, secure map[string]bool) {
	f := operationFacts{Method: strings.ToUpper(action), Answers: map[string][]string{},
		All: []string{}, Headers: []string{}, Tags: []string{}, Extensions: z.extensions(op), Claimed: []string{}}
	if v, ok := z.tree.member(op, "security"); ok {
		f.Asks, f.Secured = z.asks(z.asyncapiSecurity(v), false, op)
	}
	if !f.Secured && len(secure) > 0 && z.spend(len(secure)) {
		if len(servers) == 0 {
			servers = slices.Collect(maps.Keys(secure))
		}
		f.Secured = !slices.ContainsFunc(servers, func(name string) bool { return !secure[name] })
	}
	z.add(&z.operations, f, at)
}

// message marks the schemas of a message, or of each that may stand there.
func (z *normaliser) message(m uint32, as uint8) {
	n := z.follow(m)
	if z.tree.nodes[n].kind != '{' {
		return
	}
	z.each(n, "oneOf", func(c uint32) {
		if c := z.follow(c); !z.has(c, "oneOf") {
			z.message(c, as)
		}
	})
	for _, name := range []string{"payload", "headers"} {
		s, _, ok := z.schemaOf(n, name)
		switch {
		case ok:
			z.schema(s, as)
		case s != 0 && z.seen[s]&asEntry == 0:
			z.seen[s] |= asEntry
			z.foreign(s)
		}
	}
}

// multiFormat marks a schema of the components.
func (z *normaliser) multiFormat(c uint32) {
	format := z.label(c, "schemaFormat")
	switch inner, ok := z.tree.member(c, "schema"); {
	case !ok || format == "":
		z.schema(c, 0)
	case jsonSchema(format):
		z.schema(inner, 0)
	default:
		z.foreign(inner)
	}
}

// foreign notes a schema in a language that is not read, and where it leads
// out of the document.
func (z *normaliser) foreign(s uint32) {
	z.add(&z.unread, struct {
		What string `json:"what"`
	}{"schema"}, s)
	for n := s; n < z.tree.nodes[s].next && z.spend(1); n++ {
		if node := z.tree.nodes[n]; node.kind == '"' && node.keyEnd != node.keyStart && z.tree.key(n) == "$ref" {
			if to := z.tree.text(n); !strings.HasPrefix(to, "#") {
				z.outside(n, to)
			}
		}
	}
}
