package decision

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/muster-registry/muster/policy"
)

func newLog(t testing.TB, o Options) (*Log, *Metrics) {
	t.Helper()
	if o.Store == nil {
		o.Store = openStore(t, t.TempDir(), StoreOptions{})
	}
	o.Node, o.Engine, o.Labels, o.Logger = "n1", "opa 1.22.2", map[string]string{"id": "n1"}, slog.New(slog.DiscardHandler)
	m := NewMetrics(prometheus.NewRegistry())
	l := NewLog(o, m)
	t.Cleanup(func() { _ = l.Close() })
	return l, m
}

var active = &policy.Revision{Number: 7, Digest: "sha256:0"}

func ask(action policy.Action) *policy.Question {
	return &policy.Question{Input: &policy.Input{
		Action: action, Time: time.Unix(1_700_000_000, 42), Method: "PUT", RawPath: "/v1/namespaces/default/services/cart", Token: "s3cret",
		Headers: map[string]string{"Authorization": "Bearer s3cret", "Traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
		Source:  "10.1.2.3", Principal: policy.Principal{ID: "ann"}, Resource: policy.Resource{Kind: "service", Payload: []byte(`{"name":"cart"}`)},
	}, Call: policy.Call{RequestID: "r-1", Revision: 1290}}
}

func decided(allow bool, reasons ...string) *policy.Decision {
	d := &policy.Decision{
		Allow: allow, Reasons: reasons, ID: uuid.Must(uuid.NewV7()).String(), PolicyRevision: 7,
		EntryPoint: policy.DefaultWrite, Time: time.Unix(1_700_000_000, 42).UTC(),
	}
	if !allow {
		d.Cause = policy.Denied
	}
	return d
}

func TestTheLogKeepsADecision(t *testing.T) {
	var text, short, full bytes.Buffer
	l, _ := newLog(t, Options{Sinks: []Sink{&Console{To: &text, Text: true, Refusals: true}, &Console{To: &short}, &Lines{To: &full}}})
	no, yes := decided(false, "no \"owner\"\n"), decided(true)
	l.Decided(active, ask(policy.Update), no, 1500*time.Microsecond)
	l.Decided(active, ask(policy.Lookup), yes, time.Microsecond)
	store := l.opt.Store
	until(t, "both are kept", func() bool {
		_, err := store.Get(no.ID)
		_, err2 := store.Get(yes.ID)
		return err == nil && err2 == nil
	})
	r, err := store.Get(no.ID)
	if err != nil {
		t.Fatal(err)
	}
	b := r.append(nil)
	want := `{"decision_id":"` + no.ID + `","time":"2023-11-14T22:13:20.000000042Z","node":"n1","policy_revision":7,"policy_digest":"sha256:0","revision":1290,"engine":"opa 1.22.2","entrypoint":"api/registry/authz",` +
		`"input":{"action":"update",`
	if !strings.HasPrefix(string(b), want) || !strings.Contains(string(b), `"result":{"allow":false,"reasons":["no \"owner\"\n"],"cause":"denied"},"took_ns":1500000,"requested_by":"10.1.2.3","principal":"ann","request_id":"r-1",`+
		`"trace_id":"0af7651916cd43dd8448eb211c80319c","span_id":"b7ad6b7169203331","labels":{"id":"n1"}}`) {
		t.Errorf("%s\nwant\n%s…", b, want)
	}
	if p := r.Past(); p.EntryPoint != "" || !p.Time.Equal(no.Time) || !bytes.Contains(p.Input, []byte("s3cret")) {
		t.Errorf("%+v", p)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	line := `msg="policy_evaluation" opa_eval_result="deny" decision_id="` + no.ID + `" policy_evaluation="api/registry/authz" policy_revision=7 node="n1" action="update" method="PUT" ` +
		`path="/v1/namespaces/default/services/cart" principal="ann" requested_by="10.1.2.3" request_id="r-1" trace_id="0af7651916cd43dd8448eb211c80319c" span_id="b7ad6b7169203331" reasons="no \"owner\"\n" took_ms=1.5` + "\n"
	if !strings.HasSuffix(text.String(), line) || strings.Count(text.String(), "\n") != 1 {
		t.Errorf("%s\nwant …%s", text.String(), line)
	}
	for i, line := range strings.Split(strings.TrimSpace(short.String()), "\n") {
		var e struct{ Level, Msg, OPA, Opa_eval_result string }
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.Msg != "policy_evaluation" || e.Opa_eval_result != []string{"deny", "allow"}[i] || e.Level != []string{"WARN", "INFO"}[i] {
			t.Errorf("%s: %v", line, err)
		}
	}
	checkEvents(t, full.String(), no, yes)
}

func checkEvents(t *testing.T, lines string, decisions ...*policy.Decision) {
	t.Helper()
	if strings.Contains(lines, "s3cret") {
		t.Errorf("an event is not masked: %s", lines)
	}
	for i, line := range strings.Split(strings.TrimSpace(lines), "\n") {
		var e struct {
			ID        string `json:"decision_id"`
			Trace     string `json:"trace_id"`
			Path      string
			Timestamp time.Time
			Bundles   map[string]struct{ Revision string }
			Labels    map[string]string
			Metrics   map[string]int64
			Masked    []string
			Result    struct{ Allow bool }
			Input     struct{ Action string }
			Requested string `json:"requested_by"`
			Verdict   string `json:"opa_eval_result"`
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		d := decisions[i]
		if e.ID != d.ID || e.Trace != "0af7651916cd43dd8448eb211c80319c" || e.Path != "api/registry/authz" || !e.Timestamp.Equal(d.Time) || e.Bundles["muster"].Revision != "7" ||
			e.Labels["id"] != "n1" || e.Metrics["timer_server_handler_ns"] == 0 || e.Result.Allow != d.Allow || e.Input.Action == "" || e.Requested != "10.1.2.3" || (e.Verdict == "allow") != d.Allow ||
			fmt.Sprint(e.Masked) != "[/input/headers/Authorization /input/token /input/attributes/request/http/headers/authorization]" {
			t.Errorf("%s", line)
		}
	}
}

func TestAllowedLookUpsAreKeptUpToARate(t *testing.T) {
	l, m := newLog(t, Options{AllowedPerSecond: 10})
	for range 1000 {
		l.Decided(active, ask(policy.Lookup), decided(true), time.Microsecond)
	}
	var writes []string
	for range 50 {
		d := decided(true)
		writes = append(writes, d.ID)
		l.Decided(active, ask(policy.Update), d, time.Microsecond)
	}
	until(t, "the changes are kept", func() bool { _, err := l.opt.Store.Get(writes[49]); return err == nil })
	if dropped := testutil.ToFloat64(m.dropped.WithLabelValues("rate")); dropped == 0 || dropped == 1000 {
		t.Errorf("%v of 1000 were dropped", dropped)
	}
	for _, id := range writes {
		if _, err := l.opt.Store.Get(id); err != nil {
			t.Error(err)
		}
	}
}

// gate is a sink that holds the log up until it is opened.
type gateSink struct {
	open chan struct{}
	mu   sync.Mutex
	ids  map[string]bool
}

func (g *gateSink) Write(e *Event) error {
	<-g.open
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ids[e.record.ID] = true
	return nil
}

func (g *gateSink) Flush() error { return nil }
func (g *gateSink) Close() error { return nil }

// When a sink holds everything up, memory is bounded, callers go on, and every
// refusal is kept and gets to the sink in the end.
func TestNoRefusalIsLost(t *testing.T) {
	g := &gateSink{open: make(chan struct{}), ids: map[string]bool{}}
	l, m := newLog(t, Options{Sinks: []Sink{g}, Queue: 8, AllowedPerSecond: -1})
	var mu sync.Mutex
	var ids []string
	var wg sync.WaitGroup
	for range 60 {
		wg.Go(func() {
			d := decided(false, "no")
			l.Decided(active, ask(policy.Update), d, time.Microsecond)
			l.Decided(active, ask(policy.Update), decided(true), time.Microsecond)
			mu.Lock()
			defer mu.Unlock()
			ids = append(ids, d.ID)
		})
	}
	wg.Wait()
	if testutil.ToFloat64(m.dropped.WithLabelValues("queue")) == 0 {
		t.Error("nothing was held up: the test does not test")
	}
	close(g.open)
	until(t, "the sink has every refusal", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		for _, id := range ids {
			if !g.ids[id] {
				return false
			}
		}
		return true
	})
	for _, id := range ids {
		if _, err := l.opt.Store.Get(id); err != nil {
			t.Error(err)
		}
	}
}

// echo is a sink that has another decision made when it is given the second
// event.
type echo struct {
	begun, open chan struct{}
	decide      func() string
	taken       atomic.Int64
	ids         []string // only to be read when the log is closed
	made        string
}

func (e *echo) Write(ev *Event) error {
	switch e.taken.Load() {
	case 0:
		close(e.begun)
		<-e.open
	case 1:
		e.made = e.decide()
	}
	e.ids = append(e.ids, ev.record.ID)
	e.taken.Add(1)
	return nil
}

func (e *echo) Flush() error { return nil }
func (e *echo) Close() error { return nil }

// What the sinks are owed does not hold up what is decided meanwhile.
func TestTheQueueMovesWhileRefusalsAreOwed(t *testing.T) {
	e := &echo{begun: make(chan struct{}), open: make(chan struct{})}
	l, _ := newLog(t, Options{Sinks: []Sink{e}, AllowedPerSecond: -1})
	e.decide = func() string {
		d := decided(true)
		l.Decided(active, ask(policy.Update), d, time.Microsecond)
		return d.ID
	}
	e.decide()
	<-e.begun
	for range 3 * maxRepaid {
		l.spill(asked{rev: active, question: *ask(policy.Update), decision: *decided(false, "no")})
	}
	close(e.open)
	until(t, "the sink has all", func() bool { return e.taken.Load() == 3*maxRepaid+2 })
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if at := slices.Index(e.ids, e.made); at < 0 || at > maxRepaid+1 {
		t.Errorf("of %d events, the one that was decided meanwhile is at %d", len(e.ids), at)
	}
}

// What a disk does not take is counted, one by one.
func TestDecisionsThatCannotBeWrittenAreCounted(t *testing.T) {
	l, m := newLog(t, Options{AllowedPerSecond: -1})
	l.opt.Store.mu.Lock()
	err := l.opt.Store.file.Close()
	l.opt.Store.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		l.Decided(active, ask(policy.Update), decided(true), time.Microsecond)
	}
	l.spill(asked{rev: active, question: *ask(policy.Update), decision: *decided(false, "no")})
	until(t, "all are counted", func() bool { return testutil.ToFloat64(m.dropped.WithLabelValues("store")) == 4 })
}

// After a restore, a number can belong to another content.
func TestARecordKnowsTheContentThatMadeIt(t *testing.T) {
	l, _ := newLog(t, Options{})
	d := decided(false)
	l.Decided(active, ask(policy.Update), d, 0)
	until(t, "it is kept", func() bool { _, err := l.opt.Store.Get(d.ID); return err == nil })
	r, err := l.opt.Store.Get(d.ID)
	if err != nil {
		t.Fatal(err)
	}
	for rev, want := range map[*policy.Revision]bool{
		{Number: 7, Digest: active.Digest}: true,
		{Number: 7, Digest: "sha256:1"}:    false,
		{Number: 8, Digest: active.Digest}: false,
	} {
		if r.MadeBy(rev) != want {
			t.Errorf("by %d, %s: %v", rev.Number, rev.Digest, !want)
		}
	}
}

func TestALargeInputIsNotKept(t *testing.T) {
	l, _ := newLog(t, Options{MaxInput: 1000})
	q := ask(policy.Update)
	q.Input.Resource.Payload = []byte(`"` + strings.Repeat("x", 2000) + `"`)
	d := decided(false)
	l.Decided(active, q, d, 0)
	until(t, "it is kept", func() bool { _, err := l.opt.Store.Get(d.ID); return err == nil })
	r, err := l.opt.Store.Get(d.ID)
	if err != nil || r.Input != nil || r.InputBytes < 2000 || r.Past() != nil {
		t.Errorf("%+v %v", r, err)
	}
}

func TestAQuestionInJSON(t *testing.T) {
	l, _ := newLog(t, Options{})
	d := decided(true)
	l.Decided(active, &policy.Question{Entrypoint: "a/b", Raw: []byte(`{"x":1}`), Call: policy.Call{RequestID: "r-2", Principal: "bob", Source: "10.0.0.9"}}, d, 0)
	until(t, "it is kept", func() bool { _, err := l.opt.Store.Get(d.ID); return err == nil })
	r, err := l.opt.Store.Get(d.ID)
	if err != nil || string(r.Input) != `{"x":1}` || !r.Named || r.Principal != "bob" || r.RequestID != "r-2" || r.RequestedBy != "10.0.0.9" || r.Past().EntryPoint != d.EntryPoint {
		t.Errorf("%+v %v", r, err)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("the disk is full") }

// A sink that fails is counted and holds nobody up.
func TestASinkThatFails(t *testing.T) {
	l, m := newLog(t, Options{Sinks: []Sink{&Lines{To: failing{}}}})
	d := decided(false)
	l.Decided(active, ask(policy.Update), d, 0)
	until(t, "the failure is counted", func() bool { return testutil.ToFloat64(m.errors.WithLabelValues("sink")) == 1 })
	if _, err := l.opt.Store.Get(d.ID); err != nil {
		t.Error(err)
	}
}

func TestFileRotates(t *testing.T) {
	name := filepath.Join(t.TempDir(), "logs", "audit.log")
	f, err := NewFile(name, 1<<20, 2)
	if err != nil {
		t.Fatal(err)
	}
	for range 40 {
		write(t, f, 1, true)
		r := record(t, 60<<10)
		if err := f.Write(newEvent(r, defaults)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(name)
	if err != nil || info.Size() > 1<<20 || info.Mode().Perm() != 0o600 {
		t.Errorf("%+v %v", info, err)
	}
	if files, err := os.ReadDir(filepath.Dir(name)); err != nil || len(files) < 2 {
		t.Errorf("%v %v", files, err)
	}
	if _, err := NewFile(filepath.Join(name, "below-a-file"), 1<<20, 1); err == nil {
		t.Error("a file that cannot be made was taken")
	}
}

func TestMetricsOfDecisions(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := NewMetrics(reg)
	m.observe(active, nil, decided(false, "x"), 60*time.Millisecond)
	m.observe(nil, nil, &policy.Decision{Allow: true}, 0)
	odd := decided(true)
	odd.EntryPoint = "named/by/a/caller"
	m.observe(active, nil, odd, 0)
	// What an endpoint takes is no evaluation.
	m.observe(active, nil, &policy.Decision{EntryPoint: "webhook", Cause: policy.ByWebhook}, time.Second)
	if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
	if n := testutil.ToFloat64(m.denials.WithLabelValues("other", "webhook")); n != 1 {
		t.Errorf("denials by webhooks %v", n)
	}
	if n := testutil.ToFloat64(m.denials.WithLabelValues("api/registry/authz", "denied")); n != 1 {
		t.Errorf("denials %v", n)
	}
	if n := testutil.ToFloat64(m.slow); n != 1 {
		t.Errorf("slow %v", n)
	}
	if n := testutil.CollectAndCount(m.seconds); n != 3 {
		t.Errorf("%d entry points", n)
	}
}

func BenchmarkDecided(b *testing.B) {
	for name, rate := range map[string]int{"limited": 1000, "all": -1} {
		b.Run(name, func(b *testing.B) {
			l, m := newLog(b, Options{AllowedPerSecond: rate})
			q, d := ask(policy.Lookup), decided(true)
			b.ReportAllocs()
			for b.Loop() {
				l.Decided(active, q, d, time.Microsecond)
			}
			b.ReportMetric(testutil.ToFloat64(m.dropped.WithLabelValues("queue")), "queue-drops")
		})
	}
}
