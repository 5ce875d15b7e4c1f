package node

import (
	"context"
	"encoding/binary"
	"maps"
	"slices"
	"sync"
	"time"
)

// Everywhere implements rest.Backend. Each node has said that it has the
// revision, or answers nobody any more unless it has: its time without a leader
// is over ([cluster.Cluster.Grace]), or its process has ended, and one that
// starts has to catch up first. What gossip believes does not count.
func (b backend) Everywhere(ctx context.Context, revision uint64, wait time.Duration) (pending []string, until time.Time) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	ends := map[string]time.Time{} // zero: never
	for id, d := range b.cluster.Grace(ctx) {
		if d >= 0 {
			ends[id] = time.Now().Add(d)
		} else {
			ends[id] = time.Time{}
		}
	}
	payload := binary.BigEndian.AppendUint64(nil, revision)
	ids := slices.Sorted(maps.Keys(ends))
	settled := make([]bool, len(ids))
	var asks sync.WaitGroup
	for i, id := range ids {
		asks.Go(func() { settled[i] = b.inForce(ctx, id, ends[id], payload) })
	}
	asks.Wait()
	endless := false
	for i, id := range ids {
		if !settled[i] {
			pending = append(pending, id)
			if ends[id].After(until) {
				until = ends[id]
			}
			endless = endless || ends[id].IsZero()
		}
	}
	if endless {
		until = time.Time{}
	}
	return pending, until
}

// inForce returns true when nothing more is to be feared of a node, false when
// the context has ended before.
func (b backend) inForce(ctx context.Context, id string, end time.Time, payload []byte) bool {
	over := func() bool { return !end.IsZero() && !time.Now().Before(end) }
	for {
		if over() {
			return true
		}
		try, cancel := context.WithTimeout(ctx, oneTry)
		_, err := b.cluster.CallNode(try, id, methodReached, payload)
		cancel()
		if err == nil || b.cluster.Ended(id) {
			return true
		}
		select {
		case <-ctx.Done():
			return over()
		case <-time.After(50 * time.Millisecond):
		}
	}
}
