package cluster

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/hashicorp/raft"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

// An error that crosses the wire says what it said before, except its cause.
func TestFaultRoundTrip(t *testing.T) {
	text := rapid.StringMatching(`[ -~]{0,20}`)
	rapid.Check(t, func(t *rapid.T) {
		e := fault.Wrap(fault.Code(text.Draw(t, "code")), errors.New("secret"), "%s", text.Draw(t, "detail"))
		e.Outcome = fault.Outcome(rapid.IntRange(0, 1).Draw(t, "outcome"))
		e.RetryAfter = time.Duration(rapid.Int64().Draw(t, "retry"))
		e.Reasons = rapid.SliceOfN(text, 0, 3).Draw(t, "reasons")
		e.DecisionID, e.PolicyRevision, e.Current = text.Draw(t, "decision"), rapid.Uint64().Draw(t, "policy"), rapid.Uint64().Draw(t, "current")
		for range rapid.IntRange(0, 3).Draw(t, "fields") {
			e.Fields = append(e.Fields, fault.Field{Pointer: text.Draw(t, "pointer"), Message: text.Draw(t, "message")})
		}
		for range rapid.IntRange(0, 3).Draw(t, "places") {
			e.Places = append(e.Places, fault.Place{File: text.Draw(t, "file"), Row: rapid.Int().Draw(t, "row"), Col: rapid.Int().Draw(t, "col"), Message: text.Draw(t, "message")})
		}
		line, err := proto.Marshal(toWire(e))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(line, []byte("secret")) {
			t.Fatal("the cause crossed the wire")
		}
		got := fault.From(fromWire(toWire(e)))
		if d := cmp.Diff(e, got, cmpopts.IgnoreUnexported(fault.Error{}), cmpopts.EquateEmpty()); d != "" {
			t.Fatal(d)
		}
	})
}

// A batch written around encoded commands reads as the batch of them.
func TestEncode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := &command.Batch{Format: 7}
		var batch []*proposal
		for range rapid.IntRange(1, 5).Draw(t, "commands") {
			cmd := put(rapid.StringMatching(`[a-z]{1,9}`).Draw(t, "name"), rapid.StringN(0, 300, -1).Draw(t, "spec"))
			line, err := proto.Marshal(cmd)
			if err != nil {
				t.Fatal(err)
			}
			want.Commands = append(want.Commands, cmd)
			batch = append(batch, &proposal{bytes: line})
		}
		got := &command.Batch{}
		if err := proto.Unmarshal(encode(7, batch), got); err != nil || !proto.Equal(want, got) {
			t.Fatalf("%v: %v, want %v", err, got, want)
		}
	})
}

// The cache answers as the log beneath it does, whatever is stored and deleted.
func TestCache(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		plain, c := raft.NewInmemStore(), &cache{LogStore: raft.NewInmemStore()}
		last := uint64(0)
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			switch rapid.IntRange(0, 3).Draw(t, "step") {
			case 0: // a conflict: the end of the log goes
				if last > 1 {
					from := rapid.Uint64Range(last-min(3, last-1), last).Draw(t, "from")
					_, _ = plain.DeleteRange(from, last), c.DeleteRange(from, last)
					last = from - 1
				}
			case 1: // a compaction: the beginning goes
				if first, _ := plain.FirstIndex(); first > 0 && first < last {
					_, _ = plain.DeleteRange(first, first), c.DeleteRange(first, first)
				}
			default:
				var logs []*raft.Log
				for range rapid.IntRange(1, 4).Draw(t, "logs") {
					last++
					logs = append(logs, &raft.Log{Index: last, Term: rapid.Uint64Range(1, 9).Draw(t, "term"), Data: make([]byte, rapid.SampledFrom([]int{1, 12 << 20}).Draw(t, "size"))})
				}
				_, _ = plain.StoreLogs(logs), c.StoreLogs(logs)
			}
			for i := range last + 2 {
				var a, b raft.Log
				errA, errB := plain.GetLog(i, &a), c.GetLog(i, &b)
				if errA != errB || a.Index != b.Index || a.Term != b.Term {
					t.Fatalf("entry %d: %v, cached %v", i, errA, errB)
				}
			}
			if c.bytes > cacheBytes {
				t.Fatalf("%d bytes are cached", c.bytes)
			}
		}
	})
}

// Nobody gets an answer that was asked for before they came, and those who
// wait at the same time share one.
func TestGather(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Uint64
		g := &gather{life: t.Context(), ask: func(context.Context) (uint64, error) {
			n := asked.Add(1)
			time.Sleep(10 * time.Millisecond)
			return n, nil
		}}
		var all sync.WaitGroup
		for i := range 1000 {
			all.Go(func() {
				time.Sleep(time.Duration(i) * 97 * time.Microsecond)
				came := asked.Load()
				got, err := g.do(t.Context())
				if err != nil || got <= came {
					t.Errorf("an answer asked for before the question: %d after %d, %v", got, came, err)
				}
			})
		}
		all.Wait()
		if n := asked.Load(); n > 12 {
			t.Errorf("1000 readers in 97 ms needed %d rounds of 10 ms", n)
		}
	})
}

// Raft's errors become definite only where nothing was appended.
func TestFate(t *testing.T) {
	for err, want := range map[error]fault.Outcome{
		raft.ErrNotLeader: fault.Definite, raft.ErrLeadershipTransferInProgress: fault.Definite, raft.ErrEnqueueTimeout: fault.Definite,
		raft.ErrLeadershipLost: fault.Unknown, raft.ErrRaftShutdown: fault.Unknown, raft.ErrAbortedByRestore: fault.Unknown, errors.New("disk full"): fault.Unknown,
	} {
		if got := fault.From(fate(err)); got.Outcome != want || got.Code.Status() != 503 {
			t.Errorf("%v: %v, outcome %d", err, got, got.Outcome)
		}
	}
}

// The log of a node says a thing about a peer once, not ten times a second.
func TestLogRepeats(t *testing.T) {
	var out bytes.Buffer
	log := raftLogger(slog.New(slog.NewTextHandler(&out, nil)))
	for range 50 {
		log.Error("failed to heartbeat to", "peer", "n2")
		log.Error("failed to heartbeat to", "peer", "n3")
		log.Info("entering follower state", "term", 3)
	}
	for text, want := range map[string]int{"peer=n2": 1, "peer=n3": 1, "level=ERROR": 2, "level=INFO": 50} {
		if got := bytes.Count(out.Bytes(), []byte(text)); got != want {
			t.Errorf("%s: %d times, want %d", text, got, want)
		}
	}
}
