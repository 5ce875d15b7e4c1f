package policy

import (
	"time"

	"github.com/go-json-experiment/json"
)

// State is where a revision stands in its life.
type State string

// The states. Exactly one revision is active once any has been activated, and
// at most one is the shadow.
const (
	Staged  State = "staged"
	Shadow  State = "shadow" // evaluated beside the active one, without effect
	Active  State = "active"
	Retired State = "retired"
)

// Stamp is what a command brings along: its position in the sequence of
// changes, the leader's time and the caller.
type Stamp struct {
	Revision uint64
	Time     time.Time
	By       string
}

// Tests counts the revision's own tests.
type Tests struct {
	Passed int `json:"passed"`
	Failed int `json:"failed"`
}

// Severities of findings.
const (
	SeverityInfo    = "info"    // a habit worth changing
	SeverityWarning = "warning" // likely a mistake
	SeverityError   = "error"   // the revision is refused
)

// Finding is something about a module that is likely to be a mistake. Row and
// Col count from 1; 0 means unknown. A stored revision has none of severity
// error.
type Finding struct {
	Rule     string `json:"rule"`
	Severity string `json:"severity"` // info, warning, error
	File     string `json:"file,omitempty"`
	Row      int    `json:"row,omitzero"`
	Col      int    `json:"col,omitzero"`
	Message  string `json:"message"`
	Remedy   string `json:"remedy,omitempty"` // what to write instead
}

// Rows are successive lines of a module, counted from 1.
type Rows struct {
	From int `json:"from"`
	To   int `json:"to"`
}

// Coverage says how much of the modules the revision's own tests evaluate.
type Coverage struct {
	Percent   float64           `json:"percent"`             // of the lines with something to evaluate, 0 to 100
	Uncovered map[string][]Rows `json:"uncovered,omitempty"` // by file
}

// Report is what checking a content found. It is made once, by the leader.
type Report struct {
	Tests    Tests     `json:"tests"`
	Coverage *Coverage `json:"coverage,omitempty"` // nil: the revision has no tests
	Findings []Finding `json:"findings"`
}

// Encode gives the report as JSON, for the command that stages a revision.
func (r Report) Encode() []byte {
	b, err := json.Marshal(r)
	if err != nil {
		panic("policy: a report does not encode: " + err.Error())
	}
	return b
}

// Source says where the content of a revision was taken from.
type Source struct {
	Kind   string `json:"kind"` // git
	URL    string `json:"url"`  // without credentials
	Branch string `json:"branch,omitempty"`
	Path   string `json:"path,omitempty"`
	Commit string `json:"commit"`
}

// Signature says which trusted key vouches for the content of a revision.
type Signature struct {
	Key         string `json:"key"`                   // its name in the cluster
	Kind        string `json:"kind"`                  // openpgp, opa, ssh
	Fingerprint string `json:"fingerprint,omitempty"` // of the key that had the name
	Number      uint64 `json:"number,omitzero"`       // that was signed; a higher one than ever before. 0: a commit, whose order Git keeps
}

// Step is one event in the life of a revision.
type Step struct {
	Step string    `json:"step"` // fetched, verified, tested, and the states
	At   time.Time `json:"at"`
	By   string    `json:"by,omitempty"`
	Note string    `json:"note,omitempty"`
}

// Origin is what is known of a content before it is staged.
type Origin struct {
	Source    *Source    `json:"source,omitzero"`
	Signature *Signature `json:"signature,omitzero"`
	Steps     []Step     `json:"steps,omitempty"` // the first of the revision's history
}

// Encode gives the origin as JSON, for the command that stages a revision.
func (o Origin) Encode() []byte {
	b, err := json.Marshal(o)
	if err != nil {
		panic("policy: an origin does not encode: " + err.Error())
	}
	return b
}

// Revision is one immutable set of modules and data with its place in the
// history. Values are shared: they must not be changed.
type Revision struct {
	Number uint64 `json:"revision"` // 1, 2, 3… in a sequence of its own
	Digest string `json:"digest"`
	State  State  `json:"state"`
	Report
	Origin
	Engine      string    `json:"engine,omitempty"`  // that checked it, as "opa 1.22.2"
	Share       float64   `json:"share,omitzero"`    // of the decisions, while it is the shadow
	Replaces    uint64    `json:"replaces,omitzero"` // active before it; where a rollback goes
	CreatedAt   time.Time `json:"created_at"`
	CreatedBy   string    `json:"created_by"`
	ActivatedAt time.Time `json:"activated_at,omitzero"`
	ActivatedBy string    `json:"activated_by,omitempty"`
	ChangedAt   uint64    `json:"changed_at_revision"` // the registry revision of its last change
	Content

	JSON []byte `json:"-"` // the whole record, as it is stored and as GET returns it
}

// Summary is the record without modules and data, as lists and the answer to
// a push show it.
func (r *Revision) Summary() []byte {
	short := *r
	short.Modules, short.Data = nil, nil
	return short.encode()
}

func (r *Revision) encode() []byte {
	b, err := json.Marshal(r, json.Deterministic(true))
	if err != nil {
		panic("policy: a revision does not encode: " + err.Error())
	}
	return b
}
