package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/muster-registry/muster/fsm"
	"github.com/muster-registry/muster/jepsen"
)

// workers is how many callers there are at a time.
const workers = 4

// Run lives through the schedule of the options. It must be called inside of a
// bubble of testing/synctest. The error is a promise that was broken; the
// registers of the report are still to be checked.
func Run(o Options) (rep *Report, err error) {
	o.fill()
	w := newWorld(o)
	rep = &Report{Seed: o.Seed, Nodes: o.Nodes, Faults: map[string]int{}}
	defer func() {
		err = errors.Join(err, w.close())
		w.report(rep)
	}()
	if err := w.form(); err != nil {
		return rep, err
	}
	began := time.Now()
	for i, e := range draw(&o) {
		time.Sleep(e.At - time.Since(began))
		if err := errors.Join(w.episode(i, e), w.alike(), w.blamed()); err != nil {
			return rep, fmt.Errorf("%s at %s: %w", e.Kind, e.At, err)
		}
		rep.Faults[e.Kind]++
	}
	time.Sleep(o.Length - time.Since(began))
	return rep, w.judge(rep)
}

func (w *World) report(rep *Report) {
	rep.Virtual = time.Since(w.h.began)
	rep.OK, rep.Failed, rep.Unknown = w.h.count(jepsen.OK), w.h.count(jepsen.Failed), w.h.count(jepsen.Unknown)
	rep.Leaders, rep.Crashes, rep.Restores = w.leaders.Load(), w.crashes.Load(), w.restores.Load()
	rep.Looks, rep.Denied, rep.Watched = w.looks.Load(), w.denied.Load(), w.watched.Load()
	rep.Messages, rep.Lost, rep.Doubled = w.Net.messages.Load(), w.Net.lost.Load(), w.Net.doubled.Load()
	w.ledger.mu.Lock()
	defer w.ledger.mu.Unlock()
	rep.Changes, rep.Swaps = len(w.ledger.entries), w.ledger.swaps
}

// blamed is the first broken promise that somebody has seen so far.
func (w *World) blamed() error {
	w.ledger.mu.Lock()
	defer w.ledger.mu.Unlock()
	if len(w.ledger.wrong) > 0 {
		return w.ledger.wrong[0]
	}
	return nil
}

// judge holds everything that was told to everybody against the promises, but for
// the registers: see [Report.Registers].
func (w *World) judge(rep *Report) error {
	ops := w.h.all()
	var registers []jepsen.Op
	for _, op := range ops {
		if strings.HasPrefix(op.Key, "r") {
			registers = append(registers, op)
		}
	}
	rep.Registers = registers
	return errors.Join(jepsen.CheckRevisions(registers), w.ledger.check(ops), w.missed())
}

// episode has callers at work while a fault begins, lasts, and is mended.
func (w *World) episode(i int, e Event) error {
	r := rand.New(rand.NewPCG(e.Draw, 4))
	if e.Kind == restoring {
		return w.restore(e, r)
	}
	life, end := context.WithCancel(context.Background())
	defer end()
	var callers sync.WaitGroup
	set := fmt.Sprintf("s%d", i)
	house := &tenant{World: w, set: fmt.Sprintf("l%d", i), last: map[string]time.Time{}}
	for n := range workers {
		c := &caller{World: w, worker: n, r: rand.New(rand.NewPCG(e.Draw, 5+uint64(n)))}
		callers.Go(func() { c.work(life, i, set) })
	}
	for n := range 2 {
		c := &caller{World: w, worker: workers + n, r: rand.New(rand.NewPCG(e.Draw, 15+uint64(n)))}
		switch {
		case n == 0 && e.Draw%3 == 0:
			callers.Go(func() { house.keep(life, c, "i") })
		case n == 1 && e.Draw%3 == 1 && !w.opts.Restores:
			callers.Go(func() { c.publish(life) })
		}
	}
	time.Sleep(time.Second)
	err := faults[e.Kind](w, r)
	time.Sleep(e.Lasts)
	if err == nil {
		err = w.mend()
	}
	time.Sleep(time.Second)
	end()
	callers.Wait()
	if err != nil {
		return err
	}
	return errors.Join(w.complete(set), house.silent())
}

// work is what a caller does in an episode.
func (c *caller) work(life context.Context, episode int, set string) {
	for ; life.Err() == nil; time.Sleep(time.Duration(c.r.Int64N(int64(time.Second)))) {
		n := c.anybody(c.r)
		if n == nil {
			continue
		}
		ctx, cancel := context.WithTimeout(life, 4*time.Second)
		key := fmt.Sprintf("r%d-%d", episode, c.r.IntN(2))
		switch c.r.IntN(12) {
		case 0:
			c.grow(ctx, n, set)
		case 1, 2:
			c.look(ctx, n)
		case 3:
			c.session(ctx, n, fmt.Sprintf("v%d-%d", episode, c.worker))
		case 4:
			c.keyed(ctx, fmt.Sprintf("k%d", episode))
		case 5:
			if !c.opts.Restores {
				c.revoke(ctx, n)
			}
		default:
			c.register(ctx, n, key)
		}
		cancel()
	}
}

// read reads at a node as soon as it can prove what it knows.
func (w *World) read(n *Node) (v *fsm.View, err error) {
	err = w.until("a read at "+n.ID, func() (err error) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		v, err = n.Read(ctx)
		return err
	})
	return v, err
}

// alike demands one state of all nodes.
func (w *World) alike() error {
	_, err := w.agreed()
	return err
}

// agreed gives the state that all nodes have once they have all of the log.
func (w *World) agreed() (first *fsm.View, err error) {
	of := ""
	for _, n := range w.Nodes() {
		v, err := w.read(n)
		switch {
		case err != nil:
			return nil, err
		case first == nil:
			first, of = v, n.ID
		case v.Revision != first.Revision || v.Hash != first.Hash:
			return nil, fmt.Errorf("%s has revision %d and hash %s, %s has %d and %s", n.ID, v.Revision, v.Hash, of, first.Revision, first.Hash)
		}
	}
	return first, nil
}
