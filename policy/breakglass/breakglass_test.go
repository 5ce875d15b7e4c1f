package breakglass_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/breakglass"
	"github.com/muster-registry/muster/policy/rego"
	"github.com/muster-registry/muster/setting"
)

func TestBadOpenings(t *testing.T) {
	now := time.Unix(1700000000, 0)
	for body, pointer := range map[string]string{
		`{"ttl":"30m","reason":"x"}`:                                "/namespace",
		`{"namespace":"","ttl":"30m","reason":"x"}`:                 "/namespace",
		`{"namespace":"*","ttl":"30m","reason":"x"}`:                "/namespace",
		`{"namespace":"A b","ttl":"30m","reason":"x"}`:              "/namespace",
		`{"namespace":"bank","ttl":"30m","reason":"x"}`:             "/namespace",
		`{"namespace":"shop","reason":"x"}`:                         "/ttl",
		`{"namespace":"shop","ttl":"0s","reason":"x"}`:              "/ttl",
		`{"namespace":"shop","ttl":"-1h","reason":"x"}`:             "/ttl",
		`{"namespace":"shop","ttl":"24h1s","reason":"x"}`:           "/ttl",
		`{"namespace":"shop","ttl":"forever","reason":"x"}`:         "/ttl",
		`{"namespace":"shop","ttl":"30m"}`:                          "/reason",
		`{"namespace":"shop","ttl":"30m","reason":" "}`:             "/reason",
		`{"namespace":"shop","ttl":"30m","reason":"a\nb"}`:          "/reason",
		`{"namespace":"shop","ttl":"30m","reason":"x","until":"2"}`: "/until",
		`{"namespace":"shop","ttl":30,"reason":"x"}`:                "/ttl",
	} {
		spec, err := breakglass.Canonical("shop", []byte(body), now)
		f, _ := errors.AsType[*fault.Error](err)
		if f == nil || f.Code != fault.InvalidField || f.Fields[0].Pointer != pointer {
			t.Errorf("%s: %v %s, want invalid_field at %s", body, err, spec, pointer)
		}
	}
	spec, err := breakglass.Canonical("shop", []byte(`{"namespace":"shop","ttl":"24h","reason":" payments are down "}`), now)
	if err != nil || string(spec) != `{"ttl":"24h","reason":"payments are down","until":"2023-11-15T22:13:20Z"}` {
		t.Errorf("%v %s", err, spec)
	}
}

// settings is the table that a cluster would replicate.
type settings struct {
	t        *testing.T
	mu       sync.Mutex // guards what follows
	table    *setting.Table
	revision uint64
	refuse   int // removals that fail before one succeeds
	removed  []time.Time
}

func (s *settings) get() *setting.Table {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.table
}

// open opens a namespace as the leader does, from now.
func (s *settings) open(namespace, ttl string, now time.Time) {
	s.t.Helper()
	spec, err := breakglass.Canonical(namespace, []byte(`{"namespace":"`+namespace+`","ttl":"`+ttl+`","reason":"payments are down"}`), now)
	if err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var observed uint64
	if r, ok := s.table.Get(setting.BreakGlass, namespace, namespace); ok {
		observed = r.Revision
	}
	s.revision++
	x := s.table.Txn(nil)
	if _, _, err := x.Put(setting.Stamp{Revision: s.revision, Time: now, By: "ann"}, setting.BreakGlass, namespace, namespace, spec, observed); err != nil {
		s.t.Fatal(err)
	}
	s.table = x.Commit()
}

func (s *settings) remove(_ context.Context, namespace string, revision uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse > 0 {
		s.refuse--
		return fault.New(fault.NoLeader, "none")
	}
	x := s.table.Txn(nil)
	if err := x.Delete(setting.BreakGlass, namespace, namespace, revision); err != nil {
		return err
	}
	s.table = x.Commit()
	s.removed = append(s.removed, time.Now())
	return nil
}

// refusing is a revision that refuses everything.
func refusing(t *testing.T) (policy.Decider, *policy.Revision) {
	t.Helper()
	e := rego.New(rego.Options{Limit: 10 * time.Second, Logger: slog.New(slog.DiscardHandler)})
	t.Cleanup(e.Close)
	c := policy.Content{Modules: map[string]string{"p.rego": "package api.registry.authz\nimport rego.v1\ndefault allow := false\ndeny contains \"frozen\"\n"}}
	if err := c.Normalize(); err != nil {
		t.Fatal(err)
	}
	return e, &policy.Revision{Number: 7, Digest: c.Digest(), Content: c}
}

