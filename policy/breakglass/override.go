package breakglass

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/setting"
)

// Override lifts refusals in namespaces that are open. It is safe for
// concurrent use.
type Override struct {
	settings func() *setting.Table
	now      func() time.Time
	logger   *slog.Logger
	lifted   *prometheus.CounterVec
}

// New makes an override that looks for openings in the settings.
func New(settings func() *setting.Table, now func() time.Time, logger *slog.Logger) *Override {
	return &Override{settings: settings, now: now, logger: logger, lifted: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "muster_break_glass_decisions_total", Help: "Refusals that were lifted on this node because break-glass was open, by namespace.",
	}, []string{"namespace"})}
}

// Collectors give the figures about break-glass.
func (o *Override) Collectors() []prometheus.Collector {
	return []prometheus.Collector{o.lifted, active{o}}
}

// active is a gauge with one series for each namespace that is open.
type active struct{ *Override }

var activeDesc = prometheus.NewDesc("muster_break_glass_active", "1 for each namespace in which break-glass is open.", []string{"namespace"}, nil)

// Describe implements [prometheus.Collector].
func (a active) Describe(ch chan<- *prometheus.Desc) { ch <- activeDesc }

// Collect implements [prometheus.Collector].
func (a active) Collect(ch chan<- prometheus.Metric) {
	for o := range All(a.settings(), a.now()) {
		ch <- prometheus.MustNewConstMetric(activeDesc, prometheus.GaugeValue, 1, o.Namespace)
	}
}

// open finds the opening of a namespace. The time that a question carries has no
// say: it may be the caller's word.
func (o *Override) open(settings *setting.Table, namespace string) (*Opening, bool) {
	if namespace == "" {
		return nil, false
	}
	return Open(settings, namespace, o.now())
}

func (o *Override) use(ctx context.Context, by *Opening, in *policy.Input, id string, reasons []string) {
	o.lifted.WithLabelValues(by.Namespace).Inc()
	o.logger.WarnContext(ctx, "break-glass lifted a refusal", "namespace", by.Namespace, "until", by.Until, "break_glass_reason", by.Reason,
		"action", in.Action, "kind", in.Resource.Kind, "name", in.Resource.Name, "principal", in.Principal.ID, "decision_id", id, "reasons", reasons)
}

// Decider gives a decider that answers as next does, but for refusals about
// records of a namespace that is open: those are allows that say so, and keep
// their reasons.
func (o *Override) Decider(next policy.Decider) policy.Decider { return &decider{o, next} }

type decider struct {
	override *Override
	next     policy.Decider
}

// Decide implements [policy.Decider].
func (d *decider) Decide(ctx context.Context, rev *policy.Revision, in *policy.Input) policy.Decision {
	answer := d.next.Decide(ctx, rev, in)
	if answer.Allow || !slices.Contains(records, in.Resource.Kind) { // a certificate outlives the emergency
		return answer
	}
	if by, ok := d.override.open(d.override.settings(), in.Resource.Namespace); ok {
		d.override.use(ctx, by, in, answer.ID, answer.Reasons)
		lift(&answer)
	}
	return answer
}

// DecideRaw implements [policy.Decider]. A question to an entry point that the
// caller names is not the registry's own, and is left as it is.
func (d *decider) DecideRaw(ctx context.Context, rev *policy.Revision, entrypoint string, input []byte) (policy.Decision, error) {
	answer, err := d.next.DecideRaw(ctx, rev, entrypoint, input)
	if err != nil || answer.Allow || entrypoint != "" || answer.Default { // what roles refuse is not lifted
		return answer, err
	}
	var asked struct {
		Action   policy.Action `json:"action"`
		Resource struct {
			Kind      string `json:"kind"`
			Namespace string `json:"namespace"`
			Name      string `json:"name"`
		} `json:"resource"`
	}
	if json.Unmarshal(input, &asked) != nil || !slices.Contains(records, asked.Resource.Kind) {
		return answer, nil
	}
	if by, ok := d.override.open(d.override.settings(), asked.Resource.Namespace); ok {
		in := &policy.Input{Action: asked.Action, Principal: policy.Principal{ID: policy.CallOf(ctx).Principal},
			Resource: policy.Resource{Kind: asked.Resource.Kind, Namespace: asked.Resource.Namespace, Name: asked.Resource.Name}}
		d.override.use(ctx, by, in, answer.ID, answer.Reasons)
		lift(&answer)
	}
	return answer, nil
}

// DecideResponse implements [policy.Decider]. What passes through a proxy is
// not the registry's own, and no opening is about it.
func (d *decider) DecideResponse(ctx context.Context, rev *policy.Revision, entrypoint string, input []byte) (policy.Decision, error) {
	return d.next.DecideResponse(ctx, rev, entrypoint, input)
}

// records are the kinds of which refusals are lifted.
var records = []string{"", "service", "version", "instance"}

func lift(d *policy.Decision) {
	d.Allow, d.BreakGlass, d.Missed, d.Unavailable = true, true, false, false
}

// Asker asks webhooks about a change and gives why they refuse.
type Asker interface {
	Ask(ctx context.Context, settings *setting.Table, id string, in *policy.Input, document []byte) (reasons []string)
}

// Webhooks gives what the gate asks: next, whose refusals about records of a
// namespace that is open have no effect.
func (o *Override) Webhooks(next Asker) *Webhooks { return &Webhooks{o, next} }

// Webhooks asks outside endpoints, and lifts their refusals where break-glass
// is open.
type Webhooks struct {
	override *Override
	next     Asker
}

// Ask implements admit.Webhooks: lifted says that the reasons have no effect.
func (a *Webhooks) Ask(ctx context.Context, settings *setting.Table, id string, in *policy.Input, document []byte) (reasons []string, lifted bool) {
	reasons = a.next.Ask(ctx, settings, id, in, document)
	if len(reasons) == 0 {
		return nil, false
	}
	by, ok := a.override.open(settings, in.Resource.Namespace)
	if ok {
		a.override.use(ctx, by, in, id, reasons)
	}
	return reasons, ok
}
