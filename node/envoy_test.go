package node_test

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	descriptorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/muster-registry/muster/fault"
)

// proxyPolicy lets GET pass, and others with a scope in their token's place.
const proxyPolicy = `package api.security.authz
import rego.v1
default allow := false
allow if input.attributes.request.http.method == "GET"
allow if input.token == "writer"
allow if input.parsed_body.amount < 100
deny contains "the vault is closed" if input.path[0] == "vault"
deny contains "slow" if { input.path[0] == "slow"; some i in numbers.range(1, 100000000); i < 0 }
headers := {"X-Caller": input.principal.id, "X-List": ["a", "b"]}
http_status := 401 if { not allow; input.token == "" }
body := "{\"error\":\"no\"}"
dynamic_metadata := {"team": input.resource.metadata.team, "decision_id": "mine"}
response_headers_to_add := {"x-decided": "yes"}
request_headers_to_remove := ["x-secret"]
query_parameters_to_set := {"seen": "1"}
query_parameters_to_remove := ["debug"]
`

func checkRequest(method, path string, change ...func(*authv3.AttributeContext)) *authv3.CheckRequest {
	a := &authv3.AttributeContext{
		Source: &authv3.AttributeContext_Peer{Principal: "spiffe://muster/ns/shop/sa/web", Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{Address: "10.1.2.3"}}}},
		Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
			Id: "1", Method: method, Path: path, Host: "payments.example", Scheme: "https", Protocol: "HTTP/1.1", Headers: map[string]string{":path": path, "accept": "*/*"},
		}},
		ContextExtensions: map[string]string{"namespace": "shop", "service": "payments"},
	}
	for _, c := range change {
		c(a)
	}
	return &authv3.CheckRequest{Attributes: a}
}

func withBody(media, body string) func(*authv3.AttributeContext) {
	return func(a *authv3.AttributeContext) {
		h := a.Request.Http
		h.Headers["content-type"], h.Headers["content-length"], h.Body = media, fmt.Sprint(len(body)), body
	}
}

