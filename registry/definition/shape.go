package definition

import (
	"slices"
	"strings"
)

// The structure of OpenAPI 3.0, 3.1 and Swagger 2.0, as far as it says what an
// API offers and takes: what tools that generate clients, gateways and
// documentation cannot do without. Prose, examples and extensions are left
// alone.

var (
	text    = &shape{kinds: `"`, want: "a string"}
	label   = &shape{kinds: `"0`, want: "a string"} // YAML reads an unquoted 1.0 as a number
	flag    = &shape{kinds: "tf", want: "true or false"}
	texts   = list(text)
	noise   = &shape{kinds: "{", want: "an object"}
	choices = &shape{kinds: "[", want: "an array"}
)

func object(fields map[string]*shape, need ...string) *shape {
	return &shape{kinds: "{", want: "an object", fields: fields, need: need}
}

func list(item *shape) *shape { return &shape{kinds: "[", want: "an array", item: item} }

// named is a map whose names are the author's own.
func named(each *shape) *shape {
	return &shape{kinds: "{", want: "an object", each: each, plain: true}
}

// orRef lets a reference stand in for s.
func orRef(s *shape) *shape {
	c := *s
	c.ref = true
	return &c
}

var (
	info     = object(map[string]*shape{"title": label, "version": label}, "title", "version")
	tags     = list(object(map[string]*shape{"name": label}, "name"))
	security = list(named(texts))
)

// schema is that of OpenAPI and Swagger alike; since 3.1 it may be a boolean.
func schema(boolean bool) *shape {
	s := &shape{kinds: "{", want: "an object", ref: true}
	if boolean {
		s.kinds, s.want = "{tf", "an object or a boolean"
	}
	some := list(s)
	either := &shape{kinds: "{tf", want: "an object or a boolean", ref: true}
	items := &shape{kinds: "{[tf", want: "an object"} // an array of schemas is old, and found
	s.fields = map[string]*shape{
		"type":       {kinds: `"[`, want: "a string, or an array of strings", item: text, more: knownType},
		"properties": named(s), "patternProperties": named(s), "$defs": named(s), "dependentSchemas": named(s),
		"allOf": some, "anyOf": some, "oneOf": some, "prefixItems": some,
		"not": s, "if": s, "then": s, "else": s, "contains": s, "propertyNames": s,
		"items": items, "additionalProperties": either, "unevaluatedProperties": either, "unevaluatedItems": either,
		"enum": choices, "format": label, "pattern": label,
		"nullable": flag, "readOnly": flag, "writeOnly": flag, "deprecated": flag,
	}
	either.fields, items.fields, items.item, items.ref = s.fields, s.fields, s, true
	return s
}

var types = []string{"string", "number", "integer", "boolean", "array", "object", "null", "file"}

func knownType(w *walk, n uint32) {
	if k := w.tree.nodes[n].kind; k == '"' && !slices.Contains(types, w.tree.text(n)) {
		w.mistake(n, "must be one of "+strings.Join(types, ", "))
	}
}

// among requires a member, where it is there, to have one of some values.
func among(w *walk, n uint32, name string, values ...string) (value string, ok bool) {
	v, there := w.tree.member(n, name)
	if !there {
		return "", false
	}
	value = w.tree.text(v)
	if !slices.Contains(values, value) {
		w.path = append(w.path, n)
		w.mistake(v, "must be one of "+strings.Join(values, ", "))
		w.path = w.path[:len(w.path)-1]
		return value, false
	}
	return value, true
}

func requires(w *walk, n uint32, names ...string) {
	for _, name := range names {
		if _, ok := w.tree.member(n, name); !ok {
			w.mistake(n, "must have \""+name+"\"")
		}
	}
}

var (
	openapi30 = openapi3(false)
	openapi31 = openapi3(true)
	swagger20 = swagger2()
)

func openapi3(one bool) *shape {
	sch := schema(one)
	media := object(map[string]*shape{"schema": sch, "examples": named(nil)})
	content := named(media)
	header := orRef(object(map[string]*shape{"schema": sch, "content": content}))
	media.fields["encoding"] = named(object(map[string]*shape{"contentType": text, "headers": named(header)}))
	param := orRef(object(map[string]*shape{"name": label, "in": text, "required": flag, "schema": sch, "content": content}, "name", "in"))
	param.more = func(w *walk, n uint32) {
		if in, ok := among(w, n, "in", "query", "header", "path", "cookie"); ok && in == "path" {
			if v, ok := w.tree.member(n, "required"); !ok || w.tree.text(v) != "true" {
				w.mistake(n, `must have "required": true, as every parameter in a path`)
			}
		}
	}
	server := object(map[string]*shape{"url": text, "variables": named(object(map[string]*shape{"default": label, "enum": list(label)}, "default"))}, "url")
	response := orRef(object(map[string]*shape{"headers": named(header), "content": content, "links": named(orRef(noise))}, "description"))
	body := orRef(object(map[string]*shape{"content": content, "required": flag}, "content"))
	item := &shape{kinds: "{", want: "an object", ref: true, beside: true}
	callback := orRef(&shape{kinds: "{", want: "an object", each: item})
	op := object(map[string]*shape{"operationId": label, "tags": list(label), "deprecated": flag, "parameters": list(param), "requestBody": body,
		"responses": responses(response), "callbacks": named(callback), "security": security, "servers": list(server)})
	if !one {
		op.need = []string{"responses"}
	}
	item.fields = methods(op, "get", "put", "post", "delete", "options", "head", "patch", "trace")
	item.fields["parameters"], item.fields["servers"] = list(param), list(server)
	components := object(map[string]*shape{"schemas": named(sch), "responses": named(response), "parameters": named(param),
		"requestBodies": named(body), "headers": named(header), "securitySchemes": named(scheme3()), "callbacks": named(callback),
		"pathItems": named(item), "examples": named(orRef(noise)), "links": named(orRef(noise))})
	root := object(map[string]*shape{"info": info, "servers": list(server), "paths": paths(item), "components": components,
		"security": security, "tags": tags}, "info", "paths")
	if one {
		root.need = root.need[:1]
		root.fields["webhooks"] = named(item)
		root.more = func(w *walk, n uint32) {
			for _, name := range []string{"paths", "webhooks", "components"} {
				if _, ok := w.tree.member(n, name); ok {
					return
				}
			}
			w.mistake(n, "must have paths, webhooks or components")
		}
	}
	return root
}

