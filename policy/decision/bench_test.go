package decision_test

import (
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/decision"
	"github.com/muster-registry/muster/policy/rego"
)

// BenchmarkLookUps is what keeping decisions costs those who ask: look-ups
// decided by a real policy on all processors, with nobody watching, with the
// log at its default rate, and with all of them kept.
func BenchmarkLookUps(b *testing.B) {
	content := policy.Content{Modules: map[string]string{"a.rego": "package api.security.authz\nallow if input.principal.id == \"ann\"\n"}}
	if err := content.Normalize(); err != nil {
		b.Fatal(err)
	}
	rev := &policy.Revision{Number: 1, Digest: content.Digest(), Content: content}
	for name, rate := range map[string]int{"alone": 0, "logged": 1000, "all": -1} {
		b.Run(name, func(b *testing.B) {
			engine := rego.New(rego.Options{Limit: time.Minute, Logger: slog.New(slog.DiscardHandler)})
			defer engine.Close()
			var decider policy.Decider = engine
			if rate != 0 {
				store, err := decision.OpenStore(b.TempDir(), decision.StoreOptions{})
				if err != nil {
					b.Fatal(err)
				}
				log := decision.NewLog(decision.Options{Store: store, AllowedPerSecond: rate}, decision.NewMetrics(prometheus.NewRegistry()))
				defer log.Close()
				decider = decision.Observed(engine, log)
			}
			b.ReportAllocs()
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					in := &policy.Input{
						Action: policy.Lookup, Time: time.Now(), Method: "GET", RawPath: "/v1/discovery/default/cart", Path: []string{"v1", "discovery", "default", "cart"},
						Headers: map[string]string{"Authorization": "Bearer x"}, Principal: policy.Principal{ID: "ann"}, Resource: policy.Resource{Kind: "service", Name: "cart"},
					}
					if d := decider.Decide(b.Context(), rev, in); !d.Allow {
						b.Fatal(d.Reasons)
					}
				}
			})
		})
	}
}
