package decision

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/muster-registry/muster/policy"
)

// BenchmarkKeep is what one decision costs once it has left its caller: kept
// in the store, and written to a file as an event as well.
func BenchmarkKeep(b *testing.B) {
	token := strings.Repeat("eyJhbGciOiJFUzI1NiIsInR5", 4) + "." + strings.Repeat("eyJpc3MiOiJodHRwczovL2xv", 8) + "." + strings.Repeat("MEUCIQDx", 11)
	input := fmt.Appendf(nil, `{"action":"register","protocol":"https","method":"PUT","path":["v1","namespaces","default","services","cart"],`+
		`"attributes":{"request":{"http":{"method":"PUT","path":"/v1/namespaces/default/services/cart","host":"muster.example","scheme":"https","headers":{"authorization":"Bearer %s","content-type":"application/json"}}},"source":{"address":"10.0.0.7"}},`+
		`"principal":{"id":"ann","kind":"oidc","roles":["publisher"],"namespaces":[]},`+
		`"resource":{"kind":"service","namespace":"default","name":"cart","metadata":{"security_level":"restricted"},"payload":{"openapi":"3.1.0","info":{"title":"cart","version":"1"},"paths":{}},"previous":null}}`, token)
	for name, sinks := range map[string]int{"store": 0, "store and file": 1} {
		for _, allow := range []bool{true, false} {
			b.Run(fmt.Sprintf("%s/allow=%v", name, allow), func(b *testing.B) {
				o := Options{AllowedPerSecond: -1}
				if sinks > 0 {
					f, err := NewFile(filepath.Join(b.TempDir(), "decisions.log"), 100<<20, 1)
					if err != nil {
						b.Fatal(err)
					}
					o.Sinks = []Sink{f}
				}
				l, _ := newLog(b, o)
				batch := make([]asked, 64)
				d := policy.Decision{Allow: allow, PolicyRevision: 7, EntryPoint: "api/registry/authz/allow", Time: time.Now(), Result: []byte("true")}
				if !allow {
					d.Result, d.Reasons, d.Cause = []byte("false"), []string{"data.api.registry.authz.allow is not true"}, policy.NotAllowed
				}
				for i := range batch {
					d.ID = uuid.Must(uuid.NewV7()).String()
					batch[i] = asked{rev: active, question: policy.Question{Entrypoint: d.EntryPoint, Document: true, Raw: input, Call: policy.Call{Source: "127.0.0.1", Principal: "operator"}}, decision: d, took: time.Millisecond}
				}
				b.ReportAllocs()
				w := new(writer)
				for i := 0; i < b.N; i += len(batch) {
					l.keep(w, batch[:min(len(batch), b.N-i)])
				}
			})
		}
	}
}
