package rest_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/api/rest"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/feed"
	"github.com/muster-registry/muster/identity"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/quota"
	"github.com/muster-registry/muster/registry"
	"github.com/muster-registry/muster/setting"
)

var start = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)

// memory is a node of one without a log: the real tables behind one lock. It
// checks preconditions as the gate does, and nothing else of it.
type memory struct {
	state   atomic.Pointer[door.State]
	mu      sync.Mutex // guards what follows, and changes to state
	feed    *feed.Feed
	reached chan struct{} // closed and replaced at every change
	docs    map[string][]byte
	beats   []string
	intents []*command.Intent

	decide    func(*policy.Input) policy.Decision
	raw       func(entrypoint string, input []byte) (policy.Decision, error)
	readIndex func(context.Context) error
	submit    func(*command.Intent) error // fails a change where it returns an error
	snapshot  func(io.Writer) error
	age       time.Duration
	ready     error
	votes     error
	follower  bool
	syncs     []bool // pulls from Git, and whether they were waited for
}

func newMemory() *memory {
	m := &memory{feed: feed.New(feed.Options{}, 0), reached: make(chan struct{}), docs: map[string][]byte{}}
	m.state.Store(&door.State{Registry: registry.New(), Policy: policy.NewTable(), Tokens: identity.NewTable(), Settings: setting.NewTable(), ClusterID: "c1"})
	m.decide = func(in *policy.Input) policy.Decision { return policy.Decision{Allow: true} }
	m.readIndex = func(context.Context) error { return nil }
	return m
}

func (m *memory) NodeID() string           { return "n1" }
func (m *memory) State() *door.State       { return m.state.Load() }
func (m *memory) Staleness() time.Duration { return m.age }
func (m *memory) Ready() error             { return m.ready }
func (m *memory) Votes() error             { return m.votes }
func (m *memory) Everywhere(context.Context, uint64, time.Duration) ([]string, time.Time) {
	return nil, time.Time{}
}

func (m *memory) IsLeader() bool          { return !m.follower }
func (m *memory) Decider() policy.Decider { return m }

func (m *memory) ReadIndex(ctx context.Context) error { return m.readIndex(ctx) }

func (m *memory) Decide(_ context.Context, rev *policy.Revision, in *policy.Input) policy.Decision {
	d := m.decide(in)
	d.ID, d.PolicyRevision = cmp.Or(d.ID, "d-1"), rev.Number
	return d
}

func (m *memory) DecideRaw(_ context.Context, _ *policy.Revision, entrypoint string, input []byte) (policy.Decision, error) {
	return m.raw(entrypoint, input)
}

func (m *memory) DecideResponse(_ context.Context, _ *policy.Revision, entrypoint string, input []byte) (policy.Decision, error) {
	return m.raw(entrypoint, input)
}

func (m *memory) Document(ns, svc, v string, revision uint64) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.docs[registry.DocumentKey(ns, svc, v, revision)]
	if !ok {
		return nil, fault.New(fault.VersionNotFound, "gone")
	}
	return b, nil
}

func (m *memory) Feed() *feed.Feed { return m.feed }

