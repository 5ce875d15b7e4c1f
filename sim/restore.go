package sim

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/fsm"
	"github.com/muster-registry/muster/jepsen"
	"github.com/muster-registry/muster/snapshot"
)

// chunk is how much of a snapshot one command carries: little, so that there
// are several.
const chunk = 512

// restore puts the cluster back to a snapshot while a fault begins. Afterwards
// every node has the snapshot's content, or every node what it had before.
func (w *World) restore(e Event, r *rand.Rand) error {
	c := &caller{World: w, worker: workers, r: r}
	write := func(n int) {
		for range n {
			ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
			c.set(ctx, w.anybody(r), jepsen.Op{Kind: jepsen.Write, Key: "x" + strconv.Itoa(r.IntN(40))}, func(*command.Intent) {})
			cancel()
		}
	}
	write(12)
	var file bytes.Buffer
	if err := w.Nodes()[0].machine.Export(&file, snapshot.Header{CreatedAt: time.Now().UTC(), MusterVersion: "sim"}); err != nil {
		return err
	}
	plan, err := fsm.Inspect(bytes.NewReader(file.Bytes()))
	if err != nil {
		return err
	}
	write(8)
	before, err := w.agreed()
	if err != nil {
		return err
	}
	begin := announce(file.Bytes())
	driven := make(chan struct{})
	go func() {
		defer close(driven)
		w.drive(c, begin, file.Bytes())
	}()
	time.Sleep(time.Duration(r.Int64N(int64(400 * time.Millisecond))))
	kind := []string{"leader", "crash", "crash-all", "drop", "minority"}[r.IntN(5)]
	if err := faults[kind](w, r); err != nil {
		return err
	}
	time.Sleep(e.Lasts)
	if err := w.mend(); err != nil {
		return err
	}
	<-driven
	return w.settled(c, begin.Id, before, plan)
}

func announce(file []byte) *command.RestoreBegin {
	sum := sha256.Sum256(file)
	return &command.RestoreBegin{Id: uuid.NewString(), Revision: 1, Chunks: uint32((len(file) + chunk - 1) / chunk), Size: uint64(len(file)), Sha256: sum[:]}
}

// drive sends the steps of a restore until one is refused for good, or its
// outcome is not known, or all are done.
func (w *World) drive(c *caller, begin *command.RestoreBegin, file []byte) {
	steps := []*command.Command{{Op: &command.Command_RestoreBegin{RestoreBegin: begin}}}
	seq := uint32(0)
	for data := range slices.Chunk(file, chunk) {
		steps = append(steps, &command.Command{Op: &command.Command_RestoreChunk{RestoreChunk: &command.RestoreChunk{Id: begin.Id, Seq: seq, Data: data}}})
		seq++
	}
	steps = append(steps, &command.Command{Op: &command.Command_RestoreCommit{RestoreCommit: &command.RestoreCommit{Id: begin.Id}}})
	for _, step := range steps {
		if c.step(step) != nil {
			return
		}
	}
}

func (c *caller) step(step *command.Command) (err error) {
	for range 8 {
		n := c.anybody(c.r)
		if n == nil {
			time.Sleep(time.Second)
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
		_, err = n.Submit(ctx, &command.Intent{Principal: operator(), Command: step})
		cancel()
		if f := fault.From(err); err == nil || f.Outcome == fault.Unknown || f.Code != fault.NoLeader {
			return err
		}
		time.Sleep(time.Second)
	}
	return err
}

// settled gives up a restore that is still under way, and demands one state of
// all nodes: the snapshot's where it was committed, or the one from before.
func (w *World) settled(c *caller, id string, before *fsm.View, plan *fsm.Plan) error {
	v, err := w.agreed()
	for try := 0; err == nil && v.Restoring != "" && try < 10; try++ {
		_ = c.step(&command.Command{Op: &command.Command_RestoreAbort{RestoreAbort: &command.RestoreAbort{Id: id}}})
		v, err = w.agreed()
	}
	if err != nil {
		return err
	}
	want := before.Hash
	if w.ledger.restored(id) {
		want = plan.Hash
		w.restores.Add(1)
	}
	switch {
	case v.Hash != want:
		return fmt.Errorf("after the restore (committed: %t) the state is %s and should be %s", w.ledger.restored(id), v.Hash, want)
	case v.Revision < before.Revision:
		return fmt.Errorf("the restore took revision %d back to %d", before.Revision, v.Revision)
	case v.Restoring != "":
		return fmt.Errorf("restore %s cannot be given up", v.Restoring)
	}
	return nil
}
