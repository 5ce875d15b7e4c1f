package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"time"

	"github.com/muster-registry/muster/fault"
)

// replace takes a new node in and another one out.
func replace(w *World, r *rand.Rand) error {
	w.mu.Lock()
	w.joined++
	id := "m" + strconv.Itoa(w.joined)
	w.mu.Unlock()
	victim := w.some(r, 1)[0]
	if r.IntN(2) == 0 {
		victim = w.leader()
	}
	if err := errors.Join(w.place(id), w.up(id, 0)); err != nil {
		return err
	}
	if r.IntN(3) == 0 {
		w.everywhere(Weather{Delay: 200 * time.Millisecond})
	}
	if err := w.until("the new node "+id+" votes", func() error { return w.votes(id) }); err != nil {
		return err
	}
	if err := w.until(victim+" is removed", func() error { return w.remove(victim) }); err != nil {
		return err
	}
	err := w.down(victim)
	w.mu.Lock()
	defer w.mu.Unlock()
	dir := w.seats[victim].dir
	delete(w.seats, victim)
	return errors.Join(err, os.RemoveAll(dir))
}

// remove asks a node that stays to take another out.
func (w *World) remove(id string) error {
	for _, n := range w.Nodes() {
		if n.ID == id {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), 8*time.Second)
		err := n.cluster.Remove(ctx, id)
		cancel()
		if err == nil || fault.Is(err, fault.NotFound) {
			return nil
		}
		return err
	}
	return errors.New("nobody is there")
}

// votes returns nil once a majority of the nodes knows that the node votes.
func (w *World) votes(id string) error {
	known := 0
	for _, n := range w.Nodes() {
		for _, m := range n.cluster.Members() {
			if m.ID == id && m.Role != "non-voter" {
				known++
			}
		}
	}
	if known <= len(w.Nodes())/2 {
		return fmt.Errorf("%d of %d nodes know it", known, len(w.Nodes()))
	}
	return nil
}

// until waits for what must come true.
func (w *World) until(what string, check func() error) error {
	var why error
	for end := time.Now().Add(w.opts.Patience); time.Now().Before(end); time.Sleep(300 * time.Millisecond) {
		if why = check(); why == nil {
			return nil
		}
	}
	return fmt.Errorf("not in %s: %s: %w", w.opts.Patience, what, why)
}

// loseDisk crashes a node and starts it again with an empty disk, under its old id.
func loseDisk(w *World, r *rand.Rand) error {
	id := w.some(r, 1)[0]
	if err := w.down(id); err != nil {
		return err
	}
	time.Sleep(time.Duration(r.Int64N(int64(3 * time.Second))))
	return errors.Join(w.place(id), w.up(id, 0))
}

// reboots crashes nodes one after the other, each up again at once.
func reboots(w *World, r *rand.Rand) error {
	for range 2 + r.IntN(4) {
		id := w.some(r, 1)[0]
		if r.IntN(2) == 0 {
			id = w.leader()
		}
		if err := w.down(id); err != nil {
			return err
		}
		if err := w.up(id, 0); err != nil {
			return err
		}
		time.Sleep(time.Duration(r.Int64N(int64(6 * time.Second))))
	}
	return nil
}
