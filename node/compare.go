package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/muster-registry/muster/fault"
)

const (
	methodHashAt   = "state.hash"     // the state hash after a Raft entry
	methodDiverged = "state.diverged" // tells a node that its state is not the cluster's

	// divergedFile in data_dir marks a node whose state is not the cluster's.
	divergedFile = "diverged"

	compareEvery = 2 * time.Second
	compareWait  = 2 * time.Second // for a node to reach the index
)

// divergence keeps a node whose state is not the cluster's out of service,
// across restarts: only a data folder that is filled anew by the others ends it.
type divergence struct {
	mu   sync.Mutex // guards why
	why  string
	path string
}

func openDivergence(dataDir string) (*divergence, error) {
	d := &divergence{path: filepath.Join(dataDir, divergedFile)}
	b, err := os.ReadFile(d.path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	d.why = string(b)
	return d, nil
}

func (d *divergence) is() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.why != ""
}

// err is what callers of a node that differs are told; nil where it does not.
func (d *divergence) err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.why == "" {
		return nil
	}
	return fault.New(fault.NotReady, "%s; it answers nothing until its data folder is emptied and it is started again", d.why)
}

func (d *divergence) set(why string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.why != "" {
		return nil
	}
	d.why = why
	return os.WriteFile(d.path, []byte(why), 0o600)
}

// compareStates runs on the leader: it compares the state hashes of all nodes
// at equal Raft indices (law 4). What most voters have is right; a node that
// has something else leaves service. Where no majority agrees, nobody can say
// who is right: that is an alarm and no more.
func (n *Node) compareStates(ctx context.Context) {
	tick := time.NewTicker(compareEvery)
	defer tick.Stop()
	defer n.split.Store(false) // the next leader sees for itself
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			n.compareAt(ctx, n.machine.Marked())
		}
	}
}

// compareAt compares the nodes after one Raft entry.
func (n *Node) compareAt(ctx context.Context, index uint64) {
	if index == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 2*compareWait)
	defer cancel()
	payload := binary.BigEndian.AppendUint64(nil, index)
	members := n.cluster.Members()
	hashes := make([]string, len(members))
	var wg sync.WaitGroup
	voters := 0
	for i, m := range members {
		if m.Role != "non-voter" {
			voters++
		}
		if !m.Alive {
			continue
		}
		wg.Go(func() {
			if b, err := n.cluster.CallNode(ctx, m.ID, methodHashAt, payload); err == nil {
				hashes[i] = string(b)
			}
		})
	}
	wg.Wait()
	votes := map[string]int{}
	for i, m := range members {
		if hashes[i] != "" && m.Role != "non-voter" {
			votes[hashes[i]]++
		}
	}
	right := ""
	for hash, count := range votes {
		if count > voters/2 {
			right = hash
		}
	}
	split := right == "" && len(votes) > 1
	n.split.Store(split)
	if split {
		n.logger.Error("the nodes differ in their state, and no majority agrees: compare them with muster cluster status before anything else", "index", index, "states", len(votes))
		return
	}
	for i, m := range members {
		if right == "" || hashes[i] == "" || hashes[i] == right {
			continue
		}
		why := fmt.Sprintf("the state of this node differs from the one that most voters have, after entry %d of the log", index)
		n.logger.Error("a node's state differs from the cluster's and it leaves service", "member", m.ID, "index", index, "hash", hashes[i], "right", right)
		if _, err := n.cluster.CallNode(ctx, m.ID, methodDiverged, []byte(why)); err != nil {
			n.logger.Error("the node that differs could not be told", "member", m.ID, "error", err)
		}
	}
}

// serveHashAt answers with the state hash after an entry, when this node has
// applied it and still remembers.
func (n *Node) serveHashAt(ctx context.Context, _ string, payload []byte) ([]byte, error) {
	index, err := decodeNumber(payload)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, compareWait)
	defer cancel()
	if err := n.machine.AwaitApplied(ctx, index); err != nil {
		return nil, fault.New(fault.NotReady, "this node has not applied entry %d yet", index)
	}
	hash, ok := n.machine.HashAt(index)
	if !ok {
		return nil, fault.New(fault.NotFound, "this node does not remember its state after entry %d", index)
	}
	return []byte(hash.String()), nil
}

// serveDiverged takes this node out of service.
func (n *Node) serveDiverged(ctx context.Context, _ string, payload []byte) ([]byte, error) {
	n.logger.Error("this node leaves service: its state is not the cluster's", "reason", string(payload))
	if err := n.diverged.set(string(payload)); err != nil {
		n.logger.Error("that this node differs could not be written down: it would serve again after a restart", "error", err)
	}
	if n.cluster.IsLeader() {
		if err := n.cluster.TransferLeader(ctx, ""); err != nil {
			n.logger.Error("the leadership could not be handed over", "error", err)
		}
	}
	return nil, nil
}