func (m *memory) AwaitRevision(ctx context.Context, revision uint64) error {
	for {
		m.mu.Lock()
		next := m.reached
		m.mu.Unlock()
		if m.State().Revision >= revision {
			return nil
		}
		select {
		case <-next:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (m *memory) Submit(_ context.Context, in *command.Intent) (*command.Receipt, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.intents = append(m.intents, in)
	if m.submit != nil {
		if err := m.submit(in); err != nil {
			return nil, err
		}
	}
	next := *m.state.Load()
	next.Revision++
	st := registry.Stamp{Revision: next.Revision, Time: start, By: in.Principal.Id}
	var events []*feed.Event
	reg := next.Registry.Txn(func(bucket, key string, old, value []byte) {
		if e := feed.Change(bucket, key, next.Revision, old, value); e != nil {
			events = append(events, e)
		}
		if bucket == registry.BucketDocuments {
			m.docs[key] = value
		}
	})
	receipt, err := m.apply(st, in, reg, &next)
	if err != nil {
		return nil, err
	}
	receipt.Revision = next.Revision
	next.Registry = reg.Commit()
	m.publish(&next, events)
	return receipt, nil
}

func (m *memory) publish(next *door.State, events []*feed.Event) {
	old := m.state.Swap(next)
	close(m.reached)
	m.reached = make(chan struct{})
	m.feed.Publish(next.Revision, events)
	if old.Tokens != next.Tokens || old.Policy != next.Policy || old.Settings != next.Settings { // as a node does
		m.feed.Check()
	}
}

func (m *memory) apply(st registry.Stamp, in *command.Intent, reg *registry.Txn, next *door.State) (*command.Receipt, error) {
	switch op := in.Command.Op.(type) {
	case *command.Command_Put:
		return m.put(st, in, op.Put, reg, next)
	case *command.Command_Delete:
		d := op.Delete
		if d.Kind == command.Kind_TOKEN {
			x := next.Tokens.Txn(nil)
			err := x.Delete(d.Name)
			next.Tokens = x.Commit()
			return &command.Receipt{}, err
		}
		if d.Kind == command.Kind_SETTING {
			x := next.Settings.Txn(nil)
			observed, err := checkSetting(in, next, d.Service, d.Namespace, d.Name)
			if err != nil {
				return nil, err
			}
			err = x.Delete(setting.Kind(d.Service), d.Namespace, d.Name, observed)
			next.Settings = x.Commit()
			return &command.Receipt{}, err
		}
		kind := strings.ToLower(d.Kind.String())
		observed, err := check(in, next.Registry, kind, d.Namespace, d.Service, d.Name)
		if err != nil {
			return nil, err
		}
		if d.Kind == command.Kind_SERVICE {
			return &command.Receipt{}, reg.Delete(st, kind, d.Namespace, d.Name, "", observed)
		}
		return &command.Receipt{}, reg.Delete(st, kind, d.Namespace, d.Service, d.Name, observed)
	case *command.Command_Status:
		s := op.Status
		observed, err := check(in, next.Registry, registry.KindInstance, s.Namespace, s.Service, s.Name)
		if err != nil {
			return nil, err
		}
		rec, err := reg.SetStatus(st, s.Namespace, s.Service, s.Name, s.Status, registry.ByCaller, observed)
		if err != nil {
			return nil, err
		}
		return &command.Receipt{Record: rec.JSON}, nil
	}
	return nil, errors.New("unexpected command")
}

func (m *memory) put(st registry.Stamp, in *command.Intent, p *command.Put, reg *registry.Txn, next *door.State) (*command.Receipt, error) {
	if p.Kind == command.Kind_TOKEN {
		x := next.Tokens.Txn(nil)
		t, err := x.Put(identity.Stamp(st), p.Name, p.Spec)
		if err != nil {
			return nil, err
		}
		next.Tokens = x.Commit()
		return &command.Receipt{Record: t.JSON, Created: true}, nil
	}
	if p.Kind == command.Kind_SETTING {
		x := next.Settings.Txn(nil)
		observed, err := checkSetting(in, next, p.Service, p.Namespace, p.Name)
		if err != nil {
			return nil, err
		}
		rec, created, err := x.Put(setting.Stamp(st), setting.Kind(p.Service), p.Namespace, p.Name, p.Spec, observed)
		if err != nil {
			return nil, err
		}
		next.Settings = x.Commit()
		return &command.Receipt{Record: rec.JSON, Created: created}, nil
	}
	observed, err := check(in, next.Registry, strings.ToLower(p.Kind.String()), p.Namespace, p.Service, p.Name)
	if err != nil {
		return nil, err
	}
	var record []byte
	var created bool
	switch p.Kind {
	case command.Kind_SERVICE:
		var rec *registry.Service
		if rec, created, err = reg.PutService(st, p.Namespace, p.Name, p.Spec, observed); err == nil {
			record = rec.JSON
		}
	case command.Kind_VERSION:
		var rec *registry.Version
		if rec, created, err = reg.PutVersion(st, p.Namespace, p.Service, p.Name, p.Spec, p.Document, observed); err == nil {
			record = rec.JSON
		}
	default:
		var rec *registry.Instance
		if rec, created, err = reg.PutInstance(st, p.Namespace, p.Service, p.Name, p.Spec, observed, p.CreateService); err == nil {
			record = rec.JSON
		}
	}
	return &command.Receipt{Record: record, Created: created}, err
}

func checkSetting(in *command.Intent, st *door.State, kind, ns, name string) (revision uint64, err error) {
	if rec, ok := st.Settings.Get(setting.Kind(kind), ns, name); ok {
		revision = rec.Revision
	}
	return revision, preconditions(in, revision)
}

// check gives the record's revision and holds the preconditions to it.
func check(in *command.Intent, reg *registry.Snapshot, kind, ns, svc, name string) (revision uint64, err error) {
	switch kind {
	case registry.KindService:
		if rec, ok := reg.Service(ns, name); ok {
			revision = rec.Revision
		}
	case registry.KindVersion:
		if rec, ok := reg.Version(ns, svc, name); ok {
			revision = rec.Revision
		}
	case registry.KindInstance:
		if rec, ok := reg.Instance(ns, svc, name); ok {
			revision = rec.Revision
		}
	}
	return revision, preconditions(in, revision)
}

func preconditions(in *command.Intent, revision uint64) error {
	if in.HasMatch && in.Match != revision || in.CreateOnly && revision != 0 {
		f := fault.New(fault.RevisionMismatch, "the record is at revision %d", revision)
		f.Current = revision
		return f
	}
	return nil
}

func (m *memory) Heartbeat(_ context.Context, ns, svc, id string) error {
	if _, ok := m.State().Registry.Instance(ns, svc, id); !ok {
		return fault.New(fault.InstanceNotFound, "there is no instance %s; register it", id)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.beats = append(m.beats, ns+"/"+svc+"/"+id)
	return nil
}

func (m *memory) Report(_ context.Context, ns, svc, id, check, status, _ string) error {
	in, ok := m.State().Registry.Instance(ns, svc, id)
	if !ok {
		return fault.New(fault.InstanceNotFound, "there is no instance %s; register it", id)
	}
	if c, _ := in.Check(check); c == nil {
		return fault.New(fault.NotFound, "there is no check %s", check)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.beats = append(m.beats, ns+"/"+svc+"/"+id+"/"+check+" "+status)
	return nil
}

func (m *memory) policies(change func(*policy.Txn, policy.Stamp) (*policy.Revision, error)) (*policy.Revision, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := *m.state.Load()
	next.Revision++
	x := next.Policy.Txn(nil)
	rev, err := change(x, policy.Stamp{Revision: next.Revision, Time: start, By: "token:admin"})
	if err != nil {
		return nil, err
	}
	next.Policy = x.Commit()
	m.publish(&next, nil)
	return rev, nil
}

func (m *memory) StagePolicy(_ context.Context, _ *command.Intent, c *policy.Content, from policy.Origin, activate bool) (*policy.Revision, error) {
	return m.policies(func(x *policy.Txn, st policy.Stamp) (*policy.Revision, error) {
		rev, err := x.Stage(st, policy.Draft{Content: c.Encode(), Digest: c.Digest(), Report: policy.Report{Tests: policy.Tests{Passed: 1}}.Encode(), Origin: from.Encode()})
		if err != nil || !activate {
			return rev, err
		}
		return x.Activate(st, rev.Number, x.Active(), false)
	})
}

func (m *memory) StageShadow(ctx context.Context, in *command.Intent, c *policy.Content, origin policy.Origin, share float64) (*policy.Revision, error) {
	rev, err := m.StagePolicy(ctx, in, c, origin, false)
	if err != nil {
		return nil, err
	}
	return m.ShadowPolicy(ctx, in, rev.Number, share)
}

func (m *memory) ShadowPolicy(_ context.Context, _ *command.Intent, n uint64, share float64) (*policy.Revision, error) {
	return m.policies(func(x *policy.Txn, st policy.Stamp) (*policy.Revision, error) { return x.Shadow(st, n, share) })
}

func (m *memory) StopShadow(context.Context, *command.Intent) (*policy.Revision, error) {
	return m.policies(func(x *policy.Txn, st policy.Stamp) (*policy.Revision, error) { return x.Unshadow(st) })
}

func (m *memory) ShadowReport(context.Context) (*policy.Impact, error) {
	rev := m.State().Policy.Shadow()
	if rev == nil {
		return nil, nil
	}
	return &policy.Impact{Revision: rev.Number, Share: rev.Share, Differences: []policy.Difference{}, Nodes: []policy.NodeImpact{{Node: "n1"}}}, nil
}

func (m *memory) ReplayPolicy(_ context.Context, number uint64, since time.Duration, limit int) (*policy.Impact, error) {
	return &policy.Impact{Revision: number, Evaluated: uint64(limit), Dropped: uint64(since / time.Second),
		Differences: []policy.Difference{}, Nodes: []policy.NodeImpact{}}, nil
}

func (m *memory) ActivatePolicy(_ context.Context, _ *command.Intent, n uint64) (*policy.Revision, error) {
	return m.policies(func(x *policy.Txn, st policy.Stamp) (*policy.Revision, error) {
		return x.Activate(st, n, x.Active(), false)
	})
}

func (m *memory) SyncPolicy(_ context.Context, wait bool) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.syncs = append(m.syncs, wait)
	return []byte(`{"outcome":"unchanged"}`), nil
}

func (m *memory) RollbackPolicy(context.Context, *command.Intent) (*policy.Revision, error) {
	to, err := m.State().Policy.RollbackTarget()
	if err != nil {
		return nil, err
	}
	return m.policies(func(x *policy.Txn, st policy.Stamp) (*policy.Revision, error) {
		return x.Activate(st, to.Number, x.Active(), true)
	})
}

func (m *memory) ClusterStatus(context.Context) (*rest.ClusterStatus, error) {
	return &rest.ClusterStatus{ClusterID: "c1", Leader: "n1", Term: 2, Nodes: []rest.NodeStatus{{ID: "n1", Role: "leader", Alive: true, Ready: true}}}, nil
}

func (m *memory) CheckQuota(context.Context, quota.Call) (*quota.Result, error) {
	return &quota.Result{Allowed: true}, nil
}
func (m *memory) Members(context.Context) ([]rest.Member, error) {
	return []rest.Member{{ID: "n1", Role: "leader", Alive: true}}, nil
}

func (m *memory) TransferLeader(_ context.Context, _ *command.Intent, to string) error {
	if to != "" && to != "n1" {
		return fault.New(fault.NotFound, "there is no member %s", to)
	}
	return nil
}

func (m *memory) AuditHeads() []rest.AuditHead { return []rest.AuditHead{} }

func (m *memory) ForgetAuditHead(_ context.Context, _ *command.Intent, id string) error {
	return m.TransferLeader(context.Background(), nil, id)
}

func (m *memory) RemoveMember(_ context.Context, _ *command.Intent, id string) error {
	return m.TransferLeader(context.Background(), nil, id)
}

func (m *memory) Snapshot(_ context.Context, w io.Writer) error { return m.snapshot(w) }

func (m *memory) Restore(_ context.Context, _ *command.Intent, r io.Reader, dryRun, _ bool) (*rest.RestoreReport, error) {
	b, err := io.ReadAll(r)
	if err != nil || !bytes.HasPrefix(b, []byte("snapshot")) {
		return nil, fault.New(fault.InvalidSnapshot, "this is no snapshot")
	}
	return &rest.RestoreReport{DryRun: dryRun, ClusterID: "c1"}, nil
}

// The callers of the tests; the text of a token is its name and "-token".
var callers = []identity.Static{
	{Name: "operator", Role: policy.Operator}, {Name: "publisher", Role: policy.Publisher}, {Name: "viewer", Role: policy.Viewer},
	{Name: "admin", Role: policy.PolicyAdmin}, {Name: "shopper", Role: policy.Viewer, Namespaces: []string{"shop"}},
	{Name: "shopkeeper", Role: policy.Operator, Namespaces: []string{"shop"}},
}

func authentic(t testing.TB) *identity.Authenticator {
	t.Helper()
	cfg := identity.Config{TrustDomain: "example.org"}
	for _, s := range callers {
		s.Hash = identity.Hash(s.Name + "-token")
		cfg.Static = append(cfg.Static, s)
	}
	auth, err := identity.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return auth
}

// edge is a REST edge under test with its node.
type edge struct {
	testing.TB
	*memory
	api *rest.API
}

func newEdge(t testing.TB, opt rest.Options) *edge {
	t.Helper()
	return newEdgeBehind(t, door.Options{}, opt)
}

func newEdgeBehind(t testing.TB, in door.Options, opt rest.Options) *edge {
	t.Helper()
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	m := newMemory()
	api, err := rest.New(m, door.New(m, authentic(t), in), opt)
	if err != nil {
		t.Fatal(err)
	}
	return &edge{TB: t, memory: m, api: api}
}

// ask is one request; a caller of "" sends no token.
type ask struct {
	caller, method, path, body string
	header                     http.Header
}

func (a ask) request() *http.Request {
	var body io.Reader
	if a.body != "" {
		body = strings.NewReader(a.body)
	}
	r := httptest.NewRequest(a.method, "https://muster.test/", body)
	// A path is what the tests are about: it is parsed as a server does.
	u, err := url.ParseRequestURI(a.path)
	if err != nil {
		panic(err)
	}
	r.URL, r.RequestURI = u, a.path
	for k, v := range a.header {
		r.Header[k] = v
	}
	if a.caller != "" {
		r.Header.Set("Authorization", "Bearer "+a.caller+"-token")
	}
	return r
}

func (e *edge) do(a ask) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	e.api.ServeHTTP(w, a.request())
	return w
}

// call asks as caller and fails the test unless the status is as wanted.
func (e *edge) call(caller, method, path, body string, status int) *httptest.ResponseRecorder {
	e.Helper()
	w := e.do(ask{caller: caller, method: method, path: path, body: body})
	if w.Code != status {
		e.Fatalf("%s %s: %d %s, want %d", method, path, w.Code, w.Body, status)
	}
	return w
}

func header(kv ...string) http.Header {
	h := http.Header{}
	for i := 0; i < len(kv); i += 2 {
		h.Add(kv[i], kv[i+1])
	}
	return h
}

type problem struct {
	Type, Title, Code, Detail, Outcome string
	Status                             int
	RequestID                          string `json:"request_id"`
	Errors                             []struct{ Pointer, Message string }
	Reasons                            []string
	DecisionID                         string `json:"decision_id"`
	PolicyRevision                     uint64 `json:"policy_revision"`
	Current                            *uint64
}

// refused checks the form that every refusal has, and its status and code.
func refused(t testing.TB, w *httptest.ResponseRecorder, status int, code fault.Code) problem {
	t.Helper()
	var p problem
	if err := json.Unmarshal(w.Body.Bytes(), &p, json.MatchCaseInsensitiveNames(true)); err != nil {
		t.Fatalf("%d %q: %v", w.Code, w.Body, err)
	}
	if w.Code != status || p.Code != string(code) || p.Status != status {
		t.Fatalf("%d %s, want %d %s", w.Code, w.Body, status, code)
	}
	if got := w.Header().Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("the type of a refusal is %q", got)
	}
	if p.RequestID == "" || p.RequestID != w.Header().Get("X-Request-Id") {
		t.Errorf("request id %q in the body, %q in the header", p.RequestID, w.Header().Get("X-Request-Id"))
	}
	if p.Detail == "" || p.Title == "" || p.Type == "" {
		t.Errorf("the refusal does not say enough: %s", w.Body)
	}
	if retry := w.Header().Get("Retry-After"); (status == 503 || status == 429) != (retry != "") {
		t.Errorf("Retry-After is %q at %d", retry, status)
	}
	complete(t, w)
	return p
}

// complete checks the headers that every answer has.
func complete(t testing.TB, w *httptest.ResponseRecorder) {
	t.Helper()
	h := w.Header()
	if _, err := strconv.ParseUint(h.Get("Muster-Revision"), 10, 64); err != nil {
		t.Errorf("Muster-Revision: %v", err)
	}
	if _, err := strconv.ParseUint(h.Get("Muster-Staleness-Ms"), 10, 64); err != nil {
		t.Errorf("Muster-Staleness-Ms: %v", err)
	}
	if h.Get("Muster-Node") != "n1" || h.Get("X-Request-Id") == "" {
		t.Errorf("Muster-Node %q, X-Request-Id %q", h.Get("Muster-Node"), h.Get("X-Request-Id"))
	}
	if c := h.Get("Muster-Consistency"); c != "local" && c != "linearizable" {
		t.Errorf("Muster-Consistency %q", c)
	}
}

// policed makes a policy active, whose decisions decide gives.
func (e *edge) policed(decide func(*policy.Input) policy.Decision) {
	e.Helper()
	e.decide = decide
	c, err := policy.ParseContent([]byte(`{"modules":{"a.rego":"package a"}}`))
	if err != nil {
		e.Fatal(err)
	}
	if _, err := e.StagePolicy(context.Background(), nil, c, policy.Origin{}, true); err != nil {
		e.Fatal(err)
	}
}

func (m *memory) Decision(_ context.Context, id string, rules bool) ([]byte, error) {
	if id != "d-1" {
		return nil, fault.New(fault.NotFound, "there is no record of decision %s", id)
	}
	return []byte(`{"decision_id":"d-1","rules":` + strconv.FormatBool(rules) + `}`), nil
}
