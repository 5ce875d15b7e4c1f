package jepsen

import (
	"bufio"
	"errors"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
)

// Op is one operation of one caller, or one fault, as it is recorded.
type Op struct {
	Worker  int     `json:"worker"`
	Node    string  `json:"node"`
	Kind    Kind    `json:"kind"`
	Key     string  `json:"key,omitzero"`
	Value   string  `json:"value,omitzero"`  // written, or read
	Expect  string  `json:"expect,omitzero"` // value that a compare-and-set rests on
	Invoke  int64   `json:"invoke"`          // ns since the history began
	Return  int64   `json:"return"`
	Outcome Outcome `json:"outcome"`
	Status  int     `json:"status,omitzero"`
	Code    string  `json:"code,omitzero"`
	// Revision of the record that was written or read.
	Revision uint64 `json:"revision,omitzero"`
	// At is the revision of the state that an answer came from.
	At        uint64 `json:"at,omitzero"`
	Staleness int64  `json:"staleness_ms,omitzero"`
	Detail    string `json:"detail,omitzero"`
}

// Kind is what an operation does.
type Kind string

// The kinds.
const (
	Write Kind = "write"
	CAS   Kind = "cas"
	Read  Kind = "read" // linearizable
	Local Kind = "local"
	Beat  Kind = "beat"  // a heartbeat
	Look  Kind = "look"  // a look-up of a service
	Push  Kind = "push"  // a policy revision, activated
	End   Kind = "end"   // a revocation
	Knock Kind = "knock" // a call with a credential that may be revoked
	Turn  Kind = "turn"  // a restore of a snapshot
	Spend Kind = "spend" // a question whether a quota allows
	Told  Kind = "told"  // an event of a watch
	Open  Kind = "open"  // break-glass, in a namespace
	Shut  Kind = "shut"  // its end
	Fault Kind = "fault"
)

// History is everything that callers did and were told. It goes to a file of
// JSON lines as well, which outlives a crash of the test.
type History struct {
	Path  string
	begin time.Time

	mu   sync.Mutex // guards what follows
	ops  []Op
	file *os.File
	out  *bufio.Writer
	err  error
}

// NewHistory begins a history in a new file.
func NewHistory(path string) (*History, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	return &History{Path: path, begin: time.Now(), file: f, out: bufio.NewWriter(f)}, nil
}

// Since is a moment as the history writes it.
func (h *History) Since(t time.Time) int64 { return int64(t.Sub(h.begin)) }

// Add records what became of an operation.
func (h *History) Add(op Op, a *Answer) Op {
	op.Invoke, op.Return = h.Since(a.Invoke), h.Since(a.Return)
	op.Outcome, op.Status, op.Code, op.At = a.Outcome, a.Status, a.Code, a.Revision()
	if age, ok := a.Staleness(); ok {
		op.Staleness = age.Milliseconds()
	}
	if a.Err != nil {
		op.Detail = strings.TrimSpace(op.Detail + " " + a.Err.Error())
	}
	h.record(op)
	return op
}

// Mark records a fault, or its end, and returns the moment.
func (h *History) Mark(node, what string) time.Time {
	now := time.Now()
	h.record(Op{Kind: Fault, Node: node, Invoke: h.Since(now), Return: h.Since(now), Outcome: OK, Detail: what})
	return now
}

func (h *History) record(op Op) {
	line, err := json.Marshal(&op)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, op)
	_, werr := h.out.Write(append(line, '\n'))
	h.err = errors.Join(h.err, err, werr)
}

// Ops returns the operations recorded so far for which keep is true, nil: all,
// in the order in which they returned.
func (h *History) Ops(keep func(*Op) bool) []Op {
	h.mu.Lock()
	defer h.mu.Unlock()
	var ops []Op
	for i := range h.ops {
		if keep == nil || keep(&h.ops[i]) {
			ops = append(ops, h.ops[i])
		}
	}
	return ops
}

// Count counts them.
func (h *History) Count(keep func(*Op) bool) int { return len(h.Ops(keep)) }

// Close writes the rest of the file.
func (h *History) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return errors.Join(h.err, h.out.Flush(), h.file.Close())
}
