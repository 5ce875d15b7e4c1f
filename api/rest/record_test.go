package rest_test

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"

	"github.com/muster-registry/muster/api/rest"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/registry"
)

const (
	cart     = "/v1/namespaces/shop/services/cart"
	cartV1   = cart + "/versions/1.0.0"
	cartA    = cart + "/instances/a"
	openapi  = `{"openapi":"3.0.3","info":{"title":"cart","version":"1"},"paths":{"/items":{"get":{"operationId":"list","responses":{"200":{"description":"ok"}}}}}}`
	instance = `{"address":"10.0.0.1","port":8080}`
)

func TestRecordsLiveAndDie(t *testing.T) {
	e := newEdge(t, rest.Options{})
	w := e.call("publisher", "PUT", cart, `{"owner":"team-a","metadata":{"tier":1}}`, 201)
	if w.Header().Get("Location") != cart || w.Header().Get("ETag") != `"1"` || w.Header().Get("Muster-Revision") != "1" {
		t.Errorf("headers %v", w.Header())
	}
	complete(t, w)
	created := w.Body.String()
	got := e.call("viewer", "GET", cart, "", 200)
	if got.Body.String() != created || got.Header().Get("ETag") != `"1"` || got.Header().Get("Content-Type") != "application/json" {
		t.Errorf("GET gave %s %v", got.Body, got.Header())
	}
	complete(t, got)
	// What GET returned can be put back.
	w = e.call("publisher", "PUT", cart, created, 200)
	if w.Header().Get("ETag") != `"2"` || w.Header().Get("Location") != "" {
		t.Errorf("headers %v", w.Header())
	}

	w = e.call("publisher", "PUT", cartV1, `{"format":"openapi","lifecycle":"published","document":`+openapi+`}`, 201)
	var version registry.Version
	if err := json.Unmarshal(w.Body.Bytes(), &version); err != nil {
		t.Fatal(err)
	}
	if len(version.Routes) != 1 || version.Routes[0].Method != "GET" || version.Routes[0].Path != "/items" {
		t.Errorf("routes %v", version.Routes)
	}
	w = e.call("viewer", "GET", cartV1+"/document", "", 200)
	if w.Body.String() != openapi || w.Header().Get("ETag") != `"3"` {
		t.Errorf("the document came back as %s, %v", w.Body, w.Header())
	}
	e.call("publisher", "PUT", cartA, instance, 201)
	e.call("publisher", "POST", cartA+"/heartbeat", "", 204)
	if d := cmp.Diff([]string{"shop/cart/a"}, e.beats); d != "" {
		t.Error(d)
	}
	e.beats = nil
	e.call("publisher", "PUT", cartA, `{"address":"10.0.0.1","port":80,"checks":[{"type":"ttl","id":"service:a"}]}`, 200)
	e.call("publisher", "PUT", cartA+"/checks/service:a", `{"status":"warning","output":"slow"}`, 204)
	refused(t, e.do(ask{caller: "publisher", method: "PUT", path: cartA + "/checks/nothing", body: `{"status":"passing"}`}), 404, fault.NotFound)
	refused(t, e.do(ask{caller: "publisher", method: "PUT", path: cartA + "/checks/service:a", body: `{"status":"maintenance"}`}), 400, fault.InvalidField)
	refused(t, e.do(ask{caller: "publisher", method: "PUT", path: cartA + "/checks/service:a", body: `{"status":"passing","x":1}`}), 400, fault.InvalidField)
	if d := cmp.Diff([]string{"shop/cart/a/service:a warning"}, e.beats); d != "" {
		t.Error(d)
	}
	w = e.call("publisher", "PUT", cartA+"/status", `{"status":"maintenance"}`, 200)
	if !strings.Contains(w.Body.String(), `"status":"maintenance"`) {
		t.Errorf("the status is not set: %s", w.Body)
	}
	e.call("publisher", "DELETE", cartA, "", 204)
	refused(t, e.do(ask{caller: "publisher", method: "POST", path: cartA + "/heartbeat"}), 404, fault.InstanceNotFound)
	refused(t, e.do(ask{caller: "viewer", method: "GET", path: cartA}), 404, fault.InstanceNotFound)
	e.call("publisher", "DELETE", cartV1, "", 204)
	refused(t, e.do(ask{caller: "viewer", method: "GET", path: cartV1}), 404, fault.VersionNotFound)
	refused(t, e.do(ask{caller: "viewer", method: "GET", path: cartV1 + "/document"}), 404, fault.VersionNotFound)
	w = e.call("publisher", "DELETE", cart, "", 204)
	if w.Body.Len() != 0 || w.Header().Get("Muster-Revision") != "9" {
		t.Errorf("%q, %v", w.Body, w.Header())
	}
	for _, path := range []string{cart, cart + "/versions", cart + "/instances", cartV1, cartA, "/v1/discovery/shop/cart"} {
		refused(t, e.do(ask{caller: "viewer", method: "GET", path: path}), 404, fault.ServiceNotFound)
	}
}

