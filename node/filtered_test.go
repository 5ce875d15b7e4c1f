package node_test

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/muster-registry/muster/api/rpc/musterv1"
	"github.com/muster-registry/muster/fault"
)

// TestFilteredIsWhatIsStoredAndReturned strips members, of what is stored by
// one rule and of what is returned by another.
func TestFilteredIsWhatIsStoredAndReturned(t *testing.T) {
	t.Parallel()
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

// A policy that puts something in the place of an answer which is none, or gives
// none in time, empties nothing: each protocol says that it cannot tell, and a stream ends with what it
// has told before.
func TestAFilterThatIsNoAnswerEmptiesNothing(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	tr.startAll()
	e := newEdge(t, tr)
	e.mustDo(t, "PUT", "/v1/namespaces/default/services/cart/instances/i1?create_service=true", `{"address":"10.0.0.1","port":80,"ttl":"1h"}`)
	c := e.ads(t, 0, tr.token, "")
	c.ask(resourcev3.EndpointType, "cart.default")
	c.until("the instance", resourcev3.EndpointType, func(all []proto.Message) bool { return strings.Contains(fmt.Sprint(all[0]), "10.0.0.1") })
	e.ok(t, 0, "PUT", "/v1/agent/service/register?ns=bank", `{"Name":"slow","Address":"10.0.0.1","Port":80}`)
	e.ok(t, 0, "GET", "/v1/agent/service/slow?ns=bank", "")
	modules, err := json.Marshal(map[string]any{"modules": map[string]string{"l.rego": `package api.security.authz
import rego.v1
default allow := true
filtered := object.remove(input.resource.payload, ["instances"]) if input.resource.kind == "service"
n := numbers.range(1, 5000)
deny contains "x" if {
	input.resource.namespace == "bank"
	count([1 | some a in n; some b in n; some c in n; a + b == c]) < 0
}
`}})
	must(t, err)
	e.mustDo(t, "POST", "/v1/policy/revisions?activate=true", string(modules))
	for _, path := range []string{"/v1/health/service/cart?stale", "/v1/catalog/service/cart?stale", "/v1/catalog/services?stale", "/v1/agent/services?stale",
		"/v1/prometheus/targets?service=cart", "/v1/prometheus/targets?namespace=default"} {
		if a := e.consul(t, 0, "GET", path, ""); a.status != 503 {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	// No answer in time does not say that there is no such id.
	if a := e.consul(t, 0, "GET", "/v1/agent/service/slow?ns=bank&stale", ""); a.status != 403 || a.header.Get("Retry-After") == "" {
		t.Errorf("an instance that the policy says nothing about: %d %s", a.status, a.body)
	}
	r := musterv1.NewRegistryClient(e.dialRPC(t, 0, &tls.Config{}))
	if res, err := r.Resolve(e.context(t), &musterv1.ResolveRequest{Service: "cart"}); err == nil || problemOf(t, err).Code != string(fault.PolicyUnavailable) {
		t.Errorf("over gRPC: %v %v", res, err)
	}
	for {
		_, all, err := c.next()
		if err != nil {
			if status.Code(err) != codes.Unavailable {
				t.Errorf("the stream ends with %v", err)
			}
			break
		}
		for _, m := range all {
			if a, ok := m.(*endpointv3.ClusterLoadAssignment); ok && len(a.Endpoints) == 0 {
				t.Error("the stream says that there are no instances")
			}
		}
		if len(all) == 0 {
			t.Error("the stream takes the instances away")
		}
	}
}
