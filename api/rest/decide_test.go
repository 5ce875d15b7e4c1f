package rest_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/muster-registry/muster/api/rest"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

// policedEdge has a service with a version and an instance, and a policy.
func policedEdge(t testing.TB, decide func(*policy.Input) policy.Decision) *edge {
	t.Helper()
	e := newEdge(t, rest.Options{})
	e.call("publisher", "PUT", cart, `{"metadata":{"tier":1}}`, 201)
	e.call("publisher", "PUT", cartV1, `{"format":"openapi","document":`+openapi+`}`, 201)
	e.call("publisher", "PUT", cartA, `{"address":"10.0.0.1","port":8080,"metadata":{"rack":"r1"}}`, 201)
	e.policed(decide)
	return e
}

func TestPolicySeesTheLookup(t *testing.T) {
	var last policy.Input
	e := policedEdge(t, func(in *policy.Input) policy.Decision { last = *in; return policy.Decision{Allow: true} })
	for _, tc := range []struct {
		path, kind, name, metadata, payload string
	}{
		{cart, "service", "cart", `{"tier":1}`, `"owner":""`},
		{cartV1, "version", "1.0.0", `{"tier":1}`, `"format":"openapi"`},
		{cartV1 + "/document", "version", "1.0.0", `{"tier":1}`, `"openapi":"3.0.3"`},
		{cartA, "instance", "a", `{"rack":"r1"}`, `"address":"10.0.0.1"`},
		{"/v1/discovery/shop/cart", "service", "cart", `{"tier":1}`, `"instances":[{"id":"a"`},
		{"/v1/discovery?namespace=shop&service=cart", "service", "cart", `{"tier":1}`, `"instances":[{"id":"a"`},
		{"/v1/discovery", "service", "cart", `{"tier":1}`, `"instances":1`},
		{"/v1/services", "service", "cart", `{"tier":1}`, `"owner":""`},
		{cart + "/versions", "version", "1.0.0", `{"tier":1}`, `"format":"openapi"`},
		{cart + "/instances", "instance", "a", `{"rack":"r1"}`, `"address":"10.0.0.1"`},
	} {
		w := e.do(ask{caller: "viewer", method: "GET", path: tc.path, header: header("X-Dept", "Engineering")})
		if w.Code != 200 {
			t.Fatalf("%s: %d %s", tc.path, w.Code, w.Body)
		}
		r := &last.Resource
		if r.Kind != tc.kind || r.Namespace != "shop" || r.Name != tc.name || string(r.MetadataJSON()) != tc.metadata || !strings.Contains(string(r.Payload), tc.payload) || r.Previous != nil {
			t.Errorf("%s: the resource is %s %s/%s %s %s", tc.path, r.Kind, r.Namespace, r.Name, r.MetadataJSON(), r.Payload)
		}
		want := policy.Input{Action: policy.Lookup, Protocol: "https", Method: "GET", RawPath: tc.path, Host: "muster.test", Scheme: "https",
			Token: "viewer-token", Source: "192.0.2.1", Path: strings.Split(strings.TrimPrefix(strings.Split(tc.path, "?")[0], "/"), "/"),
			Headers:   map[string]string{"X-Dept": "Engineering", "Authorization": "Bearer viewer-token"},
			Principal: policy.Principal{ID: "token:viewer", Kind: "token", Roles: []string{"viewer"}, Namespaces: []string{}},
			Time:      last.Time, Resource: last.Resource,
			Call: policy.Call{RequestID: w.Header().Get("X-Request-Id"), Source: "192.0.2.1", Principal: "token:viewer", Revision: last.Call.Revision}}
		if d := cmp.Diff(want, last); d != "" || last.Time.IsZero() || last.Call.RequestID == "" || last.Call.Revision == 0 {
			t.Errorf("%s: %s", tc.path, d)
		}
	}
}

