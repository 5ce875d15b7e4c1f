package definition

import (
	"cmp"
	"slices"
	"strings"
)

// The structure of AsyncAPI 2 and 3, as far as it says what is exchanged, over
// which servers, and who may: bindings, correlation ids, traits and payloads
// in other schema languages than JSON Schema are left alone.

var (
	asyncapi2 = asyncapiRoot2()
	asyncapi3 = asyncapiRoot3()
)

// asyncapiDialect tells the version of AsyncAPI by the document's own word.
func (w *walk) asyncapiDialect() (root *shape, name string, err error) {
	v, ok := w.tree.member(0, "asyncapi")
	if !ok {
		return nil, "", invalid("", "must have asyncapi at the top, with the version it is written in")
	}
	s := w.tree.text(v)
	switch {
	case w.tree.nodes[v].kind == '"' && version(s, "2."):
		return asyncapi2, "asyncapi " + s, nil
	case w.tree.nodes[v].kind == '"' && version(s, "3."):
		return asyncapi3, "asyncapi " + s, nil
	}
	return nil, "", invalid("/asyncapi", "must be a version 2.x.y or 3.x.y (line %d)", w.tree.line(v))
}

// jsonSchema says whether the payloads of a schema format are JSON Schemas.
func jsonSchema(format string) bool {
	return format == "" || strings.Contains(format, "vnd.aai.asyncapi") || strings.Contains(format, "schema+json") ||
		strings.Contains(format, "schema+yaml") || strings.Contains(format, "vnd.oai.openapi")
}

// schemaOf gives the JSON Schema in a member of a message, if there is one: in
// AsyncAPI 3 it may stand beside the name of its format.
func (w *walk) schemaOf(message uint32, name string) (n uint32, parents []uint32, ok bool) {
	t := w.tree
	if n, ok = t.member(message, name); !ok {
		return 0, nil, false
	}
	parents = []uint32{message}
	format, named := t.member(n, "schemaFormat")
	if inner, there := t.member(n, "schema"); named && there {
		n, parents = inner, append(parents, n)
	} else if format, named = t.member(message, "schemaFormat"); name != "payload" {
		named = false
	}
	return n, parents, !named || jsonSchema(t.text(format))
}

// asyncapiParts are the shapes that both versions share.
func asyncapiParts() (sch, message, variables, scheme *shape) {
	sch = schema(true)
	sch.fields["definitions"] = named(sch)
	message = orRef(object(map[string]*shape{"name": label, "contentType": text, "schemaFormat": text}))
	message.more = func(w *walk, n uint32) {
		for _, name := range []string{"payload", "headers"} {
			if p, parents, ok := w.schemaOf(n, name); ok {
				w.path = append(w.path, parents...)
				w.check(p, sch)
				w.path = w.path[:len(w.path)-len(parents)]
			}
		}
	}
	variables = named(orRef(object(map[string]*shape{"default": label, "enum": list(label)})))
	scheme = orRef(object(map[string]*shape{"type": text, "scheme": text, "name": label, "in": text, "openIdConnectUrl": text, "bearerFormat": label,
		"flows": {kinds: "{", want: "an object", each: object(map[string]*shape{"authorizationUrl": text, "tokenUrl": text, "refreshUrl": text, "scopes": noise, "availableScopes": noise})},
	}, "type"))
	scheme.more = func(w *walk, n uint32) {
		kind, _ := among(w, n, "type", "userPassword", "apiKey", "X509", "symmetricEncryption", "asymmetricEncryption", "httpApiKey",
			"http", "oauth2", "openIdConnect", "plain", "scramSha256", "scramSha512", "gssapi")
		switch kind {
		case "apiKey":
			requires(w, n, "in")
			among(w, n, "in", "user", "password")
		case "httpApiKey":
			requires(w, n, "name", "in")
			among(w, n, "in", "query", "header", "cookie")
		case "http":
			requires(w, n, "scheme")
		case "oauth2":
			requires(w, n, "flows")
		case "openIdConnect":
			requires(w, n, "openIdConnectUrl")
		}
	}
	return sch, message, variables, scheme
}

