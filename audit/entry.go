// Package audit owns a node's audit trail: a file of one JSON line for each
// change of the cluster's state, each refused call and each refused
// connection, chained by hashes, so that a line that was altered, taken out or
// moved is noticed; and the reading of it.
//
// Changes are told as the state machine applies them, and the trail is on disk
// before the state file that holds them is: what a crash took from the trail is
// told again by the log (docs/adr/0007-audit-trail.md). A change that stands
// in the trail already is not written twice.
//
// It refuses to write a gap over: whatever is missing is said in a line of its
// own.
package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
)

// Type says what a line is about.
type Type string

// The types of line.
const (
	Change     Type = "change"      // of the state, applied
	Refusal    Type = "refusal"     // of a call
	Connection Type = "connection"  // refused on the peer port
	Lookup     Type = "lookup"      // that was answered, where those are wanted
	Decision   Type = "decision"    // about a document that somebody sent, where those are wanted
	Issued     Type = "certificate" // of a workload, handed out
	Membership Type = "membership"  // a node was removed, or the leadership handed over
	Begin      Type = "begin"       // first line of a file, and of each start of the node
	Gap        Type = "gap"         // changes or lines that are not in this trail
	Alarmed    Type = "alarm"       // the trail is not the one that the cluster knows
)

// The outcomes.
const (
	Applied = "applied"
	Allowed = "allowed"
	Refused = "refused"
	Unknown = "unknown" // a change that was not acknowledged, and may have happened
)

// Anonymous is the principal of who has proved no identity.
const Anonymous = "anonymous"

// Evaluated is the event of lines about what a policy decided.
const Evaluated = "policy_evaluation"

// The causes of a begin and of a gap.
const (
	Start    = "start"    // of the node
	Rotation = "rotation" // of the file
	Reopened = "reopened" // by SIGHUP

	New      = "new"      // the changes came before this trail began
	Snapshot = "snapshot" // the node took over the state of another
	Missing  = "missing"  // they were in the trail, or should have been
	Lost     = "lost"     // they could not be written
)

// Entry is one line of a trail. Which fields are set depends on its type.
type Entry struct {
	Seq   uint64    `json:"seq"` // 1, 2, 3 … over all files
	Time  time.Time `json:"time"`
	Node  string    `json:"node"`
	Type  Type      `json:"type"`
	Event string    `json:"event,omitzero"` // policy_evaluation

	Principal string `json:"principal,omitzero"`
	Source    string `json:"source,omitzero"` // address of the caller
	Action    string `json:"action,omitzero"`
	Record    string `json:"record,omitzero"`    // as "service default/cart"
	Operation string `json:"operation,omitzero"` // of a call, as the edge names it
	Call      string `json:"call,omitzero"`      // its method and path
	Revision  uint64 `json:"revision,omitzero"`

	DecisionID     string `json:"decision_id,omitzero"`
	PolicyRevision uint64 `json:"policy_revision,omitzero"`
	RequestID      string `json:"request_id,omitzero"`
	TraceID        string `json:"trace_id,omitzero"`
	Filtered       bool   `json:"filtered,omitzero"` // the policy replaced content

	Outcome string `json:"outcome,omitzero"`
	Status  int    `json:"status,omitzero"` // HTTP, of a refusal
	Code    string `json:"code,omitzero"`
	Reason  string `json:"reason,omitzero"` // of a refused connection, of an alarm

	Serial   string    `json:"serial,omitzero"`    // of a certificate, in hexadecimal
	Names    []string  `json:"names,omitzero"`     // that stand in it: its id, its hosts
	NotAfter time.Time `json:"not_after,omitzero"` // its end
	Shown    string    `json:"shown,omitzero"`     // serial of the certificate that its caller showed

	Suppressed uint64    `json:"suppressed,omitzero"` // so many more of this caller's have no line of their own
	Since      time.Time `json:"since,omitzero"`      // the first of those

	ClusterID string `json:"cluster_id,omitzero"` // begin, gap, and the change that gave it
	Cause     string `json:"cause,omitzero"`      // begin, gap
	From      uint64 `json:"from,omitzero"`       // gap: first revision that is not here
	To        uint64 `json:"to,omitzero"`         // gap: the last
	Lines     uint64 `json:"lines,omitzero"`      // gap: how many lines of other types are not here

	// Request is for the mirror alone: the call behind the line; nil: there is
	// none, or this node did not take it.
	Request Request `json:"-"`
}

// Request is a call, for a mirror.
type Request interface {
	// AppendJSON appends it as a JSON object without credentials. It may be asked
	// for after the call was answered, and by another goroutine.
	AppendJSON(to []byte) []byte
}

// Rendered is a request that is such an object already.
type Rendered []byte

// AppendJSON implements [Request].
func (r Rendered) AppendJSON(to []byte) []byte { return append(to, r...) }

// Head is where a chain has come to.
type Head struct {
	Seq       uint64 `json:"seq"`
	Hash      string `json:"hash"` // of the last line, in hexadecimal
	ClusterID string `json:"cluster_id"`
	Revision  uint64 `json:"revision"` // of the last change in the trail, or told to be missing
}

var zero = strings.Repeat("0", 2*sha256.Size)

// link ends the line that begins at from: its JSON, the hash of the line before
// and its own, which covers everything before it.
func link(to []byte, from int, prev string) (linked []byte, hash string) {
	to = append(to[:len(to)-1], `,"prev":"`...)
	to = append(to, prev...)
	to = append(to, '"')
	sum := sha256.Sum256(to[from:])
	to = append(to, hashMember...)
	at := len(to)
	to = hex.AppendEncode(to, sum[:])
	hash = string(to[at:])
	return append(to, '"', '}', '\n'), hash
}

const hashMember = `,"hash":"`

// linked is a line as it is read.
type linked struct {
	Entry
	Prev string `json:"prev"`
	Hash string `json:"hash"`
}

// read decodes one line without its end and holds it to its own hash.
func read(line []byte) (*linked, error) {
	l := new(linked)
	if err := json.Unmarshal(line, l, json.RejectUnknownMembers(false)); err != nil {
		return nil, fmt.Errorf("it is not a line of a trail: %w", err)
	}
	end := bytes.LastIndex(line, []byte(hashMember))
	if end < 0 || string(line[end:]) != hashMember+l.Hash+`"}` {
		return l, errors.New("it does not end with its hash")
	}
	if sum := sha256.Sum256(line[:end]); hex.EncodeToString(sum[:]) != l.Hash {
		return l, errors.New("it was altered: it is not what its hash was made of")
	}
	return l, nil
}

// after moves the head behind a line.
func (h *Head) after(e *Entry, hash string) {
	h.Seq, h.Hash = e.Seq, hash
	if e.ClusterID != "" && e.ClusterID != h.ClusterID {
		h.ClusterID, h.Revision = e.ClusterID, 0
	}
	switch e.Type {
	case Change, Begin:
		h.Revision = max(h.Revision, e.Revision)
	case Gap:
		h.Revision = max(h.Revision, e.To)
	}
}
