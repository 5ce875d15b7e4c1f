package journal

import (
	"errors"
	"io/fs"
	"syscall"
	"testing"
)

// A store that has no room keeps nobody from appending while the journal has, then
// refuses, and is used again when there is room: nothing is lost, whether or not
// the process lives to see it.
func TestAFullStoreIsTriedAgain(t *testing.T) {
	for _, crash := range []bool{false, true} {
		f, under := &image{b: fresh(testHalf)}, &memory{}
		l, err := load(f, under)
		must(t, err)
		want := content{}
		add := func(i uint64) error {
			err := l.StoreLogs(batch(i, 1, 1000, 1))
			if err == nil {
				want.store(batch(i, 1, 1000, 1))
			}
			return err
		}
		must(t, add(1))
		under.fails = &fs.PathError{Op: "write", Path: "log.db", Err: syscall.ENOSPC}
		i, refused := uint64(1), error(nil)
		for ; refused == nil && i < 1000; i++ {
			refused = add(i + 1)
		}
		if !errors.Is(refused, syscall.ENOSPC) || i < 3 {
			t.Fatalf("after %d entries: %v", i, refused)
		}
		if err := l.DeleteRange(i-1, i); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("a deletion gave %v", err)
		}
		must(t, want.differs(l))
		must(t, l.Failed())
		under.fails = nil
		if crash {
			l, err = load(f, under)
			must(t, err)
		}
		must(t, want.differs(l))
		must(t, add(i))
		must(t, l.DeleteRange(i, i))
		delete(want, i)
		must(t, want.differs(l))
	}
}

// What a sync says is never taken for want of room: the system may have lost what
// it could not write, and would say nothing the next time.
func TestAFailedSyncIsNeverTriedAgain(t *testing.T) {
	for _, err := range []error{syscall.ENOSPC, &fs.PathError{Op: "sync", Path: "log.db", Err: syscall.ENOSPC}} {
		under := &memory{}
		l, e := load(&image{b: fresh(testHalf)}, under)
		must(t, e)
		must(t, l.StoreLogs(batch(1, 1, 10, 1)))
		must(t, l.StoreLogs(batch(2, 1, 10, 1)))
		under.fails = err
		if e := l.move(); !errors.Is(e, err) || l.Failed() == nil {
			t.Errorf("%v: the move gave %v, and the journal goes on", err, e)
		}
	}
}
