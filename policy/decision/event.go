package decision

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/policy"
)

// Message is the message of every line about a decision.
const Message = "policy_evaluation"

// Event is a decision as it leaves the node: masked. Its JSON has the shape of
// OPA's decision log events, with a few members more. It is the log's: a sink
// keeps nothing of it without a copy.
type Event struct {
	Refusal bool
	record  *Record
	mask    *Masker
	cut     bool // input is what is masked in the record's
	input   cuts
	result  cuts
	json    []byte // once it was asked for
	scratch []byte
}

func newEvent(r *Record, m *Masker) *Event {
	return new(Event).of(r, m)
}

// of makes it the event of another record.
func (e *Event) of(r *Record, m *Masker) *Event {
	e.Refusal, e.record, e.mask, e.cut, e.json = !r.Result.Allow, r, m, false, e.json[:0]
	if cap(e.json) > maxKept {
		e.json = nil
	}
	return e
}

// maxKept bounds the memory that one event leaves to the next.
const maxKept = 64 << 10

// masked gives the input with what is masked in it.
func (e *Event) masked() *cuts {
	if !e.cut {
		e.mask.cut(&e.input, "input", e.record.Input)
		e.cut = true
	}
	return &e.input
}

// JSON gives the event as one line without its end. It has room for the end,
// and holds until the log has another event.
func (e *Event) JSON() []byte {
	if len(e.json) > 0 {
		return e.json
	}
	r := e.record
	b := append(e.json, `{"type":"openpolicyagent.org/decision_logs","labels":`...)
	b = labels(b, r.Labels)
	b = policy.AppendText(member(b, "decision_id"), r.ID)
	b = r.Trace.append(b)
	b = strconv.AppendUint(append(member(b, "revision"), '"'), r.PolicyRevision, 10)
	b = strconv.AppendUint(append(b, `","bundles":{"muster":{"revision":"`...), r.PolicyRevision, 10)
	b = append(b, `"}}`...)
	shown, chance, query := r.Result, r.Chance, r.Query
	if len(chance) > 0 || len(shown.Reasons) > 0 || query != "" {
		// They may repeat what the input holds: a token is an argument of what
		// verifies it.
		hide := hider(e.masked().texts())
		chance, shown.Reasons, query = hidden(chance, hide), texts(shown.Reasons, hide), hide(query)
	}
	if query != "" {
		b = text(b, "query", query)
	} else {
		b = text(b, "path", r.EntryPoint)
	}
	masked := []string(nil)
	if r.Input != nil {
		b = e.masked().append(member(b, "input"))
		masked = e.input.pointers()
	}
	if e.scratch = append(e.scratch[:0], r.Result.Value...); r.Result.Value == nil {
		e.scratch = shown.append(e.scratch)
	}
	if e.mask.masks("result") {
		e.mask.cut(&e.result, "result", e.scratch)
		b = e.result.append(member(b, "result"))
		masked = append(masked[:len(masked):len(masked)], e.result.pointers()...)
	} else {
		b = raw(b, "result", e.scratch)
	}
	b = raw(b, "nd_builtin_cache", chance)
	var erased []string
	if r.Input == nil && r.InputBytes > 0 {
		erased = append(erased, "/input")
	}
	if r.Result.ValueBytes > 0 {
		erased = append(erased, "/result")
	}
	b = list(b, "erased", erased)
	b = list(b, "masked", masked)
	b = text(b, "requested_by", r.RequestedBy)
	b = instant(member(b, "timestamp"), r.Time)
	b = strconv.AppendInt(append(b, `,"metrics":{"timer_server_handler_ns":`...), r.TookNS, 10)
	b = policy.AppendText(append(b, `},"msg":"`+Message+`","`+Message+`":`...), r.EntryPoint)
	b = policy.AppendText(member(b, "opa_eval_result"), e.verdict())
	b = strconv.AppendUint(member(b, "policy_revision"), r.PolicyRevision, 10)
	b = number(b, "data_revision", int64(r.Revision))
	b = text(b, "engine", r.Engine)
	b = text(b, "principal", r.Principal)
	b = text(b, "request_id", r.RequestID)
	e.json = append(b, '}')
	if cap(e.scratch) > maxKept {
		e.scratch = nil
	}
	return e.json
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
	_ = json.Unmarshal(e.masked().append(nil), &asked) // an input of another shape has none of it
	attrs := []slog.Attr{
		slog.String("opa_eval_result", e.verdict()), slog.String("decision_id", r.ID), slog.String(Message, r.EntryPoint),
		slog.Uint64("policy_revision", r.PolicyRevision), slog.String("node", r.Node),
	}
	for _, a := range []slog.Attr{
		slog.String("action", asked.Action), slog.String("method", asked.Attributes.Request.HTTP.Method), slog.String("path", asked.Attributes.Request.HTTP.Path),
		slog.String("principal", r.Principal), slog.String("requested_by", r.RequestedBy), slog.String("request_id", r.RequestID),
		slog.String("query", hider(e.masked().texts())(r.Query)), slog.String("trace_id", r.Trace.TraceID), slog.String("span_id", r.Trace.SpanID), slog.String("reasons", strings.Join(r.Result.Reasons, "; ")),
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
