package rest_test

import (
	"testing"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/api/rest"
	"github.com/muster-registry/muster/fault"
)

// A check tells what would fail, and changes nothing.
func TestASchemaIsTriedOut(t *testing.T) {
	e := newEdge(t, rest.Options{})
	e.call("publisher", "PUT", cart, `{"owner":"ann","metadata":{"tier":"gold"}}`, 201)
	e.call("publisher", "PUT", "/v1/namespaces/shop/services/pay", `{}`, 201)
	e.call("publisher", "PUT", "/v1/namespaces/bank/services/account", `{}`, 201)
	e.call("publisher", "PUT", cartV1, `{"format":"openapi","document":`+openapi+`}`, 201)
	e.call("publisher", "PUT", cartA, instance, 201)
	before := e.State().Revision
	for _, c := range []struct {
		path, body       string
		checked, failing int
		service, name    string // of the first that fails
		pointer          string
	}{
		{"/v1/schemas/shop/service", `{"metadata":{"required":["tier"]}}`, 2, 1, "pay", "", "/metadata"},
		{"/v1/schemas/*/service", `{"metadata":{"required":["tier"]}}`, 3, 2, "account", "", "/metadata"},
		{"/v1/schemas/*/service", `{"metadata":{"type":"object"}}`, 3, 0, "", "", ""},
		{"/v1/schemas/shop/version", `{"payload":{"properties":{"info":{"required":["contact"]}}}}`, 1, 1, "cart", "1.0.0", "/document/info"},
		{"/v1/schemas/*/instance", `{"payload":{"properties":{"port":{"maximum":80}}}}`, 1, 1, "cart", "a", "/port"},
		{"/v1/schemas/nowhere/instance", `{"payload":false}`, 0, 0, "", "", ""},
	} {
		w := e.call("admin", "PUT", c.path+"?check=true", c.body, 200)
		var got rest.SchemaReport
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		if got.Checked != c.checked || got.Failing != c.failing || len(got.Failures) != c.failing {
			t.Errorf("%s: %s", c.path, w.Body)
			continue
		}
		if c.failing > 0 {
			if f := got.Failures[0]; f.Service != c.service || f.Name != c.name || len(f.Errors) == 0 || f.Errors[0].Pointer != c.pointer {
				t.Errorf("%s: %+v", c.path, f)
			}
		}
	}
	refused(t, e.call("admin", "PUT", "/v1/schemas/*/service?check=true", `{"metadata":{"type":"text"}}`, 400), 400, fault.InvalidField)
	refused(t, e.call("admin", "PUT", "/v1/schemas/*/token?check=true", `{"metadata":{}}`, 400), 400, fault.InvalidField)
	refused(t, e.call("publisher", "PUT", "/v1/schemas/shop/service?check=true", `{"metadata":{}}`, 403), 403, fault.Forbidden)
	if e.State().Revision != before {
		t.Error("a check changed the state")
	}
}
