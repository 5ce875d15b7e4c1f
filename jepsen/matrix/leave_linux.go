package matrix

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/muster-registry/muster/jepsen"
)

const resultFile = "result.json"

// count sums up the history.
func (r *run) count() {
	r.res.Operations, r.res.Done, r.res.Refused, r.res.Unknown, r.res.Restores = 0, 0, 0, 0, 0
	for _, op := range r.stage.History.Ops(func(op *jepsen.Op) bool { return op.Kind != jepsen.Fault }) {
		r.res.Operations++
		if op.Kind == jepsen.Turn && op.Outcome == jepsen.OK {
			r.res.Restores++
		}
		switch op.Outcome {
		case jepsen.OK:
			r.res.Done++
		case jepsen.Failed:
			r.res.Refused++
		default:
			r.res.Unknown++
		}
	}
}

// leave writes what stays of a cell: the history as EDN as well, the timeline,
// the verdict and, last, the result, by which a cell is known to be done. Of a
// cell without a violation the nodes' data and logs go.
func (r *run) leave(dir string) error {
	r.count()
	events, err := r.scene.Events()
	if err != nil {
		return err
	}
	for _, e := range events {
		switch {
		case !e.At.After(r.stage.Begun) || e.At.After(r.ended): // the nodes find together, and hand over as they are stopped
		case e.What == jepsen.Installed:
			r.res.Installs++
		case e.What == jepsen.Led:
			r.res.Leaders++
		}
	}
	ops := r.stage.History.Ops(nil)
	text, err := json.Marshal(r.res, jsontext.WithIndent("  "))
	if err != nil {
		return err
	}
	err = errors.Join(
		writeEDN(filepath.Join(dir, "history.edn"), ops),
		writeTimeline(filepath.Join(dir, "timeline.html"), r.res, r.stage.History, events),
		os.WriteFile(filepath.Join(dir, "verdict.txt"), []byte(r.res.Verdict()+"\n"), 0o600),
	)
	if r.res.Violation == "" {
		for _, n := range slices.Concat(r.scene.Nodes, r.scene.Spares) {
			err = errors.Join(err, os.RemoveAll(n.Dir), os.RemoveAll(n.Log))
		}
	}
	return errors.Join(err, os.WriteFile(filepath.Join(dir, resultFile), append(text, '\n'), 0o600))
}

// Results reads those of all cells that are done in a folder, by their names.
func Results(dir string) (map[string]*Result, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*", resultFile))
	if err != nil {
		return nil, err
	}
	done := map[string]*Result{}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		res := new(Result)
		if err := json.Unmarshal(text, res); err != nil {
			return nil, errors.Join(errors.New(f), err)
		}
		done[res.String()] = res
	}
	return done, nil
}

// quote writes a string as EDN does.
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "\t", `\t`, "\r", `\r`).Replace(s) + `"`
}
