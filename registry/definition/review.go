package definition

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// The bounds of what is kept of a review: a record must stay small, and who
// has a thousand places to mend begins with some.
const (
	maxFindings = 1000 // in all
	maxPerRule  = 50   // places of one rule
	maxPointer  = 1 << 10
)

// Severities in order, the worst first.
var Severities = []string{"high", "medium", "low", "info"}

// NotChecked is the rule of findings that say what was not looked at.
const NotChecked = "not-checked"

// Rule is what a built-in rule about definitions says about itself.
type Rule struct {
	ID          string `json:"id"`
	Severity    string `json:"severity"` // high, medium, low, info
	OWASP       string `json:"owasp"`    // of the OWASP API Security Top 10, such as API2:2023
	NIST        string `json:"nist"`     // publication and family of measures
	Title       string `json:"title"`
	Description string `json:"description"`
	Package     string `json:"package"`
}

// Judgement is what a rule says about all places of one entry of a normal
// form.
type Judgement struct {
	Rule     string
	Severity string // one of Severities
	Message  string
	Places   int      // the entry's number
	Except   []string // pointers below which the rule says nothing
}

// Review is what all rules say about a definition.
type Review struct {
	// Findings are in order of severity, rule and place. Of many, the last one
	// says how many are not listed.
	Findings []Finding
	// Counts has the number of findings of each severity, listed or not; nil
	// when the definition was not checked.
	Counts map[string]int
}

// Unchecked is the review of a definition that could not be checked; reason
// says why. Its severity is high where it could have been.
func Unchecked(severity, reason string) *Review {
	return &Review{Findings: []Finding{{Rule: NotChecked, Severity: severity, Message: reason}}}
}

// spot is one place of one judgement.
type spot struct {
	node     uint32
	judgment *Judgement
}

// Review turns judgements into findings. A place that a rule names twice
// counts once, with the first message in their order.
func (n *Normal) Review(judgements []Judgement) *Review {
	r := &Review{Findings: []Finding{}, Counts: map[string]int{}}
	for _, s := range Severities {
		r.Counts[s] = 0
	}
	rank := func(severity string) int { return slices.Index(Severities, severity) }
	slices.SortFunc(judgements, func(a, b Judgement) int {
		return cmp.Or(cmp.Compare(rank(a.Severity), rank(b.Severity)), strings.Compare(a.Rule, b.Rule), strings.Compare(a.Message, b.Message), cmp.Compare(a.Places, b.Places))
	})
	var listed []spot
	unlisted := map[string]int{} // by rule
	for from := 0; from < len(judgements); {
		to := from + 1
		for to < len(judgements) && judgements[to].Rule == judgements[from].Rule && judgements[to].Severity == judgements[from].Severity {
			to++
		}
		spots := n.spots(judgements[from:to])
		r.Counts[judgements[from].Severity] += len(spots)
		keep := min(len(spots), maxPerRule, maxFindings-1-len(listed))
		listed = append(listed, spots[:keep]...)
		if more := len(spots) - keep; more > 0 {
			unlisted[judgements[from].Rule] += more
		}
		from = to
	}
	nodes := make([]uint32, len(listed))
	for i, s := range listed {
		nodes[i] = s.node
	}
	at := pointers(n.tree, nodes)
	for _, s := range listed {
		r.Findings = append(r.Findings, Finding{Rule: s.judgment.Rule, Severity: s.judgment.Severity, Path: at[s.node], Message: s.judgment.Message})
	}
	if len(unlisted) > 0 {
		var more []string
		for _, rule := range slices.Sorted(maps.Keys(unlisted)) {
			more = append(more, strconv.Itoa(unlisted[rule])+" of "+rule)
		}
		r.Findings = append(r.Findings, Finding{Rule: "more-findings", Severity: "info", Message: "not listed for their number: " + strings.Join(more, ", ")})
	}
	return r
}

// spots gives the places of judgements of one rule, in the order of the
// document.
func (n *Normal) spots(judgements []Judgement) []spot {
	var out []spot
	for i := range judgements {
		j := &judgements[i]
		if j.Places < 0 || j.Places >= len(n.places) {
			continue
		}
		places := n.places[j.Places]
		var at map[uint32]string
		if len(j.Except) > 0 {
			at = pointers(n.tree, places)
		}
		for _, node := range places {
			if !slices.ContainsFunc(j.Except, func(e string) bool { return e == at[node] || strings.HasPrefix(at[node], e+"/") }) {
				out = append(out, spot{node, j})
			}
		}
	}
	slices.SortStableFunc(out, func(a, b spot) int { return cmp.Compare(a.node, b.node) })
	return slices.CompactFunc(out, func(a, b spot) bool { return a.node == b.node })
}

// pointers gives the JSON pointers of some nodes, in one pass over the tree.
// Where one would be too long, it is that of the part the node stands in.
func pointers(t *tree, nodes []uint32) map[uint32]string {
	out := make(map[uint32]string, len(nodes))
	sorted := slices.Compact(slices.Sorted(slices.Values(nodes)))
	var descend func(n uint32, at string)
	descend = func(n uint32, at string) {
		if len(sorted) > 0 && sorted[0] == n {
			out[n] = at
			sorted = sorted[1:]
		}
		i := 0
		t.children(n, func(c uint32) bool {
			if len(sorted) == 0 || sorted[0] >= t.nodes[n].next {
				return false
			}
			if sorted[0] < t.nodes[c].next {
				token := strconv.Itoa(i)
				if t.nodes[n].kind == '{' {
					token = escape(t.key(c))
				}
				if len(at)+1+len(token) <= maxPointer {
					descend(c, at+"/"+token)
				} else {
					for len(sorted) > 0 && sorted[0] < t.nodes[c].next {
						out[sorted[0]] = at
						sorted = sorted[1:]
					}
				}
			}
			i++
			return true
		})
	}
	descend(0, "")
	return out
}
