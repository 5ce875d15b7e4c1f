package cluster

import (
	"bytes"
	"context"
	"log/slog"
	"math"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"google.golang.org/protobuf/proto"

	"github.com/muster-registry/muster/cluster/wire"
	"github.com/muster-registry/muster/fault"
)

// FuzzFrame: what comes over a peer stream is answered, call by call, and a
// reply that another node made up is a fault.
func FuzzFrame(f *testing.F) {
	for _, frame := range []*wire.Frame{
		{}, {Calls: []*wire.Call{{Id: 1, Method: "echo", Payload: []byte("x"), Timeout: 1 << 62, Hop: 1, Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}, {Id: 1, Method: "cluster.join", Hop: 9}}},
		{Replies: []*wire.Reply{{Id: 7, Fault: &wire.Fault{Code: "no_leader", RetryAfter: -1, Fields: []*wire.Field{{}}, Places: []*wire.Place{{}}}}}},
	} {
		b, err := proto.Marshal(frame)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	c := &Cluster{machine: newKV(), log: slog.New(slog.DiscardHandler), handlers: map[string]handler{"echo": {own: true, run: func(_ context.Context, _ string, p []byte) ([]byte, error) { return p, nil }}}}
	s := &service{c: c}
	f.Fuzz(func(t *testing.T, b []byte) {
		frame := new(wire.Frame)
		if proto.Unmarshal(b, frame) != nil {
			return
		}
		for _, call := range frame.Calls {
			r := s.answer(t.Context(), "n2", "", call)
			known := call.Method == "echo" && call.Hop <= 1
			if r.Id != call.Id || (r.Fault == nil) != known {
				t.Fatalf("%v is answered %v", call, r)
			}
		}
		for _, r := range frame.Replies {
			if err := fromWire(r.Fault); r.Fault != nil && fault.From(err).Code != fault.Code(r.Fault.Code) {
				t.Fatalf("%v became %v", r.Fault, err)
			}
		}
	})
}

// A time-out that no duration holds is a long one, not one that is over.
func TestLongTimeouts(t *testing.T) {
	var left time.Duration
	s := &service{c: &Cluster{machine: newKV(), log: slog.New(slog.DiscardHandler), handlers: map[string]handler{"wait": {own: true, run: func(ctx context.Context, _ string, _ []byte) ([]byte, error) {
		end, _ := ctx.Deadline()
		left = time.Until(end)
		return nil, ctx.Err()
	}}}}}
	for _, timeout := range []uint64{1 << 62, 1<<63 + 1<<53, math.MaxUint64, uint64(2 * time.Hour / time.Microsecond)} {
		if r := s.answer(t.Context(), "n2", "", &wire.Call{Method: "wait", Timeout: timeout}); r.Fault != nil || left < 50*time.Minute || left > time.Hour {
			t.Errorf("a time-out of %d µs leaves %s: %v", timeout, left, r.Fault)
		}
	}
}

// FuzzHello: the first bytes of a Raft connection. Those of this cluster come
// in, and those of nodes that belong to none yet, whichever disk they are for,
// since this node has none to tell.
func FuzzHello(f *testing.F) {
	f.Add([]byte{0, 0})
	f.Add([]byte{0, 2, 'a', 'b'})
	f.Add([]byte{0, 4, 'o', 'u', 'r', 's'})
	f.Add([]byte("\x00\x06ours\x00d"))
	f.Add([]byte("\x00\x02\x00d"))
	f.Add([]byte{0xff, 0xff})
	m := newKV()
	m.state.ID = "ours"
	c := &Cluster{machine: m}
	f.Fuzz(func(t *testing.T, b []byte) {
		welcome := false
		if len(b) >= 2 {
			n := int(b[0])<<8 | int(b[1])
			if n <= 256 && len(b) >= 2+n {
				id, _, _ := bytes.Cut(b[2:2+n], []byte{0})
				welcome = len(id) == 0 || string(id) == "ours"
			}
		}
		if err := c.readHello(bytes.NewReader(b)); (err == nil) != welcome {
			t.Fatalf("%q: %v", b, err)
		}
	})
}

// FuzzCard: what another node gossips about itself.
func FuzzCard(f *testing.F) {
	b, err := proto.Marshal(&wire.Card{Id: "n2", Instance: "i", Address: "127.0.0.1:1", Meta: map[string]string{"control": "x"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, "n2/i")
	f.Add([]byte{0xff}, "")
	f.Fuzz(func(t *testing.T, meta []byte, name string) {
		g := &gossip{c: &Cluster{log: slog.New(slog.DiscardHandler)}}
		n := &memberlist.Node{Name: name, Meta: meta}
		g.NotifyJoin(n)
		g.NotifyUpdate(n)
		_ = g.others()
		_ = g.addresses("n2", "")
		g.NotifyLeave(n)
	})
}