func asyncapiRoot2() *shape {
	sch, message, variables, scheme := asyncapiParts()
	server := orRef(object(map[string]*shape{"url": text, "protocol": text, "description": text, "variables": variables, "security": security}, "url", "protocol"))
	one := *message
	message.fields["oneOf"] = list(&one)
	op := object(map[string]*shape{"operationId": label, "security": security, "message": message, "traits": list(orRef(noise))})
	parameter := orRef(object(map[string]*shape{"schema": sch}))
	channel := object(map[string]*shape{"publish": op, "subscribe": op, "servers": texts, "parameters": named(parameter)})
	channel.ref, channel.beside = true, true
	components := object(map[string]*shape{"schemas": named(sch), "servers": named(server), "channels": named(channel), "messages": named(message),
		"securitySchemes": named(scheme), "parameters": named(parameter), "serverVariables": variables})
	return object(map[string]*shape{"info": info, "servers": named(server), "channels": named(channel), "components": components,
		"tags": tags, "defaultContentType": text}, "info", "channels")
}

func asyncapiRoot3() *shape {
	sch, message, variables, scheme := asyncapiParts()
	needs := list(scheme)
	reference := &shape{kinds: "{", want: "a reference", ref: true, more: func(w *walk, n uint32) { requires(w, n, "$ref") }}
	server := orRef(object(map[string]*shape{"host": text, "protocol": text, "pathname": text, "description": text, "variables": variables, "security": needs}, "host", "protocol"))
	channel := orRef(object(map[string]*shape{"address": {kinds: `"n`, want: "a string or null"}, "messages": named(message), "servers": list(reference),
		"parameters": named(orRef(object(map[string]*shape{"default": label, "enum": list(label)})))}))
	reply := orRef(object(map[string]*shape{"channel": reference, "messages": list(reference), "address": orRef(noise)}))
	op := orRef(object(map[string]*shape{"action": text, "channel": reference, "messages": list(reference), "security": needs, "reply": reply, "traits": list(orRef(noise))}, "action", "channel"))
	op.more = func(w *walk, n uint32) { among(w, n, "action", "send", "receive") }
	components := object(map[string]*shape{"schemas": named(multiFormat(sch)), "servers": named(server), "channels": named(channel), "operations": named(op),
		"messages": named(message), "securitySchemes": named(scheme), "serverVariables": variables, "replies": named(reply)})
	return object(map[string]*shape{"info": info, "servers": named(server), "channels": named(channel), "operations": named(op), "components": components}, "info")
}

// multiFormat is a schema, or one of another language beside its name.
func multiFormat(sch *shape) *shape {
	return &shape{kinds: "{tf", want: "an object or a boolean", ref: true, more: func(w *walk, n uint32) {
		format, named := w.tree.member(n, "schemaFormat")
		inner, there := w.tree.member(n, "schema")
		switch {
		case !named || !there:
			w.check(n, sch)
		case jsonSchema(w.tree.text(format)):
			w.path = append(w.path, n)
			w.check(inner, sch)
			w.path = w.path[:len(w.path)-1]
		}
	}}
}

// asyncapiRoutes lists the operations of a checked document: what is done on
// which channel, and under which name.
func (w *walk) asyncapiRoutes() []Route {
	t := w.tree
	out := []Route{}
	if channels, ok := t.member(0, "channels"); ok {
		t.children(channels, func(c uint32) bool {
			for _, action := range []string{"publish", "subscribe"} {
				if op, ok := t.member(w.follow(c), action); ok {
					out = append(out, Route{Method: strings.ToUpper(action), Path: t.key(c), Operation: w.label(op, "operationId")})
				}
			}
			return true
		})
	}
	if operations, ok := t.member(0, "operations"); ok {
		t.children(operations, func(c uint32) bool {
			op := w.follow(c)
			r := Route{Method: strings.ToUpper(w.label(op, "action")), Operation: t.key(c)}
			if channel, ok := t.member(op, "channel"); ok {
				r.Path = w.label(w.follow(channel), "address")
			}
			out = append(out, r)
			return true
		})
	}
	slices.SortFunc(out, func(a, b Route) int {
		return cmp.Or(strings.Compare(a.Path, b.Path), strings.Compare(a.Method, b.Method), strings.Compare(a.Operation, b.Operation))
	})
	return slices.Compact(out)
}

// follow gives what n is, or what the reference that it is leads to.
func (w *walk) follow(n uint32) uint32 {
	if r, ok := w.tree.member(n, "$ref"); ok && w.tree.nodes[r].kind == '"' {
		if to := w.resolve(w.tree.text(r)); to.mistake == "" && to.node != 0 {
			return to.node
		}
	}
	return n
}

// label gives the text of a member, or "".
func (w *walk) label(n uint32, name string) string {
	if v, ok := w.tree.member(n, name); ok {
		if k := w.tree.nodes[v].kind; k == '"' || k == '0' {
			return w.tree.text(v)
		}
	}
	return ""
}
