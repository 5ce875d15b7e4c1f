package definition_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/registry/definition"
)

const (
	async2 = `{"asyncapi":"2.6.0","info":{"title":"t","version":"1"},`
	async3 = `{"asyncapi":"3.0.0","info":{"title":"t","version":"1"},`
)

func TestAsyncAPIRoutes(t *testing.T) {
	tests := []struct {
		name, document string
		want           []definition.Route
	}{
		{"version 2", async2 + `"channels":{"b":{"subscribe":{}},"a/{id}":{"publish":{"operationId":"send"},"subscribe":{"operationId":"take"}}}}`,
			[]definition.Route{{Method: "PUBLISH", Path: "a/{id}", Operation: "send"}, {Method: "SUBSCRIBE", Path: "a/{id}", Operation: "take"}, {Method: "SUBSCRIBE", Path: "b"}}},
		{"version 3", async3 + `"channels":{"c":{"address":"orders"}},"operations":{"o":{"action":"send","channel":{"$ref":"#/channels/c"}},"p":{"action":"receive","channel":{"$ref":"#/channels/c"}}}}`,
			[]definition.Route{{Method: "RECEIVE", Path: "orders", Operation: "p"}, {Method: "SEND", Path: "orders", Operation: "o"}}},
		{"an address that is not known yet", async3 + `"channels":{"c":{"address":null}},"operations":{"o":{"action":"send","channel":{"$ref":"#/channels/c"}}}}`,
			[]definition.Route{{Method: "SEND", Operation: "o"}}},
		{"a channel by reference", async2 + `"channels":{"a":{"$ref":"#/components/channels/c"}},"components":{"channels":{"c":{"publish":{}}}}}`,
			[]definition.Route{{Method: "PUBLISH", Path: "a"}}},
		{"nothing yet", async3 + `"channels":{}}`, []definition.Route{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, err := definition.Parse("asyncapi", []byte(tt.document))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, d.Routes); diff != "" {
				t.Error(diff)
			}
			if !definition.Valid(tt.document) {
				t.Error("accepted and not valid")
			}
		})
	}
}

func TestAsyncAPIMalformed(t *testing.T) {
	message := func(s string) string {
		return async2 + `"channels":{"c":{"publish":{"message":` + s + `}}}}`
	}
	refused := map[string]struct{ document, pointer string }{
		"no version":               {`{"info":{"title":"t","version":"1"},"channels":{}}`, ""},
		"version 1":                {`{"asyncapi":"1.2.0","info":{"title":"t","version":"1"},"channels":{}}`, "/asyncapi"},
		"a version that is none":   {`{"asyncapi":2,"info":{"title":"t","version":"1"},"channels":{}}`, "/asyncapi"},
		"no channels":              {async2 + `"servers":{}}`, ""},
		"no info.version":          {`{"asyncapi":"3.0.0","info":{"title":"t"}}`, "/info"},
		"a server without host":    {async3 + `"servers":{"s":{"protocol":"amqp"}}}`, "/servers/s"},
		"a server without URL":     {async2 + `"channels":{},"servers":{"s":{"protocol":"amqp"}}}`, "/servers/s"},
		"an unknown action":        {async3 + `"operations":{"o":{"action":"publish","channel":{}}}}`, "/operations/o/action"},
		"a channel in place":       {async3 + `"operations":{"o":{"action":"send","channel":{"address":"a"}}}}`, "/operations/o/channel"},
		"a scheme that is none":    {async2 + `"channels":{},"components":{"securitySchemes":{"s":{"type":"magic"}}}}`, "/components/securitySchemes/s/type"},
		"a key where no key is":    {async2 + `"channels":{},"components":{"securitySchemes":{"s":{"type":"apiKey","in":"query"}}}}`, "/components/securitySchemes/s/in"},
		"a channel elsewhere":      {async2 + `"channels":{"c":{"$ref":"other.yaml"}}}`, "/channels/c/$ref"},
		"a payload elsewhere":      {message(`{"payload":{"$ref":"https://x.example/p.json"}}`), "/channels/c/publish/message/payload/$ref"},
		"a file":                   {message(`{"oneOf":[{"payload":{"items":{"$ref":"file:///etc/passwd"}}}]}`), "/channels/c/publish/message/oneOf/0/payload/items/$ref"},
		"itself":                   {async3 + `"components":{"messages":{"m":{"$ref":"#/components/messages/m"}}}}`, "/components/messages/m/$ref"},
		"a payload of no type":     {message(`{"payload":{"type":"text"}}`), "/channels/c/publish/message/payload/type"},
		"a schema beside its name": {async3 + `"components":{"messages":{"m":{"payload":{"schemaFormat":"application/schema+json;version=draft-07","schema":{"type":1}}}}}}`, "/components/messages/m/payload/schema/type"},
	}
	for name, tt := range refused {
		t.Run(name, func(t *testing.T) {
			_, err := definition.Parse("asyncapi", []byte(tt.document))
			if !fault.Is(err, fault.InvalidDefinition) {
				t.Fatalf("got %v", err)
			}
			if p := fault.From(err).Fields[0].Pointer; p != tt.pointer {
				t.Errorf("pointer %q, want %q", p, tt.pointer)
			}
		})
	}
	accepted := map[string]string{
		"Avro":                message(`{"schemaFormat":"application/vnd.apache.avro;version=1.9.0","payload":{"type":"record","fields":[]}}`),
		"Avro elsewhere":      async3 + `"components":{"messages":{"m":{"payload":{"schemaFormat":"application/vnd.apache.avro","schema":{"$ref":"https://x.example/a.avsc"}}}}}}`,
		"bindings":            async2 + `"channels":{"c":{"bindings":{"kafka":{"topic":1}}}}}`,
		"a payload of itself": async3 + `"components":{"schemas":{"A":{"properties":{"a":{"$ref":"#/components/schemas/A"}}}}}}`,
	}
	for name, document := range accepted {
		t.Run(name, func(t *testing.T) {
			if _, err := definition.Parse("asyncapi", []byte(document)); err != nil {
				t.Error(err)
			}
		})
	}
}
