package audit

import (
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// render appends an entry as JSON: the members in the order of the fields, those
// that are zero left out but for the first four. It is written by hand since
// every change, refusal and look-up passes it on every node; a test holds it to
// what reflection gives.
func (e *Entry) render(to []byte, c *clock) []byte {
	r := renderer{append(to, `{"seq":`...)}
	r.to = strconv.AppendUint(r.to, e.Seq, 10)
	r.to = append(c.append(append(r.to, `,"time":"`...), e.Time), '"')
	r.text(`,"node":`, e.Node)
	r.text(`,"type":`, string(e.Type))
	r.str(`,"event":`, e.Event)

	r.str(`,"principal":`, e.Principal)
	r.str(`,"source":`, e.Source)
	r.str(`,"action":`, e.Action)
	r.str(`,"record":`, e.Record)
	r.str(`,"operation":`, e.Operation)
	r.str(`,"call":`, e.Call)
	r.num(`,"revision":`, e.Revision)

	r.str(`,"decision_id":`, e.DecisionID)
	r.num(`,"policy_revision":`, e.PolicyRevision)
	r.str(`,"request_id":`, e.RequestID)
	r.str(`,"trace_id":`, e.TraceID)
	if e.Filtered {
		r.to = append(r.to, `,"filtered":true`...)
	}

	r.str(`,"outcome":`, e.Outcome)
	if e.Status != 0 {
		r.to = strconv.AppendInt(append(r.to, `,"status":`...), int64(e.Status), 10)
	}
	r.str(`,"code":`, e.Code)
	r.str(`,"reason":`, e.Reason)

	r.str(`,"serial":`, e.Serial)
	r.list(`,"names":`, e.Names)
	r.moment(`,"not_after":`, e.NotAfter)
	r.str(`,"shown":`, e.Shown)

	r.num(`,"suppressed":`, e.Suppressed)
	r.moment(`,"since":`, e.Since)

	r.str(`,"cluster_id":`, e.ClusterID)
	r.str(`,"cause":`, e.Cause)
	r.num(`,"from":`, e.From)
	r.num(`,"to":`, e.To)
	r.num(`,"lines":`, e.Lines)
	return append(r.to, '}')
}

// renderer appends members of an object that has one already. Their names come
// with the signs around them.
type renderer struct{ to []byte }

func (r *renderer) text(name, s string) { r.to = AppendText(append(r.to, name...), s) }

func (r *renderer) str(name, s string) {
	if s != "" {
		r.text(name, s)
	}
}

func (r *renderer) num(name string, n uint64) {
	if n != 0 {
		r.to = strconv.AppendUint(append(r.to, name...), n, 10)
	}
}

func (r *renderer) moment(name string, t time.Time) {
	if !t.IsZero() {
		r.to = append(t.AppendFormat(append(append(r.to, name...), '"'), time.RFC3339Nano), '"')
	}
}

func (r *renderer) list(name string, all []string) {
	if all == nil {
		return
	}
	r.to = append(append(r.to, name...), '[')
	for i, s := range all {
		if i > 0 {
			r.to = append(r.to, ',')
		}
		r.to = AppendText(r.to, s)
	}
	r.to = append(r.to, ']')
}

// AppendText appends a string as JSON; what is no UTF-8 in it becomes the sign for
// that.
func AppendText(to []byte, s string) []byte {
	if plain(s) {
		return append(append(append(to, '"'), s...), '"')
	}
	to, _ = jsontext.AppendQuote(to, s) // the error says that it was no UTF-8
	return to
}

// plain reports whether a string stands in JSON as it is: it is ASCII without
// control characters, quotes and backslashes. Eight bytes are looked at as one:
// nearly every string of a line is so, and this is half of the work on it.
func plain(s string) bool {
	const ones, high = 0x0101010101010101, 0x8080808080808080
	for ; len(s) >= 8; s = s[8:] {
		x := uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 | uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
		quote, slash := x^'"'*ones, x^'\\'*ones
		if (x|(x-' '*ones)|(quote-ones)|(slash-ones))&high != 0 {
			return false
		}
	}
	for i := range len(s) {
		if b := s[i]; b < ' ' || b >= 0x80 || b == '"' || b == '\\' {
			return false
		}
	}
	return true
}

// clock writes times in RFC 3339, as fine as they are. It keeps the text of the
// last second: most lines are of the same as the one before.
type clock struct {
	second int64
	text   []byte // of it, to the second; empty: there was none
}

// append expects a time in UTC.
func (c *clock) append(to []byte, t time.Time) []byte {
	if second := t.Unix(); len(c.text) == 0 || c.second != second {
		c.second, c.text = second, t.AppendFormat(c.text[:0], "2006-01-02T15:04:05")
	}
	to = append(to, c.text...)
	if n := t.Nanosecond(); n > 0 {
		at := len(to)
		to = append(to, ".000000000"...)
		for i := len(to) - 1; i > at; i, n = i-1, n/10 {
			to[i] = byte('0' + n%10)
		}
		for to[len(to)-1] == '0' {
			to = to[:len(to)-1]
		}
	}
	return append(to, 'Z')
}
