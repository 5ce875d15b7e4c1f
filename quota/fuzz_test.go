package quota

import (
	"bytes"
	"testing"

	"github.com/muster-registry/muster/fault"
)

// FuzzSpec: a quota document in YAML or JSON; what is taken stays as it is.
func FuzzSpec(f *testing.F) {
	for _, s := range []string{
		"quota_management:\n  backend: redis\n  redis_connection: \"redis://cache:6379\"\n  defaults: {requests_per_second: 500, burst_capacity: 1000}\n  overrides:\n    - {service_id: payment-gateway, requests_per_second: 2000}\n",
		`{"quota_management":{"defaults":{"requests_per_second":1}}}`, "a: &a [*a]", "a: &a [x]\nb: [*a, *a]", "quota_management: {defaults: {requests_per_second: .nan}}", "\xff", "--- a\n--- b\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 64<<10 {
			return
		}
		spec, err := Canonical(b)
		if err != nil {
			if fault.From(err).Code == fault.Internal {
				t.Fatalf("not a refusal: %v", err)
			}
			return
		}
		if again, err := Canonical(spec); err != nil || !bytes.Equal(again, spec) {
			t.Fatalf("%s becomes %s: %v", spec, again, err)
		}
		if _, err := Read(spec); err != nil {
			t.Fatalf("%s was taken and cannot be read: %v", spec, err)
		}
	})
}
