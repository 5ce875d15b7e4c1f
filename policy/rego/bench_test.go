package rego

import (
	"slices"
	"testing"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	oparego "github.com/open-policy-agent/opa/v1/rego"

	"github.com/muster-registry/muster/policy"
)

// The JWT-role policy that the source documents print.
func jwtRole(b *testing.B, change ...func(*Options)) (*Engine, *policy.Revision, *policy.Input) {
	e := engine(b, change...)
	rev := revision(b, "authz.rego", read(b, "testdata", "printed-registry.rego"))
	if err := e.Prepare(b.Context(), rev); err != nil {
		b.Fatal(err)
	}
	in := adminCall()
	in.Time = time.Unix(1700000000, 0)
	if d := e.Decide(b.Context(), rev, in); !d.Allow {
		b.Fatalf("%+v", d)
	}
	return e, rev, in
}

func BenchmarkDecide(b *testing.B) {
	b.Run("evaluated", func(b *testing.B) {
		e, rev, in := jwtRole(b, func(o *Options) { o.CacheTTL = -1 })
		b.ReportAllocs()
		for b.Loop() {
			e.Decide(b.Context(), rev, in)
		}
	})
	b.Run("remembered", func(b *testing.B) {
		e, rev, in := jwtRole(b)
		b.ReportAllocs()
		for b.Loop() {
			e.Decide(b.Context(), rev, in)
		}
	})
	b.Run("remembered look-up", func(b *testing.B) {
		e, _, in := jwtRole(b)
		rev := revision(b, "lookup.rego", read(b, "..", "..", "examples", "policies", "lookup.rego"))
		in.Action, in.Principal.Kind = policy.Lookup, "token"
		if d := e.Decide(b.Context(), rev, in); !d.Allow {
			b.Fatalf("%+v", d)
		}
		b.ReportAllocs()
		for b.Loop() {
			e.Decide(b.Context(), rev, in)
		}
	})
	b.Run("OPA alone, input at hand", func(b *testing.B) {
		_, _, in := jwtRole(b)
		valid := &oparego.Function{Name: schemaBuiltin, Decl: newCatalog(nil).declaration.Decl}
		query, err := oparego.New(oparego.Query("data.api.registry.authz.allow"), oparego.SetRegoVersion(ast.RegoV0),
			oparego.Module("authz.rego", read(b, "testdata", "printed-registry.rego")),
			oparego.Function1(valid, func(oparego.BuiltinContext, *ast.Term) (*ast.Term, error) { return ast.BooleanTerm(true), nil }),
		).PrepareForEval(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		input := document.build(in).Value
		b.ReportAllocs()
		for b.Loop() {
			if r, err := query.Eval(b.Context(), oparego.EvalParsedInput(input)); err != nil || !r.Allowed() {
				b.Fatal(r, err)
			}
		}
	})
	b.Run("evaluated, all processors", func(b *testing.B) {
		e, rev, in := jwtRole(b, func(o *Options) { o.CacheTTL = -1 })
		b.RunParallel(func(p *testing.PB) {
			for p.Next() {
				e.Decide(b.Context(), rev, in)
			}
		})
	})
}

// BenchmarkDocument is the same policy, asked as OPA's data API is: from the
// bytes of a body to the bytes of the answer.
func BenchmarkDocument(b *testing.B) {
	for name, ttl := range map[string]time.Duration{"evaluated": -1, "remembered": time.Hour} {
		b.Run(name, func(b *testing.B) {
			e, rev, in := jwtRole(b, func(o *Options) { o.CacheTTL = ttl })
			body, err := encode(document.build(in))
			if err != nil {
				b.Fatal(err)
			}
			ask := &Ask{Path: "api/registry/authz/allow", Body: []byte(`{"input":` + string(body) + `}`)}
			percentiles(b, func() {
				if a, err := e.Document(b.Context(), rev, ask); err != nil || !a.Yes {
					b.Fatal(a, err)
				}
			})
		})
	}
}

// BenchmarkDecidePercentiles says how long most decisions of the registry take.
func BenchmarkDecidePercentiles(b *testing.B) {
	for name, ttl := range map[string]time.Duration{"evaluated": -1, "remembered": time.Hour} {
		b.Run(name, func(b *testing.B) {
			e, rev, in := jwtRole(b, func(o *Options) { o.CacheTTL = ttl })
			percentiles(b, func() {
				if d := e.Decide(b.Context(), rev, in); !d.Allow {
					b.Fatal(d)
				}
			})
		})
	}
}

// percentiles runs f and reports its median and its 95th percentile.
func percentiles(b *testing.B, f func()) {
	b.Helper()
	b.ReportAllocs()
	took := make([]time.Duration, 0, 1<<20)
	for b.Loop() {
		from := time.Now()
		f()
		took = append(took, time.Since(from))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2]), "p50-ns")
	b.ReportMetric(float64(took[len(took)*95/100]), "p95-ns")
}
