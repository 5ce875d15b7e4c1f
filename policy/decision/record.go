package decision

import (
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/muster-registry/muster/policy"
)

// Record is one decision with everything that it takes to explain it and to
// make it again: what was asked, when, of which revision, and what came out.
// Its input is not masked.
type Record struct {
	ID             string         `json:"decision_id"`
	Time           time.Time      `json:"time"` // as the policy saw it
	Node           string         `json:"node"`
	PolicyRevision uint64         `json:"policy_revision"`
	PolicyDigest   string         `json:"policy_digest,omitempty"`
	Revision       uint64         `json:"revision,omitzero"` // of the data that was decided on; 0: not known
	Engine         string         `json:"engine,omitempty"`
	EntryPoint     string         `json:"entrypoint"`
	Named          bool           `json:"named,omitzero"`       // the caller named the entry point
	Document       bool           `json:"document,omitzero"`    // and asked for the document there, not for a verdict
	Query          string         `json:"query,omitempty"`      // in Rego; nothing makes it again
	Response       bool           `json:"response,omitzero"`    // and asked for the answer to a proxied request along with the verdict
	Input          jsontext.Value `json:"input,omitzero"`       // nil: not kept
	InputBytes     int            `json:"input_bytes,omitzero"` // of an input too large to be kept
	Result         Result         `json:"result"`
	TookNS         int64          `json:"took_ns"`
	RequestedBy    string         `json:"requested_by,omitempty"` // the address that asked
	Principal      string         `json:"principal,omitempty"`
	RequestID      string         `json:"request_id,omitempty"`
	Trace
	Chance jsontext.Value    `json:"nd_builtin_cache,omitzero"` // results of built-ins that may differ next time
	Labels map[string]string `json:"labels,omitempty"`
}

// Result is what a decision came to.
type Result struct {
	Allow      bool           `json:"allow"`
	Reasons    []string       `json:"reasons,omitempty"`
	Filtered   jsontext.Value `json:"filtered,omitzero"`
	Missed     bool           `json:"missed,omitzero"`      // refused because no answer came in time
	Default    bool           `json:"default,omitzero"`     // the built-in roles alone have decided
	BreakGlass bool           `json:"break_glass,omitzero"` // refused, and allowed since break-glass was open
	Cause      policy.Cause   `json:"cause,omitempty"`      // of a refusal
	Value      jsontext.Value `json:"value,omitzero"`       // of a document that was asked for by its path, of a query, or the answer to a proxied request
	ValueBytes int            `json:"value_bytes,omitzero"` // of a value too large to be kept
}

// Trace is the place of a request in a distributed trace (W3C Trace Context).
type Trace struct {
	TraceID string `json:"trace_id,omitempty"`
	SpanID  string `json:"span_id,omitempty"` // of the caller
}

// ParseTrace reads a traceparent header; what is not one gives an empty trace.
func ParseTrace(parent string) Trace {
	version, rest, _ := strings.Cut(parent, "-")
	trace, rest, _ := strings.Cut(rest, "-")
	span, flags, ok := strings.Cut(rest, "-")
	flags, more, longer := strings.Cut(flags, "-")
	if !ok || !hexadecimal(version, 2) || version == "ff" || !hexadecimal(trace, 32) || !hexadecimal(span, 16) || !hexadecimal(flags, 2) ||
		(version == "00" && longer) || (longer && more == "") || strings.Trim(trace, "0") == "" || strings.Trim(span, "0") == "" {
		return Trace{}
	}
	return Trace{TraceID: trace, SpanID: span}
}

func hexadecimal(s string, n int) bool {
	if len(s) != n || s != strings.ToLower(s) {
		return false
	}
	_, err := hex.DecodeString(s)
	return err == nil
}

// Past gives what it takes to make the decision again; nil where its input was
// not kept, where no rules made it, or where it was a query.
func (r *Record) Past() *policy.Past {
	if r.Result.Cause == policy.ByWebhook || r.Query != "" {
		return nil
	}
	p := &policy.Past{Input: r.Input, Time: r.Time, Chance: r.Chance, Document: r.Document, Response: r.Response}
	switch {
	case r.Input == nil && r.InputBytes > 0:
		return nil
	case r.Input == nil: // none was sent
		p.Input = []byte("{}")
	}
	if r.Named {
		p.EntryPoint = r.EntryPoint
	}
	return p
}

// MadeBy says whether the revision is the one that made the decision, and not
// one that was given its number after a restore.
func (r *Record) MadeBy(rev *policy.Revision) bool {
	return rev.Number == r.PolicyRevision && (r.PolicyDigest == "" || rev.Digest == r.PolicyDigest)
}

func decode(b []byte) (*Record, error) {
	r := new(Record)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("a record of a decision cannot be read: %w", err)
	}
	return r, nil
}
