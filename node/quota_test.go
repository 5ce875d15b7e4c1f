package node_test

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/muster-registry/muster/fault"
)

// printed is the quotas document as operators know it.
const printed = `
quota_management:
  backend: redis
  redis_connection: "redis://127.0.0.1:1"
  defaults:
    requests_per_second: 500
    burst_capacity: 1000
  overrides:
    - service_id: "payment-gateway"
      requests_per_second: 2000
`

func TestQuotas(t *testing.T) {
	tr := newTrial(t, 3)
	tr.startAll()
	e := newEdge(t, tr)
	leader := e.leader(t)
	follower := (leader + 1) % 3
	do := func(node int, method, path, media, body string) *answer {
		t.Helper()
		return e.send(t, node, "HTTP/2.0", call{method: method, path: path, body: strings.NewReader(body), header: []string{"Content-Type", media}})
	}
	const yaml, js = "application/yaml", "application/json"

	if a := do(follower, "GET", "/v1/quotas", js, ""); a.status != 404 {
		t.Errorf("before: %d %s", a.status, a.body)
	}
	if a := do(follower, "POST", "/v1/quota/check", js, `{"service_id":"a"}`); a.status != 200 || a.header.Get("RateLimit") != "" {
		t.Errorf("without quotas: %d %s", a.status, a.body)
	}
	if a := do(follower, "PUT", "/v1/quotas", yaml, printed); a.status != 201 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	a := do(leader, "GET", "/v1/quotas?consistency=linearizable", js, "")
	if s := string(a.body); a.status != 200 || !strings.Contains(s, `{"service_id":"payment-gateway","requests_per_second":2000,"burst_capacity":2000}`) || !strings.Contains(s, `"backend":"redis"`) {
		t.Errorf("%d %s", a.status, a.body)
	}
	// The Redis is not there: the limits hold all the same, and a metric says so.
	tr.eventually("each node keeps the limits without the Redis", func() error {
		for i := range tr.nodes {
			a := do(i, "POST", "/v1/quota/check", js, `{"service_id":"payment-gateway","hits":3}`)
			if a.header.Get("RateLimit-Policy") != `"service";q=2000;w=1` || !strings.HasPrefix(a.header.Get("RateLimit"), `"service";r=`) {
				return fmt.Errorf("%d %v", a.status, a.header)
			}
			if line, err := tr.metric(i, "muster_quota_backend_up"); err != nil || !strings.HasSuffix(line, " 0") {
				return fmt.Errorf("%q %v", line, err)
			}
		}
		return nil
	})

	bomb := "a: &a [x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c <= 'j'; c++ {
		bomb += fmt.Sprintf("%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c]\n", c, c, c-1, c-1, c-1, c-1, c-1, c-1, c-1, c-1)
	}
	e.each(t, func(t *testing.T, node int) {
		for body, status := range map[string]int{
			bomb: 422, "quota_management: {backend: redis}": 400, "quota_management: {nonsense: 1}": 400, "": 400, "a: [": 400,
			"quota_management: {defaults: {requests_per_second: 5}, defaults: {requests_per_second: 6}}": 400,
			"quota_management: {}\n---\nquota_management: {}":                                            400,
		} {
			if a := do(node, "PUT", "/v1/quotas", yaml, body); a.status != status && !(a.status == 413 && body == bomb) {
				t.Errorf("%.60q: %d %s", body, a.status, a.body)
			}
		}
		for body, code := range map[string]fault.Code{
			`{}`: fault.InvalidField, `{"service_id":"a","hits":0}`: fault.InvalidField, `{"service_id":"a","hits":-1}`: fault.InvalidField,
			`{"service_id":"a/b"}`: fault.InvalidField, `{"service_id":"a","hit":1}`: fault.InvalidField, `{"service_id":"a","hits":1.5}`: fault.InvalidField,
			`{"service_id":"a","hits":1001}`: fault.InvalidField, `{`: fault.BadRequest,
		} {
			if a := do(node, "POST", "/v1/quota/check", js, body); a.Code != code {
				t.Errorf("%s: %d %s", body, a.status, a.body)
			}
		}
	})

	if a := do(leader, "PUT", "/v1/quotas", yaml, strings.Replace(printed, "backend: redis", "backend: embedded", 1)+"    - {service_id: slow, requests_per_second: 40, burst_capacity: 40}\n"); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	e.states(t)
	e.hold(t, follower)

	if a := do(follower, "DELETE", "/v1/quotas", js, ""); a.status != 204 {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// hold offers far more than the limit to one node, and then to all.
func (e *edge) hold(t *testing.T, follower int) {
	t.Helper()
	const rate = 40
	for name, nodes := range map[string][]int{"all on a follower": {follower}, "on all nodes": {0, 1, 2}} {
		var allowed, refused atomic.Int64
		var wg sync.WaitGroup
		begin := time.Now()
		for i := range 9 {
			wg.Go(func() {
				for time.Since(begin) < 3*time.Second {
					a := e.send(t, nodes[i%len(nodes)], "HTTP/2.0", call{method: "POST", path: "/v1/quota/check", body: strings.NewReader(`{"service_id":"slow"}`), header: []string{"Content-Type", "application/json"}})
					switch {
					case a.status == 200:
						allowed.Add(1)
					case a.status == 429 && a.Code == fault.RateLimited && a.header.Get("Retry-After") != "" && a.header.Get("RateLimit-Policy") == `"service";q=40;w=1`:
						refused.Add(1)
					default:
						t.Errorf("%d %s %v", a.status, a.body, a.header)
					}
				}
			})
		}
		wg.Wait()
		most := rate*time.Since(begin).Seconds()*1.1 + 2*rate // the burst, and what a new leader or a lone node may add
		if got := float64(allowed.Load()); got > most || got < rate || (refused.Load() == 0 && got > most/2) {
			t.Errorf("%s: %g are allowed and %d refused, want at most %g", name, got, refused.Load(), most)
		}
		t.Logf("%s: %d allowed, %d refused in %s", name, allowed.Load(), refused.Load(), time.Since(begin))
	}
}
