package node_test

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A limit of 500 requests a second, for three nodes with everything on one, or
// spread: what is allowed is within a tenth of it, and never what three nodes
// that count for themselves would allow.
func TestTheLimitHoldsForTheCluster(t *testing.T) {
	tr := newTrial(t, 3)
	tr.startAll()
	e := newEdge(t, tr)
	ask := func(node int, method, path, media, body string) *answer {
		return e.send(t, node, "HTTP/2.0", call{method: method, path: path, body: strings.NewReader(body), header: []string{"Content-Type", media}})
	}
	const rate, hits, seconds = 500, 10, 5
	if a := ask(0, "PUT", "/v1/quotas", "application/yaml", `
quota_management:
  backend: embedded
  overrides:
    - {service_id: one, requests_per_second: 500, burst_capacity: 500}
    - {service_id: all, requests_per_second: 500, burst_capacity: 500}
`); a.status != 201 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	e.states(t)
	follower := (e.leader(t) + 1) % 3
	for _, tc := range []struct {
		service string
		nodes   []int
	}{{"one", []int{follower}}, {"all", []int{0, 1, 2}}} {
		var allowed, refused atomic.Int64
		var wg sync.WaitGroup
		begin := time.Now()
		for i := range 6 {
			wg.Go(func() {
				for time.Since(begin) < seconds*time.Second {
					switch a := ask(tc.nodes[i%len(tc.nodes)], "POST", "/v1/quota/check", "application/json", `{"service_id":"`+tc.service+`","hits":10}`); a.status {
					case 200:
						allowed.Add(hits)
					case 429:
						refused.Add(hits)
					default:
						t.Errorf("%d %s", a.status, a.body)
					}
				}
			})
		}
		wg.Wait()
		took := time.Since(begin).Seconds()
		due := rate*took + 500 // the burst comes first
		got := float64(allowed.Load())
		t.Logf("%s: %g allowed of %g due in %.2f s (%.1f %%), %d refused", tc.service, got, due, took, 100*got/due, refused.Load())
		if got > due*1.1 {
			t.Errorf("%s: %g are allowed, %g are due", tc.service, got, due)
		}
		if offered := got + float64(refused.Load()); offered > 1.5*due && got < due*0.9 {
			t.Errorf("%s: of %g offered only %g are allowed, %g are due", tc.service, offered, got, due)
		}
	}
}
