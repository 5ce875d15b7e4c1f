package matrix

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/muster-registry/muster/jepsen"
	"github.com/muster-registry/muster/jepsen/nemesis"
	"github.com/muster-registry/muster/jepsen/workload"
)

// Options are those of all cells of a run.
type Options struct {
	Binary string        // muster
	Dir    string        // each cell leaves a folder there
	Length time.Duration // of the time in which callers call
	Slack  time.Duration // multiplies every wait; 1 on a machine with nothing else to do
}

// calm is how long callers have a whole cluster between two rounds.
const calm = time.Second

// run is a cell that runs.
type run struct {
	Cell
	Options
	kind  workload.Kind
	fault nemesis.Fault
	load  workload.Workload
	stage *workload.Stage
	scene *nemesis.Scene
	res   *Result
	ended time.Time // before the nodes are stopped
}

// Run runs a cell in a world of its own (see [jepsen.Enter]) and leaves its
// result in its folder. The error says that it could not be run; a violation is
// in the result.
func Run(ctx context.Context, c Cell, o Options) (*Result, error) {
	r := &run{Cell: c, Options: o, res: &Result{Cell: c}}
	i := slices.IndexFunc(workload.All(), func(k workload.Kind) bool { return k.Name == c.Workload })
	j := slices.IndexFunc(nemesis.All(), func(f nemesis.Fault) bool { return f.Name == c.Fault })
	if i < 0 || j < 0 {
		return nil, fmt.Errorf("no cell is called %s", c.Name())
	}
	r.kind, r.fault = workload.All()[i], nemesis.All()[j]
	r.load = r.kind.Make()
	dir := filepath.Join(o.Dir, c.String())
	if err := os.RemoveAll(dir); err != nil { // of a run that did not end
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	history, err := jepsen.NewHistory(filepath.Join(dir, "history.jsonl"))
	if err != nil {
		return nil, err
	}
	begun := time.Now()
	cluster, err := jepsen.NewCluster(jepsen.Settings{Binary: o.Binary, Dir: dir, Nodes: c.Nodes, Spares: r.fault.Spares, Config: r.config()})
	if err != nil {
		return nil, errors.Join(err, history.Close())
	}
	chance := rand.New(rand.NewPCG(c.Seed, 1))
	r.scene = &nemesis.Scene{Cluster: cluster, History: history, Rand: chance, Work: dir, Slack: o.Slack}
	r.stage = &workload.Stage{Cluster: cluster, History: history, Slack: o.Slack, Folder: dir, Fresh: r.fault.Fresh}
	undo := func() error { return nil }
	if r.fault.Lay != nil {
		if undo, err = r.fault.Lay(r.scene); err != nil {
			return nil, errors.Join(err, cluster.Stop(), history.Close())
		}
	}
	violation := r.play(ctx)
	r.ended = time.Now()
	if err := cluster.Stop(); err != nil && violation == nil {
		violation = fmt.Errorf("a node did not end well: %w", err)
	}
	r.res.Seconds = time.Since(begun).Seconds()
	err = errors.Join(undo(), history.Close())
	if violation != nil {
		r.res.Violation = violation.Error()
	}
	return r.res, errors.Join(err, r.leave(dir))
}

// config puts together what workload and fault want of the nodes. Small Raft
// snapshots make those that were away need one.
func (r *run) config() map[string]any {
	config := map[string]any{"raft": map[string]any{"snapshot_threshold": 256, "trailing_logs": 128, "snapshot_interval": "2s"}}
	for _, more := range []map[string]any{r.load.Config(), r.fault.Config} {
		maps.Copy(config, more)
	}
	return config
}

// play starts the cluster, has callers call while the fault strikes, round
// after round, and checks. Any error is a violation: a cluster that does not
// come back is one, too.
func (r *run) play(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.Length+r.Slack*5*time.Minute)
	defer cancel()
	start, done := context.WithTimeout(ctx, r.Slack*60*time.Second)
	err := r.scene.Start(start)
	done()
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	if err := r.load.Begin(ctx, r.stage); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	r.stage.Begun = time.Now()
	stop := r.callers(ctx)
	err = r.strike(ctx)
	stop()
	if err != nil {
		return err
	}
	settle, done := context.WithTimeout(ctx, r.Slack*60*time.Second)
	defer done()
	if err := r.scene.AwaitReady(settle); err != nil {
		return fmt.Errorf("after the faults: %w", err)
	}
	if _, err := r.scene.Converge(settle); err != nil {
		return fmt.Errorf("the nodes do not agree: %w", err)
	}
	if r.res.Seen, err = r.load.Check(ctx, r.stage); err != nil {
		return err
	}
	return r.enough()
}

