package policy

import (
	"cmp"
	"slices"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// DifferenceKind says in which way a revision answers differently.
type DifferenceKind string

// The kinds of difference. Where several hold, the first of them counts.
const (
	DiffersByError    DifferenceKind = "error"       // it gave no answer
	WouldDeny         DifferenceKind = "would_deny"  // what is allowed
	WouldAllow        DifferenceKind = "would_allow" // what is denied
	DiffersByReasons  DifferenceKind = "reasons"     // both deny, for other reasons
	DiffersByFiltered DifferenceKind = "filtered"    // both allow, and change what is stored or returned in other ways
	DiffersByResult   DifferenceKind = "result"      // both give the document that was asked for by its path, and not the same
)

// The limits on what an impact holds; what does not fit is only counted, as
// [OtherReasons].
const (
	MaxDifferences = 100 // by entry point, kind and reason
	MaxExamples    = 5   // of each
	OtherReasons   = "(other reasons)"
)

// Impact tells how the answers of a revision differ from those that were given.
type Impact struct {
	Revision    uint64       `json:"revision"`
	Active      uint64       `json:"active"` // what it is compared with; 0: no policy
	Since       time.Time    `json:"since,omitzero"`
	Share       float64      `json:"share,omitzero"` // of the decisions
	Evaluated   uint64       `json:"evaluated"`
	Dropped     uint64       `json:"dropped"` // that were to be evaluated, and were too many
	Differences []Difference `json:"differences"`
	Nodes       []NodeImpact `json:"nodes"` // that the figures are of
}

// NodeImpact is the part of one node in an impact.
type NodeImpact struct {
	Node      string    `json:"node"`
	Since     time.Time `json:"since,omitzero"`
	Evaluated uint64    `json:"evaluated"`
	Dropped   uint64    `json:"dropped"`
	Problem   string    `json:"problem,omitempty"` // why figures of it are missing
}

// Difference counts the answers that differ in one way for one reason.
type Difference struct {
	EntryPoint string         `json:"entrypoint"`
	Kind       DifferenceKind `json:"kind"`
	Reason     string         `json:"reason"`
	Count      uint64         `json:"count"`
	Examples   []Example      `json:"examples"`
}

// Example is one answer that differs. Input is masked.
type Example struct {
	DecisionID string         `json:"decision_id"`
	Time       time.Time      `json:"time"`
	Input      jsontext.Value `json:"input,omitzero"` // absent where it is too large
	Active     Answer         `json:"active"`
	Shadow     Answer         `json:"shadow"`
	Filtered   []string       `json:"filtered_at,omitempty"` // JSON Pointers at which filtered differs
}

// Answer is what an example shows of a decision.
type Answer struct {
	Allow          bool     `json:"allow"`
	Reasons        []string `json:"reasons"`
	PolicyRevision uint64   `json:"policy_revision"`
	Filtered       bool     `json:"filtered,omitzero"` // it replaces what is stored or returned
}

// Merge adds what other counted, of the same two revisions, on other nodes.
func (i *Impact) Merge(other *Impact) {
	i.Evaluated += other.Evaluated
	i.Dropped += other.Dropped
	if i.Since.IsZero() || (!other.Since.IsZero() && other.Since.Before(i.Since)) {
		i.Since = other.Since
	}
	i.Nodes = append(i.Nodes, other.Nodes...)
	for _, d := range other.Differences {
		i.add(d)
	}
	slices.SortStableFunc(i.Differences, func(a, b Difference) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.EntryPoint, b.EntryPoint), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Reason, b.Reason))
	})
}

func (i *Impact) add(d Difference) {
	at := i.index(d)
	if at < 0 && len(i.Differences) >= MaxDifferences {
		d.Reason, d.Examples = OtherReasons, nil
		at = i.index(d)
	}
	if at < 0 {
		d.Examples = slices.Clone(d.Examples)
		i.Differences = append(i.Differences, d)
		return
	}
	same := &i.Differences[at]
	same.Count += d.Count
	room := max(0, MaxExamples-len(same.Examples))
	same.Examples = append(same.Examples, d.Examples[:min(room, len(d.Examples))]...)
}

func (i *Impact) index(d Difference) int {
	return slices.IndexFunc(i.Differences, func(o Difference) bool {
		return o.EntryPoint == d.EntryPoint && o.Kind == d.Kind && o.Reason == d.Reason
	})
}
