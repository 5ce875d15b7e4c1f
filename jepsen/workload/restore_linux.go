package workload

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/jepsen"
)

// restore writes a growing set while one caller saves snapshots of the whole
// cluster and restores them, one after the other. In the end each node has
// exactly what the last restores left and what was written after them: what was
// acknowledged before a snapshot was begun, or after its restore, is there; what
// was acknowledged after it was taken and before it was restored is not.
// Revisions only go up.
type restore struct {
	set
	mu    sync.Mutex // guards turns
	turns []turn
}

// turn is one restore: of a snapshot as of a revision, at a revision.
type turn struct {
	saved    uint64 // the state in the snapshot
	done     uint64 // the revision that the restore was given; 0: not known
	from, to int64  // when it was under way
	outcome  jepsen.Outcome
}

func (w *restore) Begin(ctx context.Context, s *Stage) error {
	if err := w.set.Begin(ctx, s); err != nil {
		return err
	}
	_, err := s.must(ctx, http.MethodPut, "/v1/namespaces/"+namespace+"/services/"+w.Service, `{}`)
	return err
}

func (w *restore) Step(ctx context.Context, s *Stage, c *Caller) time.Duration {
	if c.Number > 0 {
		return w.set.Step(ctx, s, c)
	}
	if err := w.restore(ctx, s, c); err != nil {
		s.History.Mark("", "no restore: "+err.Error())
	}
	return c.between(300*time.Millisecond, 900*time.Millisecond)
}

// restore saves a snapshot from any node and restores it through any, a moment later.
func (w *restore) restore(ctx context.Context, s *Stage, c *Caller) error {
	ctx, cancel := context.WithTimeout(ctx, s.Slack*20*time.Second)
	defer cancel()
	from := c.any(s)
	saved := from.Call(ctx, http.MethodGet, "/v1/snapshot", nil)
	if saved.Outcome != jepsen.OK {
		return fmt.Errorf("save from %s: %s", from.ID, saved)
	}
	time.Sleep(c.between(0, 300*time.Millisecond))
	file := s.Folder + "/last.snapshot"
	if err := os.WriteFile(file, saved.Body, 0o600); err != nil {
		return err
	}
	revision, err := w.inspect(ctx, s, file)
	if err != nil {
		return err
	}
	n := c.any(s)
	op := jepsen.Op{Worker: c.Number, Node: n.ID, Kind: jepsen.Turn, Key: "snapshot", Value: fmt.Sprint(revision)}
	a := n.Call(ctx, http.MethodPut, "/v1/snapshot?force=true", saved.Body, "Content-Type", "application/octet-stream")
	t := turn{saved: revision, outcome: a.Outcome}
	if a.Outcome == jepsen.OK {
		if t.done = a.Revision(); t.done == 0 {
			var r struct{ Revision uint64 }
			_ = json.Unmarshal(a.Body, &r, json.MatchCaseInsensitiveNames(true)) // 0: not known
			t.done = r.Revision
		}
	}
	op.Revision = t.done
	op = s.History.Add(op, a)
	t.from, t.to = op.Invoke, op.Return
	w.mu.Lock()
	defer w.mu.Unlock()
	w.turns = append(w.turns, t)
	return nil
}

func (w *restore) inspect(ctx context.Context, s *Stage, file string) (uint64, error) {
	out, err := s.Muster(ctx, "snapshot", "inspect", file, "-o", "json")
	if err != nil {
		return 0, err
	}
	var about struct {
		Header struct {
			Revision uint64 `json:"revision"`
		} `json:"header"`
	}
	if err := json.Unmarshal(out, &about); err != nil {
		return 0, err
	}
	if about.Header.Revision == 0 {
		return 0, fmt.Errorf("no revision in %.200s", out)
	}
	return about.Header.Revision, nil
}

func (w *restore) Check(ctx context.Context, s *Stage) (string, error) {
	ops := s.History.Ops(func(op *jepsen.Op) bool { return op.Kind == jepsen.Write })
	if err := jepsen.CheckRevisions(ops); err != nil {
		return "", err
	}
	done := 0
	for _, t := range w.turns {
		if t.outcome == jepsen.OK {
			done++
			if t.done == 0 {
				return "", errors.New("the answer to a restore names no revision")
			}
		}
	}
	if done == 0 {
		return "", fmt.Errorf("none of %d restores succeeded; the run shows nothing", len(w.turns))
	}
	kept, gone, open := 0, 0, 0
	var errs []error
	for _, n := range s.Nodes {
		found, err := w.Members(ctx, n.Client, "linearizable")
		if err != nil {
			return "", err
		}
		var mistakes fewMistakes
		kept, gone, open = w.judge(&mistakes, ops, found)
		if err := mistakes.err(); err != nil {
			errs = append(errs, fmt.Errorf("on %s: %w", n.ID, err))
		}
	}
	if kept*int(s.Slack) < 10 {
		errs = append(errs, fmt.Errorf("only %d acknowledged writes had to be there; the run shows nothing", kept))
	}
	return fmt.Sprintf("%d restores; %d acknowledged writes had to be there and were, %d were taken back by a restore, %d either", done, kept, gone, open), errors.Join(errs...)
}

// judge holds what is found against what must, may and must not be there.
func (w *restore) judge(mistakes *fewMistakes, ops []jepsen.Op, found map[string]uint64) (kept, gone, open int) {
	slices.SortFunc(w.turns, func(a, b turn) int { return cmp.Compare(a.done, b.done) })
	for _, op := range ops {
		revision, there := found[op.Key]
		switch op.Outcome {
		case jepsen.OK:
			switch w.survives(op) {
			case certainly:
				if kept++; !there || revision != op.Revision {
					mistakes.add("%s, acknowledged with revision %d, has %d: lost or changed, and no restore took it back", op.Key, op.Revision, revision)
				}
			case never:
				if gone++; there {
					mistakes.add("%s, acknowledged with revision %d, is there, and a restore took it back", op.Key, op.Revision)
				}
			default:
				open++
			}
		case jepsen.Failed:
			if there {
				mistakes.add("%s was refused (%d %s) and is there", op.Key, op.Status, op.Code)
			}
		}
	}
	return kept, gone, open
}

type fate int

const (
	perhaps fate = iota
	certainly
	never
)

// survives says what the restores made of a write. One whose outcome is unknown
// may have been done at any time after it began.
func (w *restore) survives(op jepsen.Op) fate {
	now := w.alive(op.Revision, math.MaxUint64)
	for _, t := range w.turns {
		if t.outcome == jepsen.Unknown && op.Invoke < t.to+int64(time.Minute) && now != (op.Revision <= t.saved && w.alive(op.Revision, t.saved)) {
			return perhaps
		}
	}
	if now {
		return certainly
	}
	return never
}

// alive tells whether the write of a revision is in the state as of another. The
// last restore before that decides: what is in its snapshot is there. A snapshot
// may be of a node that was behind, and bring back what another took.
func (w *restore) alive(revision, at uint64) bool {
	for i := len(w.turns) - 1; i >= 0; i-- { // by the revision at which they were done
		if t := w.turns[i]; t.outcome == jepsen.OK && revision < t.done && t.done <= at {
			return revision <= t.saved && w.alive(revision, t.saved)
		}
	}
	return true
}
