package jepsen

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/audit"
)

// Audited checks a node's audit trail: it verifies, and each acknowledged
// write stands in it once, or in what the node says it took over from another
// with the state. It returns how many were found as lines.
func (n *Node) Audited(ops []Op) (found int, err error) {
	files, err := filepath.Glob(n.file("data/audit/audit.log") + "*")
	if err != nil {
		return 0, err
	}
	if _, err := audit.Verify(files...); err != nil {
		return 0, err
	}
	times := map[uint64]int{}
	var gaps []audit.Entry
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return 0, err
		}
		for line := range bytes.Lines(b) {
			var e audit.Entry
			if err := json.Unmarshal(bytes.TrimSpace(line), &e); err != nil {
				continue // verified above: it is the last, and not finished
			}
			switch {
			case e.Type == audit.Change:
				times[e.Revision]++
			case e.Type == audit.Gap && e.Cause == audit.Snapshot:
				gaps = append(gaps, e)
			}
		}
	}
	var errs []error
	for _, op := range ops {
		if op.Outcome != OK || op.Revision == 0 {
			continue
		}
		covered := false
		for _, g := range gaps {
			covered = covered || g.From <= op.Revision && op.Revision <= g.To
		}
		switch count := times[op.Revision]; {
		case count == 1:
			found++
		case count == 0 && covered:
		default:
			errs = append(errs, fmt.Errorf("the change of revision %d, acknowledged by %s, stands %d times in the trail of %s", op.Revision, op.Node, count, n.ID))
		}
	}
	return found, errors.Join(errs[:min(len(errs), 10)]...)
}
