package jepsen

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/audit"
)

// Audited checks a node's audit trail: it verifies, also against what the
// cluster knows of it, the node has no alarm of it, and each acknowledged
// write stands in it once, or in what the node says it took over from another
// with the state. It returns how many were found as lines.
func (n *Node) Audited(ctx context.Context, ops []Op) (found int, err error) {
	files, err := filepath.Glob(n.file("data/audit/audit.log") + "*")
	if err != nil {
		return 0, err
	}
	heads, err := n.heads(ctx)
	if err != nil {
		return 0, err
	}
	if _, err := (audit.Check{Heads: heads}).Verify(files...); err != nil {
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

// heads asks what the cluster knows of the trails.
func (n *Node) heads(ctx context.Context) (map[string]audit.Head, error) {
	if differs, err := n.Metric(ctx, "muster_audit_differs"); err != nil || differs != 0 {
		return nil, fmt.Errorf("%s accuses its own trail: %v, %v", n.ID, differs, err)
	}
	a := n.Call(ctx, http.MethodGet, "/v1/audit/heads?consistency=linearizable", nil)
	if a.Outcome != OK {
		return nil, fmt.Errorf("audit heads of %s: %s", n.ID, a)
	}
	var list struct {
		Items []struct {
			Node string `json:"node"`
			Seq  uint64 `json:"seq"`
			Hash string `json:"hash"`
		} `json:"items"`
	}
	if err := json.Unmarshal(a.Body, &list); err != nil {
		return nil, err
	}
	heads := map[string]audit.Head{}
	for _, h := range list.Items {
		heads[h.Node] = audit.Head{Seq: h.Seq, Hash: h.Hash}
	}
	return heads, nil
}
