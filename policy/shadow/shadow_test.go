package shadow_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/rego"
	"github.com/muster-registry/muster/policy/shadow"
)

// history is a table under change.
type history struct {
	t     *testing.T
	txn   *policy.Txn
	clock uint64
}

func newHistory(t *testing.T) *history { return &history{t: t, txn: policy.NewTable().Txn(nil)} }

func (h *history) stamp() policy.Stamp {
	h.clock++
	return policy.Stamp{Revision: h.clock, Time: time.Unix(int64(h.clock), 0), By: "ci"}
}

func (h *history) must(r *policy.Revision, err error) uint64 {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
	return r.Number
}

func (h *history) stage(module string) uint64 {
	h.t.Helper()
	c := &policy.Content{Modules: map[string]string{"authz.rego": module}}
	if err := c.Normalize(); err != nil {
		h.t.Fatal(err)
	}
	return h.must(h.txn.Stage(h.stamp(), policy.Draft{Content: c.Encode(), Digest: c.Digest(), Report: policy.Report{}.Encode()}))
}

func (h *history) activate(number uint64) {
	h.t.Helper()
	h.must(h.txn.Activate(h.stamp(), number, h.txn.Active(), false))
}

func (h *history) shadow(number uint64, share float64) {
	h.t.Helper()
	h.must(h.txn.Shadow(h.stamp(), number, share))
}

// module is a policy of one package for look-ups and writes.
func module(pkg, rules string) string { return "package " + pkg + "\n\n" + rules + "\n" }

// trial is a shadow over a real engine.
type trial struct {
	*history
	engine *rego.Engine
	s      *shadow.Shadow
}

func newTrial(t *testing.T, o shadow.Options) *trial {
	x := &trial{history: newHistory(t), engine: rego.New(rego.Options{Limit: 10 * time.Second})}
	t.Cleanup(x.engine.Close)
	o.Engine = x.engine
	x.s = shadow.New(o)
	return x
}

// run evaluates in the background until the test ends.
func (x *trial) run() {
	ctx, cancel := context.WithCancel(x.t.Context())
	var done sync.WaitGroup
	done.Go(func() { x.s.Run(ctx) })
	x.t.Cleanup(func() { cancel(); done.Wait() })
}

func (x *trial) follow() { x.s.Follow(x.txn.Commit()) }

// decide answers as a node does and tells the shadow.
func (x *trial) decide(in *policy.Input) policy.Decision {
	active := x.txn.Commit().Active()
	d := x.engine.Decide(x.t.Context(), active, in)
	x.s.Decided(active, &policy.Question{Input: in}, &d, time.Millisecond)
	return d
}

// settled waits until so many decisions were evaluated.
func (x *trial) settled(evaluated uint64) *policy.Impact {
	x.t.Helper()
	deadline := time.After(time.Minute)
	for {
		if i := x.s.Impact(); i != nil && i.Evaluated >= evaluated {
			return i
		}
		select {
		case <-time.After(time.Millisecond):
		case <-deadline:
			x.t.Fatalf("not evaluated in time: %+v", x.s.Impact())
		}
	}
}

func about(name string) *policy.Input {
	return &policy.Input{
		Action: policy.Lookup, Time: time.Unix(1700000000, 0), Token: "secret", Headers: map[string]string{"Authorization": "Bearer secret"},
		Resource: policy.Resource{Kind: "service", Namespace: "default", Name: name, Payload: []byte(`{"a":1,"b":{"c":2}}`)},
	}
}

const before = `default allow := false
allow if not input.resource.name in {"b", "c", "d"}
deny contains "never c" if input.resource.name == "c"
filtered := object.remove(input.resource.payload, ["a"]) if input.resource.name == "f"`

const after = `default allow := false
allow if not input.resource.name in {"a", "c", "d"}
deny contains "c is out" if input.resource.name == "c"
deny contains "closed" if input.resource.name == "a"
filtered := {"b": {"c": 3}} if input.resource.name == "f"
allow if { input.resource.name == "slow"; count([1 | some i in numbers.range(1, 5000); some j in numbers.range(1, 5000); i == j]) > 0 }
deny contains "slow" if { input.resource.name == "slow"; count([1 | some i in numbers.range(1, 5000); some j in numbers.range(1, 5000); i == j]) == 0 }`