func TestInstanceOfAnUnknownService(t *testing.T) {
	e := newEdge(t, rest.Options{})
	refused(t, e.do(ask{caller: "publisher", method: "PUT", path: cartA, body: instance}), 404, fault.ServiceNotFound)
	refused(t, e.do(ask{caller: "publisher", method: "PUT", path: cartA + "?create_service=perhaps", body: instance}), 400, fault.BadRequest)
	e.call("publisher", "PUT", cartA+"?create_service=true", instance, 201)
	e.call("viewer", "GET", cart, "", 200)
}

func TestPreconditions(t *testing.T) {
	e := newEdge(t, rest.Options{})
	put := func(kv ...string) ask {
		return ask{caller: "publisher", method: "PUT", path: cart, body: `{}`, header: header(kv...)}
	}
	if w := e.do(put("If-None-Match", "*")); w.Code != 201 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if p := refused(t, e.do(put("If-None-Match", "*")), 412, fault.RevisionMismatch); p.Current == nil || *p.Current != 1 {
		t.Errorf("current is %v, want 1", p.Current)
	}
	if w := e.do(put("If-Match", `"1"`)); w.Code != 200 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if p := refused(t, e.do(put("If-Match", `"1"`)), 412, fault.RevisionMismatch); p.Current == nil || *p.Current != 2 {
		t.Errorf("current is %v, want 2", p.Current)
	}
	missing := put("If-Match", `"1"`)
	missing.path = "/v1/namespaces/shop/services/other"
	if p := refused(t, e.do(missing), 412, fault.RevisionMismatch); p.Current == nil || *p.Current != 0 {
		t.Errorf("current is %v, want 0", p.Current)
	}
	for _, bad := range [][]string{
		{"If-Match", "1"}, {"If-Match", `"`}, {"If-Match", `""`}, {"If-Match", `1"`}, {"If-Match", `"1`}, {"If-Match", `"01"`}, {"If-Match", `"-1"`},
		{"If-Match", `W/"1"`}, {"If-Match", "*"}, {"If-Match", `"1", "2"`}, {"If-Match", `"1"`, "If-Match", `"2"`}, {"If-Match", `"99999999999999999999"`},
		{"If-None-Match", `"1"`}, {"If-None-Match", "*", "If-Match", `"1"`},
		{"Idempotency-Key", ""}, {"Idempotency-Key", strings.Repeat("k", 256)}, {"Idempotency-Key", "schlüssel"}, {"Idempotency-Key", "a", "Idempotency-Key", "b"},
		{"Muster-Hops", "x"},
	} {
		refused(t, e.do(put(bad...)), 400, fault.BadRequest)
	}
	if r := e.State().Revision; r != 2 {
		t.Errorf("refused changes led to revision %d", r)
	}
}

