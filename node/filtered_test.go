package node_test

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestFilteredIsWhatIsStoredAndReturned strips members, of what is stored by
// one rule and of what is returned by another.
func TestFilteredIsWhatIsStoredAndReturned(t *testing.T) {
	tr := newTrial(t, 1)
	tr.startAll()
	e := newEdge(t, tr)
	get := func(path string) string {
		t.Helper()
		return string(e.mustDo(t, "GET", path, "").body)
	}
	const write = `package api.registry.authz
import rego.v1
default allow := true
p := input.resource.payload
filtered := object.remove(p, ["x-secret", "description"]) if input.resource.kind in {"service", "version"}
filtered := json.remove(p, ["metadata/password"]) if input.resource.kind == "instance"
`
	modules, err := json.Marshal(map[string]any{"modules": map[string]string{"w.rego": write}})
	must(t, err)
	e.mustDo(t, "POST", "/v1/policy/revisions?activate=true", string(modules))

	const cart = "/v1/namespaces/default/services/cart"
	const document = `{"openapi":"3.1.0","info":{"title":"cart","version":"1"},"paths":{"/cart":{"get":{"responses":{"200":{"description":"ok"}}}}}`
	e.mustDo(t, "PUT", cart, `{"owner":"shop","description":"hunter2"}`)
	secret := e.mustDo(t, "PUT", cart+"/versions/v1", `{"format":"openapi","document":`+document+`,"x-secret":"hunter2"}}`)
	plain := e.mustDo(t, "PUT", cart+"/versions/v2", `{"format":"openapi","document":`+document+`}}`)
	e.mustDo(t, "PUT", cart+"/instances/a", `{"address":"10.0.0.1","port":80,"metadata":{"password":"hunter2","rack":"7"}}`)

	var a, b struct {
		Digest   string          `json:"digest"`
		Size     int             `json:"size"`
		Routes   json.RawMessage `json:"routes"`
		Findings json.RawMessage `json:"findings"`
	}
	must(t, json.Unmarshal(secret.body, &a))
	must(t, json.Unmarshal(plain.body, &b))
	if a.Digest != b.Digest || a.Size != b.Size || string(a.Routes) != string(b.Routes) || string(a.Findings) != string(b.Findings) || !strings.Contains(string(a.Routes), "/cart") {
		t.Errorf("not computed from what is stored:\n%s\n%s", secret.body, plain.body)
	}
	reads := []string{cart, cart + "/versions/v1", cart + "/versions/v1/document", cart + "/instances/a", cart + "/versions", cart + "/instances", "/v1/services", "/v1/discovery/default/cart"}
	for _, path := range reads {
		if s := get(path); strings.Contains(s, "hunter2") {
			t.Errorf("%s: %s", path, s)
		}
	}
	if s := get(cart + "/versions/v1/document"); !strings.Contains(s, "/cart") {
		t.Errorf("the document: %s", s)
	}

	// Of what is returned, whoever stored it.
	const read = `package api.security.authz
import rego.v1
default allow := true
filtered := {"owner": "hidden"}
`
	modules, err = json.Marshal(map[string]any{"modules": map[string]string{"r.rego": read}})
	must(t, err)
	e.mustDo(t, "POST", "/v1/policy/revisions?activate=true", string(modules))
	for _, path := range append(reads, "/v1/discovery") {
		a := e.mustDo(t, "GET", path, "")
		if s := string(a.body); !strings.Contains(s, `{"owner":"hidden"}`) || strings.Contains(s, "10.0.0.1") || strings.Contains(s, "/cart\"") || a.header.Get("ETag") != "" {
			t.Errorf("%s: %s %s", path, a.header.Get("ETag"), s)
		}
	}
}
