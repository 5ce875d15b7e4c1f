// Package shadow owns trying a policy revision out: it has a share of the
// decisions that are made answered by the shadow revision as well, off the
// callers' path, and counts where the answers differ. Its answers have no
// effect, and it refuses to hold anybody up: what it cannot take is dropped and
// counted.
package shadow

import (
	"context"
	"hash/fnv"
	"log/slog"
	"math"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/muster-registry/muster/policy"
)

// Engine decides by a revision and compiles it beforehand. Nobody observes its
// decisions here.
type Engine interface {
	policy.Decider
	Replayer
	Prepare(ctx context.Context, rev *policy.Revision) error
}

// Options configure a shadow. Engine is needed; the zero value of any other
// field means its default.
type Options struct {
	Engine Engine
	// Mask takes credentials out of the input of an example; nil: examples
	// carry no input.
	Mask func(input []byte) []byte
	// Queue is how many decisions may wait; 0 means 1024.
	Queue int
	// Bytes bounds what those that wait hold of payloads; 0 means 64 MiB.
	Bytes int64
	// Limit is how long one evaluation may take, with its wait for its turn;
	// 0 means 1 s.
	Limit  time.Duration
	Logger *slog.Logger // nil: slog.Default()
}

// Shadow is a [policy.Observer]. Its methods are safe for concurrent use.
type Shadow struct {
	options Options
	current atomic.Pointer[run] // nil: no revision is the shadow
	queue   chan job
	waiting atomic.Int64 // bytes

	evaluations prometheus.Counter
	differences *prometheus.CounterVec
	dropped     prometheus.Counter
}

var _ policy.Observer = (*Shadow)(nil)

// run is one shadow revision beside one active one.
type run struct {
	shadow, active *policy.Revision // active may be nil
	share          uint64           // of all values of a hash
	since          time.Time
	tally          *Tally
	problem        atomic.Pointer[string] // why nothing can be evaluated
}

type job struct {
	run      *run
	question policy.Question
	decision policy.Decision
	size     int64
	at       time.Time
}

// New makes a shadow that follows no revision yet.
func New(o Options) *Shadow {
	if o.Queue == 0 {
		o.Queue = 1024
	}
	if o.Bytes == 0 {
		o.Bytes = 64 << 20
	}
	if o.Limit == 0 {
		o.Limit = time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return &Shadow{
		options: o, queue: make(chan job, o.Queue),
		evaluations: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "muster_policy_shadow_evaluations_total", Help: "Decisions that the shadow revision was asked about as well."}),
		differences: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_policy_shadow_differences_total", Help: "Decisions on which the shadow revision differs, by entry point and kind."}, []string{"entry_point", "kind"}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "muster_policy_shadow_dropped_total", Help: "Decisions that were to be evaluated by the shadow revision, and were too many."}),
	}
}

// Collectors are the metrics.
func (s *Shadow) Collectors() []prometheus.Collector {
	return []prometheus.Collector{s.evaluations, s.differences, s.dropped}
}

// Follow learns of a change of the policies. Another shadow, another share or
// another active revision begins the figures anew.
func (s *Shadow) Follow(t *policy.Table) {
	shadow, active := t.Shadow(), t.Active()
	if shadow == nil {
		s.current.Store(nil)
		return
	}
	if r := s.current.Load(); r != nil && r.shadow.ChangedAt == shadow.ChangedAt && same(r.shadow, shadow) && same(r.active, active) {
		return
	}
	share := uint64(math.MaxUint64)
	if shadow.Share < 1 {
		share = uint64(shadow.Share * (1 << 63) * 2)
	}
	s.current.Store(&run{shadow: shadow, active: active, share: share, since: time.Now().UTC(), tally: NewTally(s.options.Mask)})
}

// same says whether both are the same revision; nil is one. After a restore, a
// number can belong to another content.
func same(a, b *policy.Revision) bool {
	return number(a) == number(b) && (a == nil || a.Digest == b.Digest)
}

func number(r *policy.Revision) uint64 {
	if r == nil {
		return 0
	}
	return r.Number
}

// Decided implements [policy.Observer].
func (s *Shadow) Decided(rev *policy.Revision, q *policy.Question, d *policy.Decision, _ time.Duration) {
	r := s.current.Load()
	if r == nil || d.Missed || d.BreakGlass || q.Query != "" || number(rev) != number(r.active) || !sampled(d.ID, r.share) {
		return
	}
	j := job{run: r, question: *q, decision: *d, at: time.Now(), size: int64(len(q.Raw) + len(d.Result))}
	if q.Input != nil {
		in := *q.Input // the caller may go on to ask about another resource
		j.question.Input = &in
		j.size = int64(len(in.Resource.Payload) + len(in.Resource.Previous))
	}
	if s.waiting.Add(j.size) <= s.options.Bytes {
		select {
		case s.queue <- j:
			return
		default:
		}
	}
	s.waiting.Add(-j.size)
	s.dropped.Inc()
	r.tally.Drop()
}

