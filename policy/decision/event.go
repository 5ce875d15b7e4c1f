package decision

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Message is the message of every line about a decision.
const Message = "policy_evaluation"

// Event is a decision as it leaves the node: masked. Its JSON has the shape of
// OPA's decision log events, with a few members more.
type Event struct {
	Refusal bool
	record  *Record
	mask    *Masker
	json    []byte // once it was asked for
}

func newEvent(r *Record, m *Masker) *Event {
	return &Event{Refusal: !r.Result.Allow, record: r, mask: m}
}

// event is an EventV1 of OPA's, and what muster adds.
type event struct {
	Type       string            `json:"type"`
	Labels     map[string]string `json:"labels"`
	DecisionID string            `json:"decision_id"`
	Trace
	Revision    string            `json:"revision,omitempty"`
	Bundles     map[string]bundle `json:"bundles,omitempty"`
	Path        string            `json:"path,omitempty"`
	Input       jsontext.Value    `json:"input,omitzero"`
	Result      jsontext.Value    `json:"result,omitzero"`
	Chance      jsontext.Value    `json:"nd_builtin_cache,omitzero"`
	Erased      []string          `json:"erased,omitempty"`
	Masked      []string          `json:"masked,omitempty"`
	RequestedBy string            `json:"requested_by,omitempty"`
	Timestamp   time.Time         `json:"timestamp"`
	Metrics     map[string]int64  `json:"metrics,omitempty"`

	Msg            string `json:"msg"`
	PolicyPath     string `json:"policy_evaluation"`
	Verdict        string `json:"opa_eval_result"`
	PolicyRevision uint64 `json:"policy_revision"`
	DataRevision   uint64 `json:"data_revision,omitzero"`
	Engine         string `json:"engine,omitempty"`
	Principal      string `json:"principal,omitempty"`
	RequestID      string `json:"request_id,omitempty"`
}

type bundle struct {
	Revision string `json:"revision"`
}

// JSON gives the event as one line without its end.
func (e *Event) JSON() ([]byte, error) {
	if e.json != nil {
		return e.json, nil
	}
	r := e.record
	revision := strconv.FormatUint(r.PolicyRevision, 10)
	v := event{
		Type: "openpolicyagent.org/decision_logs", Labels: r.Labels, DecisionID: r.ID, Trace: r.Trace,
		Revision: revision, Bundles: map[string]bundle{"muster": {revision}}, Path: r.EntryPoint,
		Chance: r.Chance, RequestedBy: r.RequestedBy, Timestamp: r.Time, Metrics: map[string]int64{"timer_server_handler_ns": r.TookNS},
		Msg: Message, PolicyPath: r.EntryPoint, Verdict: e.verdict(), PolicyRevision: r.PolicyRevision, DataRevision: r.Revision,
		Engine: r.Engine, Principal: r.Principal, RequestID: r.RequestID,
	}
	shown := r.Result
	if len(v.Chance) > 0 || len(shown.Reasons) > 0 {
		// Both may repeat what the input holds: a token is an argument of what
		// verifies it.
		hide := e.mask.Hide("input", r.Input)
		v.Chance, shown.Reasons = hidden(v.Chance, hide), texts(shown.Reasons, hide)
	}
	if r.Input != nil {
		v.Input, v.Masked = e.mask.Mask("input", r.Input)
	} else if r.InputBytes > 0 {
		v.Erased = []string{"/input"}
	}
	result, err := []byte(r.Result.Value), error(nil)
	if r.Result.Value == nil {
		if result, err = json.Marshal(shown); err != nil {
			return nil, err
		}
	}
	var masked []string
	v.Result, masked = e.mask.Mask("result", result)
	v.Masked = append(v.Masked, masked...)
	e.json, err = json.Marshal(v, json.Deterministic(true))
	return e.json, err
}

func (e *Event) verdict() string {
	if e.record.Result.Allow {
		return "allow"
	}
	return "deny"
}

// pairs are the members of a short line, without the input.
func (e *Event) pairs() []slog.Attr {
	r := e.record
	var asked struct {
		Action     string `json:"action"`
		Attributes struct {
			Request struct {
				HTTP struct {
					Method string `json:"method"`
					Path   string `json:"path"`
				} `json:"http"`
			} `json:"request"`
		} `json:"attributes"`
	}
	masked, _ := e.mask.Mask("input", r.Input)
	_ = json.Unmarshal(masked, &asked) // an input of another shape has none of it
	attrs := []slog.Attr{
		slog.String("opa_eval_result", e.verdict()), slog.String("decision_id", r.ID), slog.String(Message, r.EntryPoint),
		slog.Uint64("policy_revision", r.PolicyRevision), slog.String("node", r.Node),
	}
	for _, a := range []slog.Attr{
		slog.String("action", asked.Action), slog.String("method", asked.Attributes.Request.HTTP.Method), slog.String("path", asked.Attributes.Request.HTTP.Path),
		slog.String("principal", r.Principal), slog.String("requested_by", r.RequestedBy), slog.String("request_id", r.RequestID),
		slog.String("trace_id", r.Trace.TraceID), slog.String("span_id", r.Trace.SpanID), slog.String("reasons", strings.Join(r.Result.Reasons, "; ")),
	} {
		if a.Value.String() != "" {
			attrs = append(attrs, a)
		}
	}
	return append(attrs, slog.Float64("took_ms", float64(r.TookNS/1000)/1000))
}

// Text gives the event as one line of name="value", for grep.
func (e *Event) Text() []byte {
	level := slog.LevelInfo
	if e.Refusal {
		level = slog.LevelWarn
	}
	b := fmt.Appendf(nil, "time=%s level=%s msg=%q", e.record.Time.UTC().Format(time.RFC3339Nano), level, Message)
	for _, a := range e.pairs() {
		b = append(append(append(b, ' '), a.Key...), '=')
		if a.Value.Kind() == slog.KindString {
			b = strconv.AppendQuote(b, a.Value.String())
		} else {
			b = append(b, a.Value.String()...)
		}
	}
	return append(b, '\n')
}

// Short gives the same as JSON.
func (e *Event) Short() ([]byte, error) {
	var b strings.Builder
	h := slog.NewJSONHandler(&b, nil)
	level := slog.LevelInfo
	if e.Refusal {
		level = slog.LevelWarn
	}
	line := slog.NewRecord(e.record.Time.UTC(), level, Message, 0)
	line.AddAttrs(e.pairs()...)
	err := h.Handle(context.Background(), line)
	return []byte(b.String()), err
}
