package node_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/fault"
)

// A wall clock that jumps by a minute, either way, on any node: no instance is
// dropped, what has ended stays so, and the jump and the difference are alarms.
func TestClocksThatJump(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	off := make([]atomic.Int64, len(tr.nodes))
	for i := range tr.nodes {
		tr.nodes[i].unlike.Wall = func() time.Time { return time.Now().Add(time.Duration(off[i].Load())) }
	}
	tr.startAll()
	ctx := t.Context()
	tr.put(0, "cart")
	lease, ended := `{"address":"10.0.0.1","port":80,"ttl":"50s"}`, tr.shortLived()
	_, err := tr.client(tr.token, 0).Put(ctx, instanceRef("i1"), []byte(lease), client.Write{})
	must(t, err)
	call := func(i int, token string) error {
		short, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		_, err := tr.client(token, i).Get(short, cart, client.Read{})
		return err
	}
	over := func(when string) {
		t.Helper()
		for i := range tr.nodes {
			if err := call(i, ended); !fault.Is(err, fault.Unauthenticated) {
				t.Errorf("%s, a token that has ended gets on %s: %v", when, tr.nodes[i].id, err)
			}
		}
	}
	tr.eventually("the token ends", func() error {
		for i := range tr.nodes {
			if err := call(i, ended); !fault.Is(err, fault.Unauthenticated) {
				return fmt.Errorf("%v", err)
			}
		}
		return nil
	})
	lead, err := tr.leader(0)
	must(t, err)
	follower := (lead + 1) % 3

	// The heartbeat is what the lease counts from: by it, nothing is due before
	// 50 s are over, whatever the wall clocks say.
	must(t, tr.client(tr.token, lead).Heartbeat(ctx, instanceRef("i1")))
	beat := time.Now()
	for _, by := range []time.Duration{-time.Minute, time.Minute} {
		for _, i := range []int{follower, lead} {
			off[i].Store(int64(by))
			tr.awaitRaised(i, fmt.Sprintf("clock_jumped %s: the wall clock of this node was moved by ", tr.nodes[i].id))
			tr.tells(i, "clock_jumped")
			over(fmt.Sprintf("with the clock of %s off by %s", tr.nodes[i].id, by))
			if i == follower {
				tr.awaitRaised(lead, "clocks_apart "+tr.nodes[lead].id+": the clock of "+tr.nodes[follower].id+" is")
				tr.tells(lead, "clocks_apart")
			}
			off[i].Store(0)
		}
	}
	over("with the clocks set right")
	tr.awaitOver(lead, "clocks_apart")
	d, err := tr.client(tr.token, follower).Discover(ctx, "default", "cart", client.Filter{})
	must(t, err)
	if time.Since(beat) < 45*time.Second && len(d.Instances) != 1 {
		t.Errorf("the instance is gone: %v", d)
	}
}

// shortLived makes a token that ends in a second.
func (tr *trial) shortLived() string {
	tr.t.Helper()
	b, err := tr.client(tr.token, 0).CreateToken(tr.t.Context(), "viewer", nil, time.Second)
	must(tr.t, err)
	var minted struct {
		Token string `json:"token"`
	}
	must(tr.t, json.Unmarshal(b, &minted))
	return minted.Token
}
