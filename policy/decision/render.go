package decision

import (
	"encoding/binary"
	"slices"
	"strconv"
	"time"

	"github.com/muster-registry/muster/policy"
)

// Records and events are written by hand, member after member, into memory
// that is used again: each decision of a node passes here. Reading is left to
// the JSON library, and a test compares what it reads with what was written.

// member begins a member of the object that b ends with.
func member(b []byte, name string) []byte {
	if b[len(b)-1] != '{' {
		b = append(b, ',')
	}
	return append(append(append(b, '"'), name...), '"', ':')
}

// text is a member that is left out where it is empty.
func text(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	return policy.AppendText(member(b, name), value)
}

// number is a member that is left out where it is zero.
func number(b []byte, name string, value int64) []byte {
	if value == 0 {
		return b
	}
	return strconv.AppendInt(member(b, name), value, 10)
}

// truth is a member that is left out where it is false.
func truth(b []byte, name string, value bool) []byte {
	if !value {
		return b
	}
	return append(member(b, name), "true"...)
}

// raw is a member that is left out where it is nil. The value is JSON.
func raw(b []byte, name string, value []byte) []byte {
	if value == nil {
		return b
	}
	return append(member(b, name), value...)
}

// list is a member that is left out where it is empty.
func list(b []byte, name string, values []string) []byte {
	if len(values) == 0 {
		return b
	}
	b = append(member(b, name), '[')
	for i, v := range values {
		if i > 0 {
			b = append(b, ',')
		}
		b = policy.AppendText(b, v)
	}
	return append(b, ']')
}

// labels is an object in the order of its names.
func labels(b []byte, of map[string]string) []byte {
	var room [8]string
	names := room[:0]
	for name := range of {
		names = append(names, name)
	}
	slices.Sort(names)
	b = append(b, '{')
	for i, name := range names {
		if i > 0 {
			b = append(b, ',')
		}
		b = policy.AppendText(append(policy.AppendText(b, name), ':'), of[name])
	}
	return append(b, '}')
}

func instant(b []byte, t time.Time) []byte {
	return append(t.AppendFormat(append(b, '"'), time.RFC3339Nano), '"')
}

// append writes the record as JSON.
func (r *Record) append(b []byte) []byte {
	b = policy.AppendText(member(append(b, '{'), "decision_id"), r.ID)
	b = instant(member(b, "time"), r.Time)
	b = policy.AppendText(member(b, "node"), r.Node)
	b = strconv.AppendUint(member(b, "policy_revision"), r.PolicyRevision, 10)
	b = text(b, "policy_digest", r.PolicyDigest)
	b = number(b, "revision", int64(r.Revision))
	b = text(b, "engine", r.Engine)
	b = policy.AppendText(member(b, "entrypoint"), r.EntryPoint)
	b = truth(b, "named", r.Named)
	b = truth(b, "document", r.Document)
	b = text(b, "query", r.Query)
	b = truth(b, "response", r.Response)
	b = raw(b, "input", r.Input)
	b = number(b, "input_bytes", int64(r.InputBytes))
	b = r.Result.append(member(b, "result"))
	b = strconv.AppendInt(member(b, "took_ns"), r.TookNS, 10)
	b = text(b, "requested_by", r.RequestedBy)
	b = text(b, "principal", r.Principal)
	b = text(b, "request_id", r.RequestID)
	b = r.Trace.append(b)
	b = raw(b, "nd_builtin_cache", r.Chance)
	if len(r.Labels) > 0 {
		b = labels(member(b, "labels"), r.Labels)
	}
	return append(b, '}')
}

func (t *Trace) append(b []byte) []byte {
	return text(text(b, "trace_id", t.TraceID), "span_id", t.SpanID)
}

func (r *Result) append(b []byte) []byte {
	b = strconv.AppendBool(member(append(b, '{'), "allow"), r.Allow)
	b = list(b, "reasons", r.Reasons)
	b = raw(b, "filtered", r.Filtered)
	b = truth(b, "missed", r.Missed)
	b = truth(b, "default", r.Default)
	b = truth(b, "break_glass", r.BreakGlass)
	b = text(b, "cause", string(r.Cause))
	b = raw(b, "value", r.Value)
	b = number(b, "value_bytes", int64(r.ValueBytes))
	return append(b, '}')
}

// frame appends a record behind its length, as a block of the store has it.
func (r *Record) frame(b []byte) []byte {
	at := len(b)
	b = append(b, make([]byte, lengthSize)...)
	b = r.append(b)
	// Written to a fixed number of bytes: a length that ends in zeros is one, too.
	n := uint64(len(b) - at - lengthSize)
	for i := range lengthSize - 1 {
		b[at+i] = byte(n)&0x7f | 0x80
		n >>= 7
	}
	b[at+lengthSize-1] = byte(n)
	return b
}

// lengthSize is enough for more than what one record may hold.
const lengthSize = binary.MaxVarintLen32
