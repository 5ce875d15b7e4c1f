package node

import (
	"context"
	"encoding/binary"
	"time"

	"github.com/muster-registry/muster/fault"
)

// methodSaved asks the leader when the newest scheduled snapshot was taken.
const methodSaved = "snapshots.newest"

const askSaved = 10 * time.Second

// know takes note of a scheduled snapshot that was taken. With folders that are
// not shared, the newest may lie with a node that led before. A clock that is
// ahead does not hold up the schedule for longer than one interval.
func (s *scheduled) know(taken time.Time) {
	if now := time.Now(); taken.After(now) {
		taken = now
	}
	s.set(func() {
		s.looked = true
		if taken.After(s.newest) {
			s.newest = taken
		}
	})
}

// taken is when the newest scheduled snapshot was taken, as far as is known.
func (s *scheduled) taken() (at time.Time, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.newest, !s.newest.IsZero()
}

// serveSaved answers methodSaved: the time in seconds since 1970, 0 for none;
// nothing before the leader has looked at the place.
func (n *Node) serveSaved(context.Context, string, []byte) ([]byte, error) {
	s := n.saves
	if s == nil {
		return nil, fault.New(fault.NotFound, "the node that leads saves no snapshots: snapshots.interval is not set there")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !s.looked:
		return nil, nil
	case s.newest.IsZero():
		return make([]byte, 8), nil
	}
	return binary.BigEndian.AppendUint64(nil, uint64(s.newest.Unix())), nil
}

// followSaved keeps what the leader knows of the schedule, for the metrics of
// this node, and for the day on which it leads.
func (n *Node) followSaved(ctx context.Context) {
	if n.saves == nil {
		return
	}
	tick := time.NewTicker(askSaved)
	defer tick.Stop()
	for {
		if !n.cluster.IsLeader() {
			n.askSaved(ctx)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// askSaved asks once. A leader that does not answer is asked again soon; what
// is known goes on ageing.
func (n *Node) askSaved(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, oneTry)
	defer cancel()
	b, err := n.cluster.Call(ctx, methodSaved, nil)
	if err != nil || len(b) != 8 {
		return
	}
	if at := binary.BigEndian.Uint64(b); at != 0 {
		n.saves.know(time.Unix(int64(at), 0))
		return
	}
	n.saves.set(func() { n.saves.looked = true })
}
