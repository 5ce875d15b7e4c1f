package cluster

import (
	"io"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// roll is the machine, and who is a member as far as it has applied the log.
// Each node notices there that a member is gone, whatever became of the leader
// that decided it: the entry counts once it is committed, and nothing else does.
type roll struct {
	Machine
	c    *Cluster
	raft atomic.Pointer[raft.Raft] // nil while it starts

	members []raft.ServerID // known to the goroutine that applies; nil: not known yet

	mu      sync.Mutex // guards leaving
	leaving map[raft.ServerID]removal
}

// removal is why this node removes a member, while it leads in the term.
type removal struct {
	term uint64
	why  string
}

func (c *Cluster) newRoll(list []*raft.SnapshotMeta) *roll {
	r := &roll{Machine: c.machine, c: c, leaving: map[raft.ServerID]removal{}}
	if len(list) > 0 {
		r.members = ids(list[0].Configuration)
	}
	return r
}

// ids gives the members of a configuration; none is not nil.
func ids(configuration raft.Configuration) []raft.ServerID {
	all := make([]raft.ServerID, 0, len(configuration.Servers))
	for _, s := range configuration.Servers {
		all = append(all, s.ID)
	}
	return all
}

// leaves notes why this node is about to remove a member.
func (r *roll) leaves(id raft.ServerID, term uint64, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leaving[id] = removal{term, why}
}

// ApplyBatch implements raft.BatchingFSM. Entries that an earlier start has
// applied come again, and are not told of again.
func (r *roll) ApplyBatch(logs []*raft.Log) []any {
	old := r.Machine.AppliedIndex()
	out := r.Machine.ApplyBatch(logs)
	for _, l := range logs {
		if l.Type == raft.LogConfiguration {
			r.follow(raft.DecodeConfiguration(l.Data), l, l.Index > old)
		}
	}
	return out
}

// Restore implements raft.FSM. The snapshot that raft has just been given, and
// hands on, says who is a member; members that it lacks went meanwhile.
func (r *roll) Restore(from io.ReadCloser) error {
	if err := r.Machine.Restore(from); err != nil {
		return err
	}
	if list, err := r.c.snaps.List(); err == nil && len(list) > 0 {
		r.follow(list[0].Configuration, &raft.Log{Term: list[0].Term}, true)
	}
	return nil
}

// follow takes a configuration over, and tells whom it lacks.
func (r *roll) follow(next raft.Configuration, entry *raft.Log, tell bool) {
	was := r.members
	r.members = ids(next)
	for _, id := range was {
		if !tell || slices.Contains(r.members, id) {
			continue
		}
		r.c.removed(string(id), r.why(id, entry))
	}
}

// why says who removed a member by the entry: this node, when it led; another,
// which tells why; or one that fell before it may have told anybody, so that it
// falls to this node, which leads now.
func (r *roll) why(id raft.ServerID, entry *raft.Log) string {
	r.mu.Lock()
	own := r.leaving[id]
	delete(r.leaving, id)
	r.mu.Unlock()
	if own.why != "" && own.term == entry.Term {
		return own.why
	}
	if now := r.raft.Load(); now != nil && now.State() == raft.Leader && now.CurrentTerm() > entry.Term {
		return RemovedBefore
	}
	return RemovedElsewhere
}

// removed says that a node is no longer a member, and tells whom it concerns
// where nobody else does.
func (c *Cluster) removed(id, why string) {
	c.log.Warn("a node is no longer a member", "id", id, "because", why)
	c.metrics.removed.WithLabelValues(why).Inc()
	if why != RemovedElsewhere {
		c.cfg.OnRemoved(id, why)
	}
}
