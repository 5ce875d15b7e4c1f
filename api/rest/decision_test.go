package rest_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/muster-registry/muster/api/rest"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

func TestGetDecision(t *testing.T) {
	e := newEdge(t, rest.Options{})
	if w := e.call("admin", "GET", "/v1/decisions/d-1", "", 200); w.Body.String() != `{"decision_id":"d-1","rules":false}` {
		t.Error(w.Body)
	}
	if w := e.call("admin", "GET", "/v1/decisions/d-1?explain=rules", "", 200); w.Body.String() != `{"decision_id":"d-1","rules":true}` {
		t.Error(w.Body)
	}
	for _, tc := range []struct {
		caller, path string
		status       int
		code         fault.Code
	}{
		{"admin", "/v1/decisions/d-2", 404, fault.NotFound},
		{"admin", "/v1/decisions/d-1?explain=all", 400, fault.BadRequest},
		{"admin", "/v1/decisions/d%22", 400, fault.BadRequest},
		{"admin", "/v1/decisions/" + strings.Repeat("d", 65), 400, fault.BadRequest},
		{"viewer", "/v1/decisions/d-1", 403, fault.Forbidden},
		{"publisher", "/v1/decisions/d-1", 403, fault.Forbidden},
		{"shopkeeper", "/v1/decisions/d-1", 403, fault.Forbidden},
		{"", "/v1/decisions/d-1", 401, fault.Unauthenticated},
	} {
		refused(t, e.do(ask{caller: tc.caller, method: "GET", path: tc.path}), tc.status, tc.code)
	}
}

// Every answer that a policy decided names the decision, and says when content
// was replaced.
func TestAnswersNameTheirDecision(t *testing.T) {
	n := 0
	var mu sync.Mutex
	e := policedEdge(t, func(in *policy.Input) policy.Decision {
		mu.Lock()
		defer mu.Unlock()
		n++
		d := policy.Decision{ID: fmt.Sprintf("d-%d", n), Allow: in.Headers["X-Dept"] != "none"}
		if in.Headers["X-Dept"] == "some" {
			d.Filtered = []byte(`{"some":true}`)
		}
		return d
	})
	for _, tc := range []struct {
		path, dept string
		status     int
		filtered   string
	}{
		{cart, "", 200, ""},
		{cart, "some", 200, "true"},
		{cart, "none", 403, ""},
		{"/v1/discovery/shop/cart", "", 200, ""},
		{"/v1/discovery/shop/cart", "some", 200, "true"},
		{"/v1/discovery/shop/none", "", 404, ""},
		{"/v1/services", "", 200, ""},
		{"/v1/services", "some", 200, "true"},
		{"/v1/services", "none", 200, ""},
		{cartV1 + "/document", "some", 200, "true"},
	} {
		w := e.do(ask{caller: "viewer", method: "GET", path: tc.path, header: header("X-Dept", tc.dept)})
		if w.Code != tc.status || w.Header().Get("Muster-Decision-Id") != fmt.Sprintf("d-%d", n) || w.Header().Get("Muster-Filtered") != tc.filtered {
			t.Errorf("%s for %q: %d %v", tc.path, tc.dept, w.Code, w.Header())
		}
	}
}

func TestAListNamesItsLastRefusal(t *testing.T) {
	inputs := map[*policy.Input]bool{}
	e := newEdge(t, rest.Options{})
	for _, name := range []string{"a", "b", "c"} {
		e.call("operator", "PUT", "/v1/namespaces/shop/services/"+name, `{}`, 201)
	}
	e.policed(func(in *policy.Input) policy.Decision {
		inputs[in] = true
		return policy.Decision{ID: "of-" + in.Resource.Name, Allow: in.Resource.Name != "b"}
	})
	w := e.call("viewer", "GET", "/v1/services", "", 200)
	if id := w.Header().Get("Muster-Decision-Id"); id != "of-b" {
		t.Errorf("%q", id)
	}
	for in := range inputs {
		if in.Resource.Name == "" {
			t.Error("an input was used again after its decision")
		}
	}
	if len(inputs) != 3 {
		t.Errorf("%d inputs for 3 decisions", len(inputs))
	}
}