// strike makes the fault happen, round after round, until the time is over.
func (r *run) strike(ctx context.Context) error {
	end := r.stage.Begun.Add(r.Length)
	for r.scene.Round = 0; ; r.scene.Round++ {
		if err := rest(ctx, calm); err != nil {
			return err
		}
		if r.scene.Round > 0 && !time.Now().Before(end) {
			return nil
		}
		finish, err := r.fault.Strike(ctx, r.scene)
		if err != nil {
			return fmt.Errorf("round %d of %s: %w", r.scene.Round, r.Fault, err)
		}
		if err := rest(ctx, r.fault.Lasts(r.scene.Rand)); err != nil {
			return err
		}
		evidence, err := finish(ctx)
		if err != nil {
			return fmt.Errorf("round %d of %s: %w", r.scene.Round, r.Fault, err)
		}
		r.res.Rounds++
		r.res.Evidence = append(r.res.Evidence, evidence)
		if err := r.recovered(ctx); err != nil {
			return fmt.Errorf("after round %d of %s (%s): %w", r.scene.Round, r.Fault, evidence, err)
		}
	}
}

// recovered waits until a change and a linearizable read through each node work.
func (r *run) recovered(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.Slack*30*time.Second)
	defer cancel()
	begun := time.Now()
	for _, n := range r.scene.Nodes {
		err := jepsen.Until(ctx, func() error {
			call, cancel := context.WithTimeout(ctx, workload.Patience)
			defer cancel()
			if a := n.Call(call, "PUT", "/v1/namespaces/recovered/services/"+n.ID, []byte(`{}`)); a.Outcome != jepsen.OK {
				return fmt.Errorf("%s takes no change: %s", n.ID, a)
			}
			if a := n.Call(call, "GET", "/v1/namespaces/recovered/services/"+n.ID+"?consistency=linearizable", nil); a.Outcome != jepsen.OK {
				return fmt.Errorf("%s gives no linearizable read: %s", n.ID, a)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("the cluster does not come back: %w", err)
		}
	}
	r.stage.History.Mark("", fmt.Sprintf("all nodes take changes %s after the end of the fault", time.Since(begun).Round(time.Millisecond)))
	return nil
}

// callers starts them; stop lets requests under way finish.
func (r *run) callers(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var calling sync.WaitGroup
	for _, n := range r.stage.Nodes {
		for i := range r.kind.PerNode {
			number := n.Number*r.kind.PerNode + i
			c := &workload.Caller{Node: n, Number: number, Rand: rand.New(rand.NewPCG(r.Seed, uint64(100+number)))}
			calling.Go(func() {
				for ; ctx.Err() == nil; c.Count++ {
					if rest(ctx, r.load.Step(context.WithoutCancel(ctx), r.stage, c)) != nil {
						return
					}
				}
			})
		}
	}
	return func() {
		cancel()
		calling.Wait()
	}
}

func rest(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// enough demands that the run shows something.
func (r *run) enough() error {
	r.count()
	if least := r.kind.Least * r.Length.Seconds() * float64(r.Nodes) / float64(r.Slack); float64(r.res.Done) < least {
		return fmt.Errorf("only %d operations succeeded; the run shows nothing with fewer than %.0f", r.res.Done, least)
	}
	return nil
}
