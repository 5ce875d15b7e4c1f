package rest_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/muster-registry/muster/api/rest"
	"github.com/muster-registry/muster/policy"
)

// FuzzRequest: whatever the path, the query and the body, packed or not, the
// answer is one of the interface's: a problem with a code, and never a 500.
func FuzzRequest(f *testing.F) {
	e := newEdge(f, rest.Options{MaxBody: 64 << 10, MaxDefinition: 64 << 10})
	e.raw = func(entrypoint string, _ []byte) (policy.Decision, error) {
		if _, err := policy.EntryPoint(entrypoint); entrypoint != "" && err != nil {
			return policy.Decision{}, err
		}
		return policy.Decision{Reasons: []string{"no"}, ID: "d-9"}, nil
	}
	for _, s := range []struct{ method, target, body string }{
		{"PUT", cart, `{"owner":"shop","tags":["a"]}`},
		{"PUT", cartV1, `{"format":"openapi","document":{"openapi":"3.1.0","info":{"title":"t","version":"1"},"paths":{}}}`},
		{"PUT", cart + "/instances/i1", `{"address":"10.0.0.1","port":80,"ttl":"30s"}`},
		{"GET", "/v1/discovery/default/cart?tag=a&zone=b&max_staleness=5s&index=1&wait=1ms", ""},
		{"POST", "/v1/authorize", `{"input":{"action":"lookup"}}`},
		{"PUT", "/v1/quotas", "quota_management:\n  defaults: {requests_per_second: 500}\n"},
		{"GET", "/v1/%2e%2e//a;b\\c", ""}, {"GET", "/v1/services?page_token=AAAA&limit=0", ""},
		{"POST", "/v1/policy/revisions", `{"modules":{"a.rego":"package a"},"data":{}}`},
		{"POST", "/v1/revocations", `{"kind":"jti","value":"x"}`}, {"PUT", "/v1/webhooks/a", `{"webhook_url":"https://a.example/"}`},
	} {
		f.Add(s.method, s.target, s.body, uint8(0))
		f.Add(s.method, s.target, s.body, uint8(1))
	}
	f.Fuzz(func(t *testing.T, method, target, body string, packed uint8) {
		if len(body) > 32<<10 || len(target) > 4<<10 || strings.Contains(target, "watch") || strings.Contains(target, "wait") {
			return
		}
		u, err := url.ParseRequestURI(target)
		if err != nil || u.Host != "" || !strings.HasPrefix(target, "/") {
			return // a server does not get so far
		}
		switch method {
		case http.MethodGet, http.MethodPut, http.MethodPost, http.MethodDelete, http.MethodHead:
		default:
			return
		}
		h := http.Header{}
		if packed&1 == 1 {
			h.Set("Content-Encoding", "gzip")
			if packed&2 == 0 {
				body = zipped(t, []byte(body))
			}
		}
		r := ask{caller: "operator", method: method, path: "/", body: body, header: h}.request()
		r.URL, r.RequestURI = u, target
		w := httptest.NewRecorder()
		e.api.ServeHTTP(w, r)
		if w.Code < 400 {
			return
		}
		var p struct {
			Code      string `json:"code"`
			RequestID string `json:"request_id"`
		}
		if method != http.MethodHead && (json.Unmarshal(w.Body.Bytes(), &p) != nil || p.Code == "" || p.RequestID == "") {
			t.Fatalf("%s %s: %d %q is not a problem", method, target, w.Code, w.Body)
		}
		if w.Code == 500 {
			t.Fatalf("%s %s: %s", method, target, w.Body)
		}
	})
}
