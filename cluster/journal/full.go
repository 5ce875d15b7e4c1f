package journal

import (
	"errors"
	"io/fs"
	"syscall"
)

// noRoom reports whether the store has refused to write since its disk is full. Its
// transaction was rolled back then, so it can be tried again. A sync that fails
// says nothing of what is on the disk, and is never tried again, whatever it says:
// only writes name the file they were for.
func noRoom(err error) bool {
	of, write := errors.AsType[*fs.PathError](err)
	return write && of.Op != "sync" && (errors.Is(of, syscall.ENOSPC) || errors.Is(of, syscall.EDQUOT))
}

// unlessFull fails for good but where there was no room in the store, which has
// changed nothing then.
func (l *Log) unlessFull(err error) error {
	if noRoom(err) {
		return err
	}
	return l.fail(err)
}

// Failed is the error that ended the journal's use; nil: it is in use.
func (l *Log) Failed() error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if errors.Is(l.broken, errClosed) {
		return nil
	}
	return l.broken
}
