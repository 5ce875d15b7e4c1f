package sim

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// A leader that hears nodes without a vote alone has no majority, however many
// they are: it confirms no read.
func TestOnlyVotersConfirm(t *testing.T) {
	o := Options{Seed: 1, Folder: folder(t), Timing: patient}
	synctest.Test(t, func(t *testing.T) {
		o.fill()
		w := newWorld(o)
		if err := w.form(); err != nil {
			t.Fatal(err)
		}
		leader := w.seat(w.leader()).node
		if err := errors.Join(w.place("x1"), w.up("x1", 0), w.place("x2"), w.up("x2", 0)); err != nil {
			t.Fatal(err)
		}
		if err := w.until("two nodes without a vote", func() error {
			without := 0
			for _, m := range leader.cluster.Members() {
				if m.Role == "non-voter" {
					without++
				}
			}
			if without < 2 {
				return errors.New("they have not joined")
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		w.cut(leader.ID, "x1", "x2")
		time.Sleep(10 * time.Millisecond) // what was on its way
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if !leader.cluster.IsLeader() {
			t.Fatal("it has stepped down already, and nothing is tested")
		}
		if v, err := leader.Read(ctx); err == nil {
			t.Errorf("a read at revision %d was confirmed by nodes without a vote", v.Revision)
		}
		w.Net.Clear()
		if err := w.close(); err != nil {
			t.Error(err)
		}
	})
}
