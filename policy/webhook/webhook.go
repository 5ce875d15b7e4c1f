// Package webhook owns the outside policy endpoints: what stands in the setting
// of one, and asking them about a change before it becomes an entry of the log.
// An endpoint is a second opinion behind the policy: it can refuse what the
// policy has allowed, and never allow what it refused. The room refuses to
// follow redirects, to use proxies, and to connect to addresses that are not
// public unless the configuration lists them; what an endpoint answers counts
// only if it is a plain yes or no.
package webhook

import (
	"bytes"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/muster-registry/muster/egress"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/setting"
)

// Options configure [New]. The zero value is usable.
type Options struct {
	Dialer *egress.Dialer // nil: public addresses only
	// Trip is after how many failures upon each other an endpoint is not asked
	// for a while; 0 means 5.
	Trip uint32
	// Rest is how long it is not asked then, before one question tries it
	// again; 0 means 5 s.
	Rest   time.Duration
	Agent  string       // the User-Agent; "" means muster
	Logger *slog.Logger // nil: slog.Default()
}

// Hooks asks the webhooks. It is safe for concurrent use.
type Hooks struct {
	options Options
	metrics *metrics

	mu        sync.Mutex // guards endpoints
	endpoints map[string]*endpoint
}

// New makes hooks; nothing is connected to before the first question.
func New(o Options) *Hooks {
	if o.Dialer == nil {
		o.Dialer = new(egress.Dialer)
	}
	if o.Trip == 0 {
		o.Trip = 5
	}
	if o.Rest <= 0 {
		o.Rest = 5 * time.Second
	}
	if o.Agent == "" {
		o.Agent = "muster"
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return &Hooks{options: o, metrics: newMetrics(), endpoints: map[string]*endpoint{}}
}

// Collectors give the figures about the webhooks.
func (h *Hooks) Collectors() []prometheus.Collector { return h.metrics.all() }

// Ask asks all webhooks that are set for the action in the namespace, at the
// same time, and gives why they refuse: nothing when none does. Document is the
// input as JSON; id names the question towards the endpoints, and is the same
// in every attempt. It takes no longer than the longest of their time-outs, nor
// than the context allows.
func (h *Hooks) Ask(ctx context.Context, settings *setting.Table, id string, in *policy.Input, document []byte) (reasons []string) {
	asked := h.relevant(settings, in)
	if len(asked) == 0 {
		return nil
	}
	body := make([]byte, 0, len(document)+len(`{"input":}`))
	body = append(append(append(body, `{"input":`...), document...), '}')
	all := make([][]string, len(asked))
	var wg sync.WaitGroup
	for i, e := range asked {
		wg.Go(func() { all[i] = h.one(ctx, e, id, body) })
	}
	wg.Wait()
	return slices.Concat(all...)
}

// one asks one webhook and counts what came of it.
func (h *Hooks) one(ctx context.Context, e *endpoint, id string, body []byte) []string {
	began := time.Now()
	a, err := e.ask(ctx, id, body)
	took := time.Since(began)
	outcome, reasons := e.judge(a, err)
	h.metrics.count(e.name, outcome, took)
	log := h.options.Logger.With("webhook", e.name, "decision_id", id, "took", took)
	switch {
	case outcome == failedOpen:
		log.Warn("webhook failed, and its failure policy lets the change through", "error", err)
	case outcome == failedClosed:
		log.Warn("webhook failed, and its failure policy refuses the change", "error", err, "opa_eval_result", "deny")
	case outcome == denied:
		log.Info("webhook refuses the change", "reasons", reasons, "opa_eval_result", "deny")
	}
	return reasons
}

// relevant gives the endpoints to ask, in the order of their names.
func (h *Hooks) relevant(settings *setting.Table, in *policy.Input) (asked []*endpoint) {
	h.mu.Lock()
	defer h.mu.Unlock()
	known := 0
	for r := range settings.All(setting.Webhook) {
		known++
		e, ok := h.endpoints[r.Name]
		// Not only a higher revision: a restore brings back what was.
		if !ok || e.revision != r.Revision || !bytes.Equal(e.stored, r.Spec) {
			if ok {
				e.close()
			}
			e = h.endpoint(r)
			h.endpoints[r.Name] = e
		}
		if e.spec.asks(in.Action, in.Resource.Namespace) {
			asked = append(asked, e)
		}
	}
	if known < len(h.endpoints) {
		for name, e := range h.endpoints {
			if _, ok := settings.Get(setting.Webhook, "", name); !ok {
				e.close()
				delete(h.endpoints, name)
				h.metrics.forget(name)
			}
		}
	}
	return asked
}

// read gives the spec of a stored webhook.
func read(r *setting.Record) (*Spec, error) {
	s := new(Spec)
	return s, json.Unmarshal(r.Spec, s, json.RejectUnknownMembers(true))
}