func TestRefusedLookups(t *testing.T) {
	e := policedEdge(t, func(*policy.Input) policy.Decision {
		return policy.Decision{Reasons: []string{"not for you", "not today"}}
	})
	// A refusal says the same of what exists and of what does not.
	for _, pair := range [][2]string{
		{cart, "/v1/namespaces/shop/services/none"},
		{cartV1, cart + "/versions/9"}, {cartV1 + "/document", cart + "/versions/9/document"},
		{cartA, cart + "/instances/none"},
		{cart + "/versions", "/v1/namespaces/shop/services/none/versions"},
		{cart + "/instances", "/v1/namespaces/shop/services/none/instances"},
		{"/v1/discovery/shop/cart", "/v1/discovery/shop/none"},
		{"/v1/discovery?service=cart&namespace=shop", "/v1/discovery?service=none&namespace=shop"},
	} {
		var problems [2]problem
		for i, path := range pair {
			w := e.do(ask{caller: "viewer", method: "GET", path: path, header: header("X-Request-Id", "same")})
			problems[i] = refused(t, w, 403, fault.PolicyDenied)
			if w.Header().Get("ETag") != "" {
				t.Errorf("%s: a refusal carries an entity tag", path)
			}
		}
		if d := cmp.Diff(problems[0], problems[1]); d != "" {
			t.Errorf("%s and %s differ: %s", pair[0], pair[1], d)
		}
		if p := problems[0]; !slices.Equal(p.Reasons, []string{"not for you", "not today"}) || p.DecisionID != "d-1" || p.PolicyRevision != 1 {
			t.Errorf("%s: %+v", pair[0], p)
		}
	}
	for _, path := range []string{"/v1/services", "/v1/namespaces/shop/services", "/v1/discovery"} {
		if w := e.call("viewer", "GET", path, "", 200); !strings.HasPrefix(w.Body.String(), `{"items":[],"next_page_token":""`) {
			t.Errorf("%s shows %s", path, w.Body)
		}
	}
	// A tag that the caller has from before does not get around the policy.
	refused(t, e.do(ask{caller: "viewer", method: "GET", path: cart, header: header("If-None-Match", `"1"`)}), 403, fault.PolicyDenied)
}

func TestListsShowWhatThePolicyAllows(t *testing.T) {
	e := newEdge(t, rest.Options{})
	for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
		e.call("publisher", "PUT", "/v1/namespaces/shop/services/"+name, `{}`, 201)
	}
	e.policed(func(in *policy.Input) policy.Decision { return policy.Decision{Allow: in.Resource.Name >= "e"} })
	for _, path := range []string{"/v1/services", "/v1/discovery"} {
		w := e.call("viewer", "GET", path+"?limit=1", "", 200)
		if s := w.Body.String(); !strings.Contains(s, `"e"`) || strings.Contains(s, `"f"`) || strings.Contains(s, `"next_page_token":""`) {
			t.Errorf("%s: the page is %s", path, s)
		}
	}
}

func TestFilteredReplacesWhatIsReturned(t *testing.T) {
	e := policedEdge(t, func(*policy.Input) policy.Decision {
		return policy.Decision{Allow: true, Filtered: []byte(`{"redacted":true}`)}
	})
	for _, path := range []string{cart, cartV1, cartV1 + "/document", cartA, "/v1/discovery/shop/cart"} {
		w := e.do(ask{caller: "viewer", method: "GET", path: path, header: header("If-None-Match", "*")})
		if w.Code != 200 || w.Body.String() != `{"redacted":true}` || w.Header().Get("ETag") != "" || w.Header().Get("Content-Type") != "application/json" {
			t.Errorf("%s: %d %s %v", path, w.Code, w.Body, w.Header())
		}
	}
	for _, path := range []string{"/v1/services", "/v1/discovery", cart + "/versions", cart + "/instances"} {
		if w := e.call("viewer", "GET", path, "", 200); !strings.HasPrefix(w.Body.String(), `{"items":[{"redacted":true}],`) {
			t.Errorf("%s shows %s", path, w.Body)
		}
	}
}

// The decision and the answer come from one state, and changes are not decided
// here at all.
func TestChangesAreDecidedByTheLeader(t *testing.T) {
	e := policedEdge(t, func(*policy.Input) policy.Decision {
		t.Error("a change was decided at the edge")
		return policy.Decision{}
	})
	e.call("publisher", "PUT", cart, `{}`, 200)
	e.call("publisher", "DELETE", cart, "", 204)
}

// A list from which items are missing because nobody decided in time is no
// answer at all.
func TestAListIsWholeOrRefused(t *testing.T) {
	e := policedEdge(t, func(*policy.Input) policy.Decision {
		return policy.Decision{Missed: true, Reasons: []string{"the policy took longer than 50ms and was cut off"}}
	})
	for _, path := range []string{"/v1/services", "/v1/discovery"} {
		refused(t, e.do(ask{caller: "viewer", method: "GET", path: path}), 503, fault.PolicyUnavailable)
	}
}

// A look-up that is refused for want of an answer in time says when to ask again;
// one that the policy refuses does not.
func TestARefusalForWantOfAnAnswerSaysWhenToAskAgain(t *testing.T) {
	for missed, after := range map[bool]string{true: "1", false: ""} {
		e := policedEdge(t, func(*policy.Input) policy.Decision { return policy.Decision{Missed: missed, Reasons: []string{"x"}} })
		w := e.do(ask{caller: "viewer", method: "GET", path: "/v1/discovery/shop/cart"})
		if w.Code != 403 || !strings.Contains(w.Body.String(), `"policy_denied"`) {
			t.Errorf("missed %t: %d %s", missed, w.Code, w.Body)
		}
		if got := w.Header().Get("Retry-After"); got != after {
			t.Errorf("missed %t: Retry-After is %q", missed, got)
		}
	}
}