// A proxy's question goes through any of three nodes to the cluster's policy,
// and comes back as Envoy takes it.
func TestExternalAuthorization(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	tr.startAll()
	e := newEdge(t, tr)
	e.mustDo(t, "PUT", "/v1/namespaces/shop/services/payments", `{"protocol":"rest","owner":"x","metadata":{"team":"checkout"}}`)
	push, err := json.Marshal(map[string]any{"modules": map[string]string{
		"authz.rego": proxyPolicy, "other.rego": "package envoy.authz\nallow := {\"allowed\": input.method == \"PUT\", \"http_status\": 302, \"headers\": {\"location\": \"/login\"}}\n",
		"broken.rego": "package broken\nallow := true\nheaders := {\"a\": 1}\n",
	}})
	must(t, err)
	e.mustDo(t, "POST", "/v1/policy/revisions?activate=true", string(push))
	through := func(node int) authv3.AuthorizationClient {
		return authv3.NewAuthorizationClient(e.dialRPC(t, node, &tls.Config{}))
	}
	elsewhere := e.credential(t, "viewer", "bank")
	e.each(t, func(t *testing.T, node int) {
		c, ctx := through(node), e.context(t)
		foreign := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+elsewhere)
		ok, err := c.Check(ctx, checkRequest("GET", "/v1/items?debug=1"))
		must(t, err)
		r := ok.GetOkResponse()
		if ok.Status.Code != 0 || r == nil || len(r.Headers) != 3 || r.Headers[0].Header.Key != "x-caller" || r.Headers[0].Header.Value != "spiffe://muster/ns/shop/sa/web" ||
			strings.Contains(r.Headers[1].String(), "append") || !strings.Contains(r.Headers[2].String(), "append") {
			t.Errorf("%v", ok)
		}
		if r.GetHeadersToRemove()[0] != "x-secret" || r.GetResponseHeadersToAdd()[0].Header.Key != "x-decided" || r.GetQueryParametersToSet()[0].Key != "seen" || r.GetQueryParametersToRemove()[0] != "debug" {
			t.Errorf("%v", ok)
		}
		m := ok.GetDynamicMetadata().GetFields()
		if m["team"].GetStringValue() != "checkout" || m["policy_revision"].GetNumberValue() < 1 {
			t.Errorf("%v", m)
		}
		// The decision is on record under the id that Envoy logs, and comes out the same again.
		id := m["decision_id"].GetStringValue()
		report := e.send(t, node, "HTTP/2.0", call{method: "GET", path: "/v1/decisions/" + id + "?explain=rules"})
		if s := string(report.body); report.status != 200 || !strings.Contains(s, `"same":true`) || !strings.Contains(s, `"entrypoint":"api/security/authz"`) || !strings.Contains(s, `10.1.2.3`) {
			t.Errorf("%s", s)
		}
		for name, c := range map[string]struct {
			req    *authv3.CheckRequest
			status int32 // of the answer to the caller; 0: it may pass
			detail string
		}{
			"no token":      {checkRequest("POST", "/v1/items"), 401, "is false"},
			"a good token":  {checkRequest("POST", "/v1/items", func(a *authv3.AttributeContext) { a.Request.Http.Headers["authorization"] = "Bearer writer" }), 0, ""},
			"another token": {checkRequest("POST", "/v1/items", func(a *authv3.AttributeContext) { a.Request.Http.Headers["authorization"] = "Bearer reader" }), 403, "is false"},
			"raw headers": {checkRequest("POST", "/v1/items", func(a *authv3.AttributeContext) {
				a.Request.Http.Headers = nil
				a.Request.Http.HeaderMap = &corev3.HeaderMap{Headers: []*corev3.HeaderValue{{Key: "authorization", RawValue: []byte("Bearer writer")}}}
			}), 0, ""},
			"denied":             {checkRequest("GET", "/vault/1"), 403, "the vault is closed"},
			"escaped":            {checkRequest("GET", "/%76ault/1"), 403, "the vault is closed"},
			"a body":             {checkRequest("POST", "/pay", withBody("application/json", `{"amount":99}`)), 0, ""},
			"a body too much":    {checkRequest("POST", "/pay", withBody("application/json", `{"amount":100}`)), 401, "is false"},
			"half a body":        {checkRequest("POST", "/pay", withBody("application/json", `{"amount":1}`), func(a *authv3.AttributeContext) { a.Request.Http.Headers["content-length"] = "99" }), 401, "is false"},
			"a body twice over":  {checkRequest("POST", "/pay", withBody("application/json", `{"amount":1,"amount":1000}`)), 400, "twice"},
			"not a body":         {checkRequest("POST", "/pay", withBody("application/json", `{"amount`)), 400, "JSON"},
			"dots":               {checkRequest("GET", "/v1/../vault/1"), 400, "bad_path"},
			"escaped dots":       {checkRequest("GET", "/v1/%2e%2e/vault/1"), 400, "bad_path"},
			"two slashes":        {checkRequest("GET", "/v1//vault"), 400, "bad_path"},
			"first two slashes":  {checkRequest("GET", "//vault/1"), 400, "bad_path"},
			"an escaped slash":   {checkRequest("GET", "/v1%2Fvault"), 400, "bad_path"},
			"a backslash":        {checkRequest("GET", `/v1\vault`), 400, "bad_path"},
			"escaped backslash":  {checkRequest("GET", `/v1%5cvault`), 400, "bad_path"},
			"a parameter":        {checkRequest("GET", "/vault;a=1/1"), 400, "bad_path"},
			"NUL":                {checkRequest("GET", "/vault%00/1"), 400, "bad_path"},
			"not UTF-8":          {checkRequest("GET", "/vault%ff/1"), 400, "bad_path"},
			"a whole URL":        {checkRequest("GET", "https://example.org/vault/1"), 400, "bad_path"},
			"no path":            {checkRequest("GET", ""), 400, "bad_path"},
			"another entry":      {checkRequest("PUT", "/x", entry("envoy/authz")), 0, ""},
			"and it says no":     {checkRequest("GET", "/x", entry("envoy/authz")), 302, ""},
			"a rule as entry":    {checkRequest("GET", "/x", entry("envoy/authz/allow")), 302, ""},
			"no such entry":      {checkRequest("GET", "/x", entry("none/such")), 403, "nothing is defined"},
			"headers of numbers": {checkRequest("GET", "/x", entry("broken")), 403, "headers"},
			"too slow":           {checkRequest("GET", "/slow"), 403, "cut off"},
		} {
			res, err := through(node).Check(ctx, c.req)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			denied := int32(res.GetDeniedResponse().GetStatus().GetCode())
			if denied != c.status || (res.Status.Code == 0) != (c.status == 0) || !strings.Contains(res.Status.Message, c.detail) {
				t.Errorf("%s: %v", name, res)
			}
			if decided := res.DynamicMetadata.GetFields()["decision_id"].GetStringValue(); (decided == "" || decided == "mine") != (c.status == 400) {
				t.Errorf("%s has no decision of its own: %v", name, res)
			}
		}
		if res, err := c.Check(ctx, checkRequest("GET", "/x", entry("envoy/authz"))); err != nil || res.GetDeniedResponse().Headers[0].Header.Value != "/login" {
			t.Errorf("%v %v", res, err)
		}
		if _, err := c.Check(ctx, checkRequest("GET", "/x", entry(`x"]; true`))); status.Code(err) != codes.InvalidArgument {
			t.Errorf("an entry point that is none: %v", err)
		}
		if _, err := c.Check(ctx, &authv3.CheckRequest{}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("no request: %v", err)
		}
		if _, err := c.Check(ctx, checkRequest("POST", "/big", withBody("text/plain", strings.Repeat("x", 5<<20)))); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("a body above the limit: %v", status.Code(err))
		}
		if _, err := c.Check(foreign, checkRequest("GET", "/v1/items")); status.Code(err) != codes.PermissionDenied {
			t.Errorf("about a service of another namespace than the caller's: %v", err)
		}
		if _, err := c.Check(t.Context(), checkRequest("GET", "/")); status.Code(err) != codes.Unauthenticated {
			t.Errorf("nobody: %v", err)
		}
	})
	// Two nodes gone, the third answers from what it knows, as long as it may.
	leader := e.leader(t)
	for i := range tr.nodes {
		if i != (leader+1)%3 {
			tr.stop(i)
		}
	}
	left := (leader + 1) % 3
	if res, err := through(left).Check(e.context(t), checkRequest("GET", "/")); err != nil || res.Status.Code != 0 {
		t.Errorf("%v %v", res, err)
	}
}

