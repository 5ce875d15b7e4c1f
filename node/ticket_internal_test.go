package node

import (
	"testing"
	"time"
)

// TestTicketKeysComeAndGo: a new key waits until all nodes can know it, an old
// one opens for as long as a period, and a new leader goes on with what is there.
func TestTicketKeysComeAndGo(t *testing.T) {
	now := time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)
	leader, follower := newTickets(), newTickets()
	leader.renew(now, true)
	follower.merge(leader.shared, now)
	first := leader.shared[0]
	if len(follower.shared) != 1 || follower.shared[0] != first || first.From.After(now) {
		t.Fatalf("the follower has %d keys, the first is used from %v", len(follower.shared), first.From)
	}
	follower.renew(now.Add(time.Hour), true) // it leads now
	if len(follower.shared) != 1 {
		t.Fatal("a new leader made a key though there is a good one")
	}
	now = now.Add(ticketPeriod)
	follower.renew(now, true)
	if len(follower.shared) != 2 || !follower.shared[0].From.After(now) || follower.shared[1] != first {
		t.Fatalf("after a period: %d keys, the newest is used from %v", len(follower.shared), follower.shared[0].From)
	}
	follower.renew(now.Add(time.Second), true)
	if len(follower.shared) != 2 {
		t.Fatal("a key was made while one waits")
	}
	leader.merge(follower.shared, now)
	if len(leader.shared) != 2 {
		t.Fatal("the other node has not taken the new key")
	}
	leader.renew(now.Add(ticketPeriod+time.Second), false)
	if len(leader.shared) != 1 || leader.shared[0] == first {
		t.Fatal("a key outlived its time on a node without a leader")
	}
	leader.merge([]ticketKey{newTicketKey(now.Add(100 * time.Hour))}, now)
	if len(leader.shared) != 1 {
		t.Fatal("a key of the far future was taken")
	}
}