func methods(op *shape, names ...string) map[string]*shape {
	m := make(map[string]*shape, len(names)+2)
	for _, name := range names {
		m[name] = op
	}
	return m
}

func paths(item *shape) *shape {
	return &shape{kinds: "{", want: "an object", each: item, key: func(name string) string {
		if !strings.HasPrefix(name, "/") {
			return "must be a path that begins with /"
		}
		return ""
	}}
}

func responses(response *shape) *shape {
	return &shape{kinds: "{", want: "an object", each: response, key: func(name string) string {
		if name == "default" || len(name) == 3 && name[0] >= '1' && name[0] <= '5' && (name[1:] == "XX" || digits(name[1:])) {
			return ""
		}
		return "must be a status code, a range such as 4XX, or default"
	}}
}

func digits(s string) bool { return strings.Trim(s, "0123456789") == "" }

func scheme3() *shape {
	s := orRef(object(map[string]*shape{"type": text, "scheme": text, "name": label, "in": text, "openIdConnectUrl": text,
		"flows": {kinds: "{", want: "an object", each: object(map[string]*shape{"authorizationUrl": text, "tokenUrl": text, "refreshUrl": text, "scopes": noise}, "scopes")},
	}, "type"))
	s.more = func(w *walk, n uint32) {
		switch kind, _ := among(w, n, "type", "apiKey", "http", "mutualTLS", "oauth2", "openIdConnect"); kind {
		case "apiKey":
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
	return s
}

func swagger2() *shape {
	sch := schema(false)
	param := orRef(object(map[string]*shape{"name": label, "in": text, "required": flag, "schema": sch, "type": text}, "name", "in"))
	param.more = func(w *walk, n uint32) {
		switch in, _ := among(w, n, "in", "query", "header", "path", "formData", "body"); in {
		case "body":
			requires(w, n, "schema")
		case "path":
			if v, ok := w.tree.member(n, "required"); !ok || w.tree.text(v) != "true" {
				w.mistake(n, `must have "required": true, as every parameter in a path`)
			}
		}
	}
	response := orRef(object(map[string]*shape{"schema": sch, "headers": named(noise)}, "description"))
	op := object(map[string]*shape{"operationId": label, "tags": list(label), "deprecated": flag, "consumes": texts, "produces": texts,
		"schemes": texts, "parameters": list(param), "responses": responses(response), "security": security}, "responses")
	item := &shape{kinds: "{", want: "an object", ref: true, beside: true}
	item.fields = methods(op, "get", "put", "post", "delete", "options", "head", "patch")
	item.fields["parameters"] = list(param)
	base := &shape{kinds: `"`, want: "a string", more: func(w *walk, n uint32) {
		if s := w.tree.text(n); s != "" && s[0] != '/' {
			w.mistake(n, "must begin with /")
		}
	}}
	scheme := object(map[string]*shape{"type": text, "scopes": noise}, "type")
	scheme.more = func(w *walk, n uint32) {
		switch kind, _ := among(w, n, "type", "basic", "apiKey", "oauth2"); kind {
		case "apiKey":
			requires(w, n, "name", "in")
		case "oauth2":
			requires(w, n, "flow")
		}
	}
	return object(map[string]*shape{"info": info, "host": text, "basePath": base, "schemes": texts, "consumes": texts, "produces": texts,
		"paths": paths(item), "definitions": named(sch), "parameters": named(param), "responses": named(response),
		"securityDefinitions": named(scheme), "security": security, "tags": tags}, "info", "paths")
}

// version reports whether s is a dotted version with one of the beginnings.
func version(s string, beginnings ...string) bool {
	if strings.Trim(s, "0123456789.") != "" || len(s) > 16 {
		return false
	}
	return slices.ContainsFunc(beginnings, func(b string) bool { return strings.HasPrefix(s, b) && len(s) > len(b) })
}