func entry(path string) func(*authv3.AttributeContext) {
	return func(a *authv3.AttributeContext) { a.ContextExtensions = map[string]string{"entrypoint": path} }
}

func limited(domain string, entries ...string) *ratelimitv3.RateLimitRequest {
	d := new(descriptorv3.RateLimitDescriptor)
	for i := 0; i < len(entries); i += 2 {
		d.Entries = append(d.Entries, &descriptorv3.RateLimitDescriptor_Entry{Key: entries[i], Value: entries[i+1]})
	}
	return &ratelimitv3.RateLimitRequest{Domain: domain, Descriptors: []*descriptorv3.RateLimitDescriptor{d}}
}

// Envoy's rate limit service spends the same quotas as the call over REST.
func TestEnvoyRateLimit(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	tr.startAll()
	e := newEdge(t, tr)
	e.mustDo(t, "PUT", "/v1/quotas", `{"quota_management":{"backend":"embedded","overrides":[
		{"service_id":"slow","namespace":"shop","requests_per_second":0.5,"burst_capacity":3},
		{"principal":"spiffe://muster/batch","requests_per_second":0.05,"burst_capacity":5}]}}`)
	ask := func(node int, req *ratelimitv3.RateLimitRequest) (*ratelimitv3.RateLimitResponse, error) {
		return ratelimitv3.NewRateLimitServiceClient(e.dialRPC(t, node, &tls.Config{})).ShouldRateLimit(e.context(t), req)
	}
	must1 := func(r *ratelimitv3.RateLimitResponse, err error) *ratelimitv3.RateLimitResponse {
		t.Helper()
		must(t, err)
		return r
	}
	const ok, over = ratelimitv3.RateLimitResponse_OK, ratelimitv3.RateLimitResponse_OVER_LIMIT
	follower := (e.leader(t) + 1) % 3
	slow := limited("shop", "generic_key", "slow")
	slow.HitsAddend = 2
	// What is spent over gRPC is gone for REST, and the other way round.
	tr.eventually("one count for both", func() error {
		r, err := ask(follower, slow)
		if err != nil {
			return err
		}
		if l := r.Statuses[0].CurrentLimit; r.OverallCode != ok || l.GetName() != "service" || l.Unit != ratelimitv3.RateLimitResponse_RateLimit_MINUTE || l.RequestsPerUnit != 30 ||
			r.ResponseHeadersToAdd[0].Key != "ratelimit-policy" || r.ResponseHeadersToAdd[0].Value != `"service";q=3;w=6` {
			return fmt.Errorf("%v", r)
		}
		a := e.send(t, follower, "HTTP/2.0", call{method: "POST", path: "/v1/quota/check", body: strings.NewReader(`{"service_id":"slow","namespace":"shop","hits":2}`), header: []string{"Content-Type", "application/json", "Authorization", "Bearer " + tr.token}})
		if a.status != 429 {
			return fmt.Errorf("over REST %d", a.status)
		}
		if r, err = ask(follower, slow); err != nil || r.OverallCode != over || r.Statuses[0].Code != over || r.Statuses[0].DurationUntilReset.AsDuration() <= 0 ||
			r.ResponseHeadersToAdd[2].Key != "retry-after" {
			return fmt.Errorf("%v %v", r, err)
		}
		return nil
	})
	// One of two descriptors over its limit is enough.
	two := limited("shop", "service_id", "free")
	two.Descriptors = append(two.Descriptors, limited("shop", "service_id", "slow").Descriptors...)
	two.Descriptors[1].HitsAddend = wrapperspb.UInt64(3)
	tr.eventually("one of two over its limit", func() error {
		if r := must1(ask(follower, two)); r.OverallCode != over || r.Statuses[0].Code != ok || r.Statuses[0].CurrentLimit != nil || r.Statuses[1].Code != over {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	batch := limited("shop", "service_id", "free", "principal", "spiffe://muster/batch")
	batch.Descriptors[0].HitsAddend = wrapperspb.UInt64(2)
	if r := must1(ask(follower, batch)); r.Statuses[0].CurrentLimit.GetName() != "principal" || r.Statuses[0].CurrentLimit.RequestsPerUnit != 3 {
		t.Errorf("%v", r)
	}
	for name, bad := range map[string]*ratelimitv3.RateLimitRequest{
		"no descriptor":  {Domain: "shop"},
		"no service":     limited("shop", "principal", "x"),
		"an unknown key": limited("shop", "service_id", "a", "remote_address", "10.0.0.1"),
		"two services":   limited("shop", "service_id", "a", "generic_key", "b"),
		"a bad name":     limited("shop", "service_id", "a\x01"),
		"too many hits":  {Domain: "shop", HitsAddend: 2_000_000, Descriptors: limited("", "service_id", "a").Descriptors},
		"no hits":        {Domain: "shop", Descriptors: []*descriptorv3.RateLimitDescriptor{{Entries: limited("", "service_id", "a").Descriptors[0].Entries, HitsAddend: wrapperspb.UInt64(0)}}},
		"a limit of its own": {Domain: "shop", Descriptors: []*descriptorv3.RateLimitDescriptor{{Entries: limited("", "service_id", "a").Descriptors[0].Entries,
			Limit: &descriptorv3.RateLimitDescriptor_RateLimitOverride{RequestsPerUnit: 1}}}},
	} {
		_, err := ask(follower, bad)
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if p := problemOf(t, err); p.Code != string(fault.InvalidField) {
			t.Errorf("%s: %v", name, p)
		}
	}
	viewer := e.credential(t, "viewer")
	_, err := ratelimitv3.NewRateLimitServiceClient(e.dialRPC(t, 0, &tls.Config{})).ShouldRateLimit(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+viewer), limited("shop", "service_id", "a"))
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("viewer: %v", err)
	}
}
