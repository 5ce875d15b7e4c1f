package node

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/muster-registry/muster/policy"
)

// The figures about policies have good names, apart from those that an OPA
// has, and are there before anything has happened.
func TestMetricsOfPolicies(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := &metrics{reg: reg}
	compiled := m.engineWatched()
	reg.MustRegister(&revisions{policies: policy.NewTable, desc: revisionsDesc})
	problems, err := testutil.GatherAndLint(reg)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if !strings.HasPrefix(p.Metric, "opa_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	compiled(2*time.Millisecond, nil)
	compiled(3*time.Millisecond, errors.New("wrong"))
	if err := testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP opa_perf_timer_rego_query_compile_ns Time that the last compilation of a policy took, in nanoseconds.
# TYPE opa_perf_timer_rego_query_compile_ns gauge
opa_perf_timer_rego_query_compile_ns 3e+06
# HELP opa_policy_checkpoint_failure Policies that did not compile on this node, pushed or active.
# TYPE opa_policy_checkpoint_failure counter
opa_policy_checkpoint_failure 1
# HELP muster_policy_revisions Policy revisions in the local state, by their state.
# TYPE muster_policy_revisions gauge
muster_policy_revisions{state="active"} 0
muster_policy_revisions{state="retired"} 0
muster_policy_revisions{state="shadow"} 0
muster_policy_revisions{state="staged"} 0
`), "opa_perf_timer_rego_query_compile_ns", "opa_policy_checkpoint_failure", "muster_policy_revisions"); err != nil {
		t.Error(err)
	}
}