func TestDifferencesAreCountedByKindAndReason(t *testing.T) {
	mask := func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("secret"), []byte("***")) }
	x := newTrial(t, shadow.Options{Mask: mask, Limit: time.Minute})
	reg := prometheus.NewRegistry()
	reg.MustRegister(x.s.Collectors()...)
	x.activate(x.stage(module("api.security.authz", before)))
	x.shadow(x.stage(module("api.security.authz", after)), 1)
	x.follow()
	x.run()
	names := []string{"a", "a", "b", "c", "d", "e", "f", "slow"}
	for _, name := range names {
		x.decide(about(name))
	}
	raw := []byte(`{"action":"lookup","resource":{"name":"b"}}`)
	active := x.txn.Commit().Active()
	d, err := x.engine.DecideRaw(t.Context(), active, "", raw)
	if err != nil {
		t.Fatal(err)
	}
	x.s.Decided(active, &policy.Question{Raw: raw}, &d, 0)

	i := x.settled(uint64(len(names)) + 1)
	if i.Revision != 2 || i.Active != 1 || i.Share != 1 || i.Since.IsZero() || i.Dropped != 0 || len(i.Nodes) != 1 {
		t.Errorf("%+v", i)
	}
	got := map[string]uint64{}
	for _, d := range i.Differences {
		if d.EntryPoint != policy.DefaultLookup {
			t.Errorf("entry point %q", d.EntryPoint)
		}
		reason := d.Reason
		if d.Kind == policy.DiffersByError {
			reason = ""
		}
		got[string(d.Kind)+": "+reason] += d.Count
		for _, e := range d.Examples {
			if e.DecisionID == "" || e.Time.IsZero() || e.Active.PolicyRevision != 1 || e.Shadow.PolicyRevision != 2 {
				t.Errorf("example %+v", e)
			}
			if !bytes.Contains(e.Input, []byte("lookup")) || bytes.Contains(e.Input, []byte("secret")) {
				t.Errorf("input %s", e.Input)
			}
			if d.Kind == policy.DiffersByFiltered && strings.Join(e.Filtered, " ") != "/b/c" {
				t.Errorf("filtered differs at %q", e.Filtered)
			}
		}
	}
	want := map[string]uint64{
		"would_deny: closed": 2,
		"would_allow: data.api.security.authz.allow is false: no rule allows this": 2,
		"reasons: c is out": 1, "filtered: ": 1, "error: ": 1,
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	expected := `# HELP muster_policy_shadow_differences_total Decisions on which the shadow revision differs, by entry point and kind.
# TYPE muster_policy_shadow_differences_total counter
muster_policy_shadow_differences_total{entry_point="api/security/authz",kind="error"} 1
muster_policy_shadow_differences_total{entry_point="api/security/authz",kind="filtered"} 1
muster_policy_shadow_differences_total{entry_point="api/security/authz",kind="reasons"} 1
muster_policy_shadow_differences_total{entry_point="api/security/authz",kind="would_allow"} 2
muster_policy_shadow_differences_total{entry_point="api/security/authz",kind="would_deny"} 2
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(expected), "muster_policy_shadow_differences_total"); err != nil {
		t.Error(err)
	}
}

// The document asked about is the one of the decision, even when the caller
// goes on to use it for the next resource.
func TestTheQuestionIsKeptAsItWas(t *testing.T) {
	x := newTrial(t, shadow.Options{Mask: func(b []byte) []byte { return b }})
	x.activate(x.stage(module("api.security.authz", before)))
	x.shadow(x.stage(module("api.security.authz", after)), 1)
	x.follow()
	in := about("a")
	x.decide(in)
	in.Resource = policy.Resource{Name: "e"}
	x.run()
	i := x.settled(1)
	if len(i.Differences) != 1 || i.Differences[0].Kind != policy.WouldDeny || !strings.Contains(string(i.Differences[0].Examples[0].Input), `"name":"a"`) {
		t.Errorf("%+v", i.Differences)
	}
}

func TestWhatIsTooMuchIsDroppedAndCounted(t *testing.T) {
	for name, o := range map[string]shadow.Options{"in number": {Queue: 3}, "in bytes": {Bytes: 60}} {
		t.Run(name, func(t *testing.T) {
			x := newTrial(t, o) // nothing evaluates
			x.activate(x.stage(module("api.security.authz", before)))
			x.shadow(x.stage(module("api.security.authz", after)), 1)
			x.follow()
			for range 10 {
				x.decide(about("a"))
			}
			if i := x.s.Impact(); i.Dropped != 7 || i.Evaluated != 0 || i.Nodes[0].Dropped != 7 {
				t.Errorf("%+v", i)
			}
			x.run()
			x.settled(3)
			x.decide(about("a")) // there is room again
			if i := x.settled(4); i.Dropped != 7 {
				t.Errorf("%+v", i)
			}
		})
	}
}

func TestFiguresBeginAnewWithWhatTheyCompare(t *testing.T) {
	x := newTrial(t, shadow.Options{})
	one, two := x.stage(module("api.security.authz", before)), x.stage(module("api.security.authz", after))
	x.follow()
	if x.s.Impact() != nil {
		t.Error("figures without a shadow")
	}
	x.decide(about("a")) // no policy yet: it is asked in vain
	x.shadow(two, 1)
	x.follow()
	x.run()
	x.decide(about("a"))
	if i := x.settled(1); i.Active != 0 || len(i.Differences) != 1 || i.Differences[0].Kind != policy.WouldDeny {
		t.Errorf("beside no policy: %+v", i)
	}
	x.activate(one)
	x.follow()
	if i := x.s.Impact(); i.Active != one || i.Evaluated != 0 {
		t.Errorf("after an activation: %+v", i)
	}
	x.decide(about("e"))
	x.settled(1)
	x.stage(module("other", "x := 1"))
	x.follow()
	if i := x.s.Impact(); i.Evaluated != 1 {
		t.Errorf("a staged revision has nothing to do with it: %+v", i)
	}
	x.shadow(two, 0.5)
	x.follow()
	if i := x.s.Impact(); i.Evaluated != 0 || i.Share != 0.5 {
		t.Errorf("with another share: %+v", i)
	}
	x.activate(two)
	x.follow()
	if x.s.Impact() != nil {
		t.Error("figures after the shadow has become active")
	}
}

// A decision by a revision that is no longer active says nothing.
func TestOnlyTheActiveRevisionIsComparedWith(t *testing.T) {
	x := newTrial(t, shadow.Options{Queue: 1})
	one, two := x.stage(module("api.security.authz", before)), x.stage(module("api.security.authz", after))
	x.activate(one)
	old := x.txn.Commit().Active()
	x.activate(x.stage(module("api.security.authz", "default allow := true")))
	x.shadow(two, 1)
	x.follow()
	for range 3 {
		x.s.Decided(old, &policy.Question{Input: about("a")}, &policy.Decision{ID: "d", Allow: true, PolicyRevision: one}, 0)
	}
	if i := x.s.Impact(); i.Dropped != 0 {
		t.Errorf("%+v", i)
	}
}

func TestAShadowThatDoesNotCompileSaysSo(t *testing.T) {
	x := newTrial(t, shadow.Options{})
	x.activate(x.stage(module("api.security.authz", before)))
	x.shadow(x.stage(module("api.security.authz", "allow if nothing_defines_this(1)")), 1)
	x.follow()
	x.run()
	x.decide(about("a"))
	deadline := time.Now().Add(time.Minute)
	for x.s.Impact().Nodes[0].Problem == "" {
		if time.Now().After(deadline) {
			t.Fatal("no problem is told")
		}
		select {
		case <-time.After(time.Millisecond):
		case <-t.Context().Done():
		}
	}
	if i := x.s.Impact(); i.Evaluated != 0 || !strings.Contains(i.Nodes[0].Problem, "nothing_defines_this") {
		t.Errorf("%+v", i)
	}
}

func TestTheShareIsKept(t *testing.T) {
	x := newTrial(t, shadow.Options{Queue: 1})
	one, two := x.stage(module("api.security.authz", before)), x.stage(module("api.security.authz", after))
	x.activate(one)
	active := x.txn.Commit().Active()
	const asked = 20_000
	taken := func(share float64, prefix string) uint64 {
		x.shadow(two, share)
		x.follow()
		for n := range asked {
			x.s.Decided(active, &policy.Question{Input: about("a")}, &policy.Decision{ID: fmt.Sprintf("%s-%d", prefix, n), Allow: true, PolicyRevision: one}, 0)
		}
		return x.s.Impact().Dropped // the queue is full
	}
	taken(1, "fill")
	for _, share := range []float64{0.01, 0.1, 0.5} {
		n := taken(share, "0198f3c2-7e7a-7cc1-9d5e-1234567890")
		if want := share * asked; float64(n) < 0.8*want || float64(n) > 1.2*want {
			t.Errorf("share %v took %d of %d", share, n, asked)
		}
		if again := taken(share, "0198f3c2-7e7a-7cc1-9d5e-1234567890"); again != n {
			t.Errorf("the same decisions: %d, then %d", n, again)
		}
	}
	if n := taken(1, "all"); n != asked {
		t.Errorf("share 1 took %d of %d", n, asked)
	}
}

func BenchmarkDecided(b *testing.B) {
	for _, share := range []float64{0, 0.01, 1} {
		b.Run(fmt.Sprint("share=", share), func(b *testing.B) {
			e := rego.New(rego.Options{})
			defer e.Close()
			s := shadow.New(shadow.Options{Engine: e})
			txn := policy.NewTable().Txn(nil)
			c := &policy.Content{Modules: map[string]string{"a.rego": "package a"}}
			if err := c.Normalize(); err != nil {
				b.Fatal(err)
			}
			if _, err := txn.Stage(policy.Stamp{Revision: 1}, policy.Draft{Content: c.Encode(), Digest: c.Digest(), Report: policy.Report{}.Encode()}); err != nil {
				b.Fatal(err)
			}
			if share > 0 {
				if _, err := txn.Shadow(policy.Stamp{Revision: 2}, 1, share); err != nil {
					b.Fatal(err)
				}
			}
			s.Follow(txn.Commit())
			ctx, cancel := context.WithCancel(b.Context())
			defer cancel()
			go s.Run(ctx)
			in, d := about("a"), &policy.Decision{Allow: true}
			q := &policy.Question{Input: in}
			ids := make([]string, 4096)
			for i := range ids {
				ids[i] = fmt.Sprintf("0198f3c2-7e7a-7cc1-9d5e-%012d", i)
			}
			b.ReportAllocs()
			b.ResetTimer()
			for n := range b.N {
				d.ID = ids[n%len(ids)]
				s.Decided(nil, q, d, 0)
			}
		})
	}
}

// Documents that are asked for by their path, on the policy port, are asked of
// the shadow and made again in a replay as decisions are; queries are not.
func TestDocumentsAreCompared(t *testing.T) {
	x := newTrial(t, shadow.Options{Limit: time.Minute})
	x.activate(x.stage(module("team", "allow := input.who in {\"ann\", \"bob\"}\nlevel := 1 if input.who\nsame := [input.who]\ngone := 1")))
	x.shadow(x.stage(module("team", "allow := input.who == \"ann\"\nlevel := 2 if input.who\nsame := [input.who]")), 1)
	x.follow()
	x.run()
	table := x.txn.Commit()
	active := table.Active()
	var made []*shadow.Made
	ask := func(path, who string) {
		t.Helper()
		q := &policy.Question{Entrypoint: path, Document: true}
		if who != "" {
			q.Raw = fmt.Appendf(nil, `{"who":%q}`, who)
		}
		a, err := x.engine.Document(t.Context(), active, &rego.Ask{Path: path, Body: q.Raw, Envelope: rego.Bare})
		if err != nil {
			t.Fatal(err)
		}
		d := policy.Decision{ID: rego.NewID(), PolicyRevision: 1, Time: time.Now(), EntryPoint: path, Allow: a.Yes, Result: a.Result}
		if !a.Yes {
			d.Reasons = []string{a.Why()}
		}
		x.s.Decided(active, q, &d, 0)
		past := policy.Past{EntryPoint: path, Document: true, Input: q.Raw, Time: d.Time}
		if q.Raw == nil {
			past.Input = []byte("{}")
		}
		made = append(made, &shadow.Made{Past: past, EntryPoint: path, Decision: d})
	}
	for _, who := range []string{"ann", "bob", "eve", ""} {
		ask("team/allow", who)
		ask("team/level", who)
		ask("team/same", who)
	}
	ask("team/gone", "")
	x.s.Decided(active, &policy.Question{Entrypoint: policy.Query, Query: "x = data"}, &policy.Decision{ID: "q", Allow: true, Result: []byte(`[{"x":1}]`)}, 0)

	rev, _ := table.Get(2)
	const want = "[result team/level  3 would_deny team/allow data.team.allow is not true 1 would_deny team/gone data.team.gone is undefined 1]"
	for how, i := range map[string]*policy.Impact{
		"as they happen": x.settled(13),
		"in a replay":    shadow.Replay(t.Context(), x.engine, rev, slices.Values(made), nil),
	} {
		var got []string
		for _, d := range i.Differences {
			got = append(got, fmt.Sprintf("%s %s %s %d", d.Kind, d.EntryPoint, d.Reason, d.Count))
		}
		slices.Sort(got)
		if fmt.Sprint(got) != want || i.Evaluated != 13 || i.Dropped != 0 {
			t.Errorf("%s: %d evaluated, %d dropped: %v\nwant %s", how, i.Evaluated, i.Dropped, got, want)
		}
	}
}