func TestIntentCarriesTheCall(t *testing.T) {
	e := newEdge(t, rest.Options{})
	do := func(path, body, key string) {
		t.Helper()
		w := e.do(ask{caller: "publisher", method: "PUT", path: path, body: body,
			header: header("Idempotency-Key", key, "X-Internal-Dept", "Engineering", "X-Request-Id", "r-1", "Accept", "a", "Accept", "b")})
		if w.Code >= 300 {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
	}
	do(cart, `{}`, "k1")
	do(cart, `{}`, "k1")
	do(cart, `{"owner":"x"}`, "k1")
	do(cart+"?x=1", `{}`, "k1")
	do(cartV1, `{"format":"openapi","document":`+openapi+`,"revision":9}`, "k2")
	in := e.intents[0]
	if in.IdempotencyKey != "k1" || in.RequestId != "r-1" || in.Principal.Id != "token:publisher" || in.Request.Token != "publisher-token" ||
		in.Request.Method != "PUT" || in.Request.Path != cart || in.Request.Scheme != "https" || in.Request.Host != "muster.test" ||
		in.Request.SourceAddress != "192.0.2.1" ||
		!slices.Equal(pair(in.Request.Headers, "X-Internal-Dept"), []string{"Engineering"}) || !slices.Equal(pair(in.Request.Headers, "Accept"), []string{"a, b"}) {
		t.Errorf("the intent is %v", in)
	}
	digest := func(i int) string { return string(e.intents[i].RequestDigest) }
	if len(digest(0)) != 32 || digest(0) != digest(1) || digest(0) == digest(2) || digest(0) == digest(3) {
		t.Error("the digest does not tell requests apart")
	}
	// A policy sees the definition itself.
	if d := cmp.Diff(openapi, string(e.intents[4].Payload)); d != "" {
		t.Error(d)
	}
	do(cartV1, `{"format":"openapi","content":"openapi: 3.0.3\ninfo: {title: cart, version: \"1\"}\npaths: {}\n"}`, "k3")
	if d := cmp.Diff(`{"openapi":"3.0.3","info":{"title":"cart","version":"1"},"paths":{}}`, string(e.intents[5].Payload)); d != "" {
		t.Error(d)
	}
}

func TestEntityTags(t *testing.T) {
	e := newEdge(t, rest.Options{})
	e.call("publisher", "PUT", cartA+"?create_service=true", instance, 201)
	for _, path := range []string{cart, cartA, "/v1/discovery/shop/cart"} {
		tag := e.call("viewer", "GET", path, "", 200).Header().Get("ETag")
		for given, status := range map[string]int{tag: 304, "W/" + tag: 304, `"77", ` + tag: 304, "*": 304, `"77"`: 200, strings.Trim(tag, `"`): 200} {
			w := e.do(ask{caller: "viewer", method: "GET", path: path, header: header("If-None-Match", given)})
			if w.Code != status || w.Header().Get("ETag") != tag || (status == 304) != (w.Body.Len() == 0) {
				t.Errorf("%s with %s: %d %q, want %d", path, given, w.Code, w.Body, status)
			}
			complete(t, w)
		}
	}
}

func TestListsComeInPages(t *testing.T) {
	e := newEdge(t, rest.Options{})
	for i := range 7 {
		for _, ns := range []string{"shop", "bank"} {
			e.call("publisher", "PUT", fmt.Sprintf("/v1/namespaces/%s/services/s%d", ns, i), `{}`, 201)
		}
		e.call("publisher", "PUT", fmt.Sprintf("%s/instances/i%d?create_service=true", cart, i), instance, 201)
		e.call("publisher", "PUT", fmt.Sprintf("%s/versions/1.%d", cart, i), `{"format":"openapi","document":`+openapi+`}`, 201)
	}
	for path, tc := range map[string]struct {
		caller string
		want   int
	}{
		"/v1/services":                  {"viewer", 15},
		"/v1/namespaces/shop/services":  {"viewer", 8},
		"/v1/namespaces/empty/services": {"viewer", 0},
		cart + "/instances":             {"viewer", 7},
		cart + "/versions":              {"viewer", 7},
		"/v1/discovery":                 {"viewer", 15},
		"/v1/discovery?namespace=bank":  {"viewer", 7},
	} {
		e.TB = t
		for _, limit := range []int{1, 3, 7, 100} {
			seen := map[string]bool{}
			for token, pages := "", 0; ; pages++ {
				join := "?"
				if strings.Contains(path, "?") {
					join = "&"
				}
				w := e.call(tc.caller, "GET", path+join+"limit="+strconv.Itoa(limit)+"&page_token="+token, "", 200)
				var list struct {
					Items []map[string]any
					Next  string `json:"next_page_token"`
					Rev   uint64 `json:"revision"`
				}
				if err := json.Unmarshal(w.Body.Bytes(), &list, json.MatchCaseInsensitiveNames(true)); err != nil {
					t.Fatal(err)
				}
				if list.Items == nil || len(list.Items) > limit || list.Rev != e.State().Revision || pages > 20 {
					t.Fatalf("%s: page %d is %s", path, pages, w.Body)
				}
				for _, item := range list.Items {
					seen[fmt.Sprint(item["namespace"], item["service"], item["name"], item["id"], item["version"])] = true
				}
				if token = list.Next; token == "" {
					break
				}
			}
			if len(seen) != tc.want {
				t.Errorf("%s in pages of %d: %d items, want %d", path, limit, len(seen), tc.want)
			}
		}
	}
	for _, query := range []string{"limit=0", "limit=1001", "limit=x", "limit=-1", "page_token=%21", "page_token=AAAA", "limit=1&limit=2"} {
		refused(t, e.do(ask{caller: "viewer", method: "GET", path: "/v1/services?" + query}), 400, fault.BadRequest)
	}
	// A token belongs to the list that gave it out.
	var list struct {
		Next string `json:"next_page_token"`
	}
	if err := json.Unmarshal(e.call("viewer", "GET", "/v1/services?limit=1", "", 200).Body.Bytes(), &list); err != nil {
		t.Fatal(err)
	}
	refused(t, e.do(ask{caller: "viewer", method: "GET", path: cart + "/versions?page_token=" + list.Next}), 400, fault.BadRequest)
}

func TestDiscovery(t *testing.T) {
	e := newEdge(t, rest.Options{})
	put := func(id, body string) {
		t.Helper()
		e.call("publisher", "PUT", cart+"/instances/"+id+"?create_service=true", body, 201)
	}
	put("a", `{"address":"10.0.0.1","port":1,"zone":"east","tags":["x","y"],"version":"1.0.0"}`)
	put("b", `{"address":"10.0.0.2","port":2,"zone":"west","tags":["x"],"version":"2.0.0"}`)
	put("c", `{"address":"10.0.0.3","port":3,"zone":"east"}`)
	e.call("publisher", "PUT", cart+"/instances/c/status", `{"status":"critical"}`, 200)
	for query, want := range map[string]string{
		"":                      "a b",
		"?status=passing":       "a b",
		"?status=any":           "a b c",
		"?version=2.0.0":        "b",
		"?tag=x":                "a b",
		"?tag=x&tag=y":          "a",
		"?zone=west":            "b a",
		"?status=any&zone=west": "b a c",
		"?tag=&version=&zone=":  "a b",
		"?unknown=1":            "a b",
	} {
		for _, path := range []string{"/v1/discovery/shop/cart" + query, "/v1/discovery?namespace=shop&service=cart" + strings.Replace(query, "?", "&", 1)} {
			w := e.call("viewer", "GET", path, "", 200)
			var d rest.Discovery
			if err := json.Unmarshal(w.Body.Bytes(), &d, json.RejectUnknownMembers(true)); err != nil {
				t.Fatal(err)
			}
			var ids []string
			for _, i := range d.Instances {
				ids = append(ids, i.ID)
			}
			if strings.Join(ids, " ") != want || d.Revision != 4 || d.Namespace != "shop" || d.Service != "cart" {
				t.Errorf("%s: %s, want %s", path, w.Body, want)
			}
			complete(t, w)
		}
	}
	refused(t, e.do(ask{caller: "viewer", method: "GET", path: "/v1/discovery/shop/cart?status=critical"}), 400, fault.BadRequest)
	e.call("publisher", "PUT", "/v1/namespaces/default/services/web", `{}`, 201)
	e.call("viewer", "GET", "/v1/discovery?service=web", "", 200)
	w := e.call("viewer", "GET", "/v1/discovery", "", 200)
	want := `{"items":[{"namespace":"default","service":"web","revision":5,"instances":0,"passing":0},{"namespace":"shop","service":"cart","revision":4,"instances":3,"passing":2}],"next_page_token":"","revision":5}`
	if d := cmp.Diff(want, w.Body.String()); d != "" {
		t.Error(d)
	}
	head := e.call("viewer", http.MethodHead, "/v1/discovery/shop/cart", "", 200)
	if head.Header().Get("ETag") != `"4"` {
		t.Errorf("HEAD gave %v", head.Header())
	}
}

// pair gives the values that follow a name in names and values.
func pair(pairs []string, name string) (values []string) {
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i] == name {
			values = append(values, pairs[i+1])
		}
	}
	return values
}
