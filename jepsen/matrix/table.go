package matrix

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Table is the results in markdown: a row for each cell, and the sums.
func Table(done map[string]*Result) string {
	var b strings.Builder
	b.WriteString("| cell | nodes | time | operations | ok | refused | unknown | rounds | leader changes | snapshots installed | restores | verdict |\n")
	b.WriteString("|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	sum := Result{}
	wrong := 0
	for _, name := range slices.Sorted(maps.Keys(done)) {
		r := done[name]
		verdict := "holds"
		if r.Violation != "" {
			verdict = "**violation**"
			wrong++
		}
		row(&b, r.Name(), fmt.Sprint(r.Nodes), r, verdict)
		sum.Seconds += r.Seconds
		sum.Operations += r.Operations
		sum.Done += r.Done
		sum.Refused += r.Refused
		sum.Unknown += r.Unknown
		sum.Rounds += r.Rounds
		sum.Leaders += r.Leaders
		sum.Installs += r.Installs
		sum.Restores += r.Restores
	}
	row(&b, fmt.Sprintf("%d cells", len(done)), "", &sum, fmt.Sprintf("%d violations", wrong))
	return b.String()
}

func row(b *strings.Builder, name, nodes string, r *Result, verdict string) {
	fmt.Fprintf(b, "| %s | %s | %s | %d | %d | %d | %d | %d | %d | %d | %d | %s |\n", name, nodes, r.took(),
		r.Operations, r.Done, r.Refused, r.Unknown, r.Rounds, r.Leaders, r.Installs, r.Restores, verdict)
}
