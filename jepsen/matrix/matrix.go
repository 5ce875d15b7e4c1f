// Package matrix owns the cells: a workload and a fault, on so many nodes, from
// one seed, for a bounded time. It runs them, keeps what each leaves behind, and
// words the verdicts. It refuses to know what a workload does or a fault breaks.
package matrix

import (
	"fmt"
	"time"
)

// Cell is one run.
type Cell struct {
	Workload string `json:"workload"`
	Fault    string `json:"fault"`
	Nodes    int    `json:"nodes"`
	Seed     uint64 `json:"seed"`
}

// Name is how a cell is chosen on the command line.
func (c Cell) Name() string { return c.Workload + "/" + c.Fault }

// String names the cell with what else tells it apart, as a file can be called.
func (c Cell) String() string {
	return fmt.Sprintf("%s-%s-%dn-%d", c.Workload, c.Fault, c.Nodes, c.Seed)
}

// Result is what became of a cell.
type Result struct {
	Cell
	Seconds    float64  `json:"seconds"` // with the start and the checks
	Operations int      `json:"operations"`
	Done       int      `json:"ok"`
	Refused    int      `json:"refused"`
	Unknown    int      `json:"unknown"`
	Rounds     int      `json:"rounds"`
	Evidence   []string `json:"evidence"`
	Leaders    int      `json:"leader_changes"`
	Installs   int      `json:"snapshot_installs"`
	Restores   int      `json:"restores"`
	Seen       string   `json:"seen"`
	// Violation is "" where everything held.
	Violation string `json:"violation"`
}

func (r *Result) took() time.Duration {
	return time.Duration(r.Seconds * float64(time.Second)).Round(time.Second)
}

// Verdict is one line.
func (r *Result) Verdict() string {
	word := "ok"
	if r.Violation != "" {
		word = "VIOLATION"
	}
	line := fmt.Sprintf("%s %s n=%d seed=%d %s: %d operations (%d ok, %d refused, %d unknown), %d rounds, %d leader changes, %d snapshot installs",
		word, r.Name(), r.Nodes, r.Seed, r.took(), r.Operations, r.Done, r.Refused, r.Unknown, r.Rounds, r.Leaders, r.Installs)
	if r.Restores > 0 {
		line += fmt.Sprintf(", %d restores", r.Restores)
	}
	if len(r.Evidence) > 0 {
		line += " (the last: " + r.Evidence[len(r.Evidence)-1] + ")"
	}
	if r.Seen != "" {
		line += "; " + r.Seen
	}
	if r.Violation != "" {
		line += ": " + r.Violation
	}
	return line
}