// sampled says whether the decision belongs to the share: the same decision
// always does, or never.
func sampled(id string, share uint64) bool {
	h := fnv.New64a()
	h.Write([]byte(id)) // never fails
	x := h.Sum64()
	// The upper bits of FNV hardly depend on the last characters.
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	x ^= x >> 33
	return x <= share
}

// Run evaluates, one decision after the other, until the context ends.
func (s *Shadow) Run(ctx context.Context) {
	var prepared *run
	for {
		select {
		case <-ctx.Done():
			return
		case j := <-s.queue:
			s.waiting.Add(-j.size)
			if j.run != s.current.Load() {
				continue // of a shadow that is over
			}
			if j.run != prepared {
				prepared = j.run
				s.prepare(ctx, j.run)
			}
			if ctx.Err() == nil && j.run.problem.Load() == nil {
				s.evaluate(ctx, &j)
			}
		}
	}
}

func (s *Shadow) prepare(ctx context.Context, r *run) {
	if err := s.options.Engine.Prepare(ctx, r.shadow); err != nil && ctx.Err() == nil {
		text := err.Error()
		r.problem.Store(&text)
		s.options.Logger.Error("the shadow policy revision does not compile on this node, so it is not evaluated here",
			"policy_revision", r.shadow.Number, "error", err)
	}
}

func (s *Shadow) evaluate(ctx context.Context, j *job) {
	ctx, cancel := context.WithTimeout(ctx, s.options.Limit)
	defer cancel()
	q, r := &j.question, j.run
	entry := j.decision.EntryPoint
	if entry == "" {
		entry = q.Entrypoint
	}
	var other policy.Decision
	input := func() ([]byte, error) { return q.Raw, nil }
	switch {
	case q.Document:
		other = s.document(ctx, j)
	case q.Input != nil:
		if entry == "" {
			entry = entryPoints(r.active).For(q.Input.Action)
		}
		other = s.options.Engine.Decide(ctx, r.shadow, q.Input)
		input = q.Input.Document
	default:
		if entry == "" {
			entry = entryPoints(r.active).For(action(q.Raw))
		}
		ask := s.options.Engine.DecideRaw
		if q.Response {
			ask = s.options.Engine.DecideResponse
		}
		var err error
		if other, err = ask(ctx, r.shadow, q.Entrypoint, q.Raw); err != nil {
			other = policy.Decision{Missed: true, Reasons: []string{err.Error()}}
		}
	}
	other.PolicyRevision = r.shadow.Number
	s.evaluations.Inc()
	kind := r.tally.Add(Case{EntryPoint: entry, Time: j.at, Active: &j.decision, Other: &other, Input: input})
	if kind == "" {
		return
	}
	if p := entryPoints(r.active); entry != p.For(policy.Register) && entry != p.For(policy.Lookup) {
		entry = "named" // callers choose those, so there may be any number
	}
	s.differences.WithLabelValues(entry, string(kind)).Inc()
}

// document asks for a document by its path, as it was asked for.
func (s *Shadow) document(ctx context.Context, j *job) policy.Decision {
	past := &policy.Past{EntryPoint: j.question.Entrypoint, Document: true, Input: j.question.Raw, Time: j.decision.Time}
	if past.Input == nil {
		past.Input = []byte("{}")
	}
	var err error
	if j.decision.Chance != nil {
		past.Chance, err = j.decision.Chance.MarshalJSON()
	}
	var other policy.Decision
	if err == nil {
		other, err = s.options.Engine.Replay(ctx, j.run.shadow, past)
	}
	if err != nil {
		return policy.Decision{Missed: true, Reasons: []string{err.Error()}}
	}
	return other
}

func entryPoints(rev *policy.Revision) policy.EntryPoints {
	if rev == nil {
		return policy.EntryPoints{}
	}
	return rev.EntryPoints
}

// action gives input.action of a document that a caller sent.
func action(input []byte) policy.Action {
	var document struct {
		Action jsontext.Value `json:"action"`
	}
	var a policy.Action
	if json.Unmarshal(input, &document) != nil || json.Unmarshal(document.Action, &a) != nil {
		return ""
	}
	return a
}

// Impact tells how the shadow revision has differed here so far; nil when none
// is the shadow. The part of the node is left for the caller to name.
func (s *Shadow) Impact() *policy.Impact {
	r := s.current.Load()
	if r == nil {
		return nil
	}
	i := r.tally.Impact()
	i.Revision, i.Active, i.Since, i.Share = r.shadow.Number, number(r.active), r.since, r.shadow.Share
	part := policy.NodeImpact{Since: r.since, Evaluated: i.Evaluated, Dropped: i.Dropped}
	if problem := r.problem.Load(); problem != nil {
		part.Problem = *problem
	}
	i.Nodes = []policy.NodeImpact{part}
	return i
}
