package nemesis

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/muster-registry/muster/jepsen"
)

// Scene is what a fault acts on.
type Scene struct {
	*jepsen.Cluster
	History *jepsen.History
	Rand    *rand.Rand // of the cell's seed
	// Work is for what a fault leaves behind: mounts, copies.
	Work string
	// Slack multiplies every wait.
	Slack time.Duration
	// Round counts the rounds of the cell from 0.
	Round int

	disks map[*jepsen.Node]*disk // of those faults that bring their own
	lost  int                    // blocks of them
}

// End ends one round of a fault: everything is as before, though nodes may need
// a while to be ready. It says what shows that the fault happened, and it is an
// error when nothing does.
type End func(ctx context.Context) (evidence string, err error)

// Fault is one kind of trouble. Its functions are called by one goroutine.
type Fault struct {
	Name string
	// Hold is the least and most that a round lasts. The zero value: 2 to 4 s.
	Hold [2]time.Duration
	// Config is merged into the nodes' configuration, by top-level key.
	Config map[string]any
	// Spares is how many nodes it wants beyond those of the cluster.
	Spares int
	// Missing says why it cannot be here; nil where it can.
	Missing func() error
	// Lay prepares a cluster that has not been started. Its undo is called
	// after the nodes have ended.
	Lay func(*Scene) (undo func() error, err error)
	// Strike begins a round.
	Strike func(ctx context.Context, s *Scene) (End, error)
	// Fresh faults leave nodes with new disks, whose audit trails begin anew.
	Fresh bool
}

// All are the faults there are, in the order of the tables.
func All() []Fault {
	var all []Fault
	for _, of := range [][]Fault{{none}, partitions(), lags(), processes(), clocks(), {rolling}, memberships(), disks(), powers()} {
		all = append(all, of...)
	}
	return all
}

// none is no fault at all: what a workload does on a whole cluster.
var none = Fault{Name: "none", Strike: func(context.Context, *Scene) (End, error) {
	return func(context.Context) (string, error) { return "nothing was done", nil }, nil
}}

// Lasts picks how long the round lasts.
func (f *Fault) Lasts(r *rand.Rand) time.Duration {
	least, most := f.Hold[0], f.Hold[1]
	if most == 0 {
		least, most = 2*time.Second, 4*time.Second
	}
	return least + time.Duration(r.Int64N(int64(most-least)+1))
}

// leader waits for one that a majority names.
func (s *Scene) leader(ctx context.Context) (*jepsen.Node, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, s.Slack*20*time.Second)
	defer cancel()
	return s.Leader(ctx)
}

// follower is one that does not lead, by chance.
func (s *Scene) follower(ctx context.Context) (*jepsen.Node, error) {
	leader, _, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	others := s.Others(leader)
	return others[s.Rand.IntN(len(others))], nil
}

// some are so many nodes by chance.
func (s *Scene) some(count int) (nodes []*jepsen.Node) {
	for _, i := range s.Rand.Perm(len(s.Nodes))[:count] {
		nodes = append(nodes, s.Nodes[i])
	}
	return nodes
}

// minority is how many nodes may be missing.
func (s *Scene) minority() int { return (len(s.Nodes) - 1) / 2 }

// ready waits until all nodes are.
func (s *Scene) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.Slack*60*time.Second)
	defer cancel()
	return s.AwaitReady(ctx)
}

func names(nodes []*jepsen.Node) string {
	text := ""
	for i, n := range nodes {
		if i > 0 {
			text += " "
		}
		text += n.ID
	}
	return text
}

func nothing(what string) error { return fmt.Errorf("the fault did not happen: %s", what) }