func TestRefusalsAreLiftedInOneNamespaceForATime(t *testing.T) {
	engine, rev := refusing(t)
	now := time.Now()
	s := &settings{t: t, table: setting.NewTable()}
	s.open("shop", "30m", now)
	var log strings.Builder
	clock := now
	over := now.Add(30*time.Minute + breakglass.Grace)
	o := breakglass.New(s.get, func() time.Time { return clock }, slog.New(slog.NewTextHandler(&log, nil)))
	d := o.Decider(engine)
	ask := func(namespace string, at time.Time) policy.Decision {
		clock = at
		return d.Decide(t.Context(), rev, &policy.Input{Action: policy.Register, Time: now, Principal: policy.Principal{ID: "token:ann"},
			Resource: policy.Resource{Kind: "service", Namespace: namespace, Name: "cart"}})
	}
	got := ask("shop", now)
	if !got.Allow || !got.BreakGlass || got.PolicyRevision != 7 || len(got.Reasons) != 1 || got.Reasons[0] != "frozen" {
		t.Errorf("%+v", got)
	}
	for _, part := range []string{"level=WARN", "break-glass lifted a refusal", "namespace=shop", "principal=token:ann", `break_glass_reason="payments are down"`, got.ID, "frozen"} {
		if !strings.Contains(log.String(), part) {
			t.Errorf("the log lacks %s: %s", part, log.String())
		}
	}
	// It ends with its removal; the node's own clock is the last resort.
	if got := ask("shop", over.Add(-time.Nanosecond)); !got.Allow {
		t.Errorf("%+v", got)
	}
	for _, c := range []struct {
		namespace string
		at        time.Time
	}{{"bank", now}, {"", now}, {"shop", over}, {"shop", now.Add(time.Hour)}} {
		if got := ask(c.namespace, c.at); got.Allow || got.BreakGlass {
			t.Errorf("%+v: %+v", c, got)
		}
	}
	if err := testutil.CollectAndCompare(o.Collectors()[0], strings.NewReader(`
# HELP muster_break_glass_decisions_total Refusals that were lifted on this node because break-glass was open, by namespace.
# TYPE muster_break_glass_decisions_total counter
muster_break_glass_decisions_total{namespace="shop"} 2
`)); err != nil {
		t.Error(err)
	}
	clock = now
	const gauge = "# HELP muster_break_glass_active 1 for each namespace in which break-glass is open.\n# TYPE muster_break_glass_active gauge\n"
	if err := testutil.CollectAndCompare(o.Collectors()[1], strings.NewReader(gauge+"muster_break_glass_active{namespace=\"shop\"} 1\n")); err != nil {
		t.Error(err)
	}
	clock = now.Add(time.Hour)
	if n := testutil.CollectAndCount(o.Collectors()[1]); n != 0 {
		t.Errorf("%d namespaces are open an hour later", n)
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(o.Collectors()...)
	if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
}

func TestQuestionsAboutAGivenInput(t *testing.T) {
	engine, rev := refusing(t)
	now := time.Now()
	s := &settings{t: t, table: setting.NewTable()}
	s.open("shop", "30m", now)
	clock := now
	d := breakglass.New(s.get, func() time.Time { return clock }, slog.New(slog.DiscardHandler)).Decider(engine)
	for _, c := range []struct {
		entrypoint, input string
		lifted            bool
	}{
		{"", `{"action":"register","resource":{"namespace":"shop"}}`, true},
		{"", `{"action":"register","resource":{"namespace":"bank"}}`, false},
		{"", `{"action":"register","resource":{"namespace":["shop"]}}`, false},
		{"", `{"action":"register"}`, false},
		{"", `{"action":"register","resource":{"namespace":"*"}}`, false},
		{"", `{"action":"register","resource":{"kind":"service","namespace":"shop"}}`, true},
		{"", `{"action":"manage","resource":{"kind":"policy","namespace":"shop"}}`, false},
		{"api/registry/authz", `{"action":"register","resource":{"namespace":"shop"}}`, false},
	} {
		got, err := d.DecideRaw(t.Context(), rev, c.entrypoint, []byte(c.input))
		if err != nil || got.Allow != c.lifted || got.BreakGlass != c.lifted {
			t.Errorf("%s %s: %+v %v", c.entrypoint, c.input, got, err)
		}
	}
	// Without a policy the roles of whom the input names decide, and what they
	// refuse is not lifted.
	const stranger = `{"action":"register","principal":{"roles":["publisher"],"namespaces":["bank"]},"resource":{"kind":"service","namespace":"shop"}}`
	if got, err := d.DecideRaw(t.Context(), nil, "", []byte(stranger)); err != nil || got.Allow || got.BreakGlass {
		t.Errorf("a refusal by roles: %+v %v", got, err)
	}
	clock = now.Add(31 * time.Minute)
	// The time in the input does not reopen what is over.
	got, err := d.DecideRaw(t.Context(), rev, "", []byte(`{"action":"register","time":"`+now.Format(time.RFC3339)+`","resource":{"namespace":"shop"}}`))
	if err != nil || got.Allow {
		t.Errorf("%+v %v", got, err)
	}
}

func TestTheLeaderRemovesWhatIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		s := &settings{t: t, table: setting.NewTable(), refuse: 2}
		s.open("shop", "30m", began)
		s.open("bank", "2h", began)
		// This leader takes over 10 minutes later; what it finds was opened under another.
		time.Sleep(10 * time.Minute)
		ctx, stop := context.WithCancel(t.Context())
		k := breakglass.NewKeeper(s.get, s.remove, slog.New(slog.DiscardHandler))
		go k.Run(ctx)
		synctest.Wait()
		s.open("till", "5m", time.Now())
		k.Changed()
		time.Sleep(3 * time.Hour)
		var after []time.Duration
		s.mu.Lock()
		for _, at := range s.removed {
			after = append(after, at.Sub(began))
		}
		s.mu.Unlock()
		// The first removal fails twice, and is tried again each second.
		want := []time.Duration{15*time.Minute + 2*time.Second, 30 * time.Minute, 2 * time.Hour}
		if len(after) != 3 || after[0] != want[0] || after[1] != want[1] || after[2] != want[2] {
			t.Errorf("removed after %v, want %v", after, want)
		}
		stop()
		synctest.Wait()
	})
}
