package fsm

import (
	"reflect"
	"unsafe"
)

// Tape makes the machine's state file tell of each write before it is done:
// bbolt has no seam for it, only the field that its own tests replace. It gives
// whether bbolt syncs the file, which it does before and after each write of a
// meta page, the first two of the file. To be called again when Restore has
// replaced the file.
func (m *Machine) Tape(write func(b []byte, off int64)) (syncs bool) {
	field := reflect.ValueOf(m.store.db).Elem().FieldByName("ops").FieldByName("writeAt")
	at := (*func([]byte, int64) (int, error))(unsafe.Pointer(field.UnsafeAddr()))
	next := *at
	*at = func(b []byte, off int64) (int, error) {
		write(b, off)
		return next(b, off)
	}
	return !m.store.db.NoSync
}

// Flush writes what is pending into the state file.
func (m *Machine) Flush() { m.store.flush() }

// CompactAt makes free pages of so many bytes worth a compaction.
func (m *Machine) CompactAt(least int64) {
	m.store.mu.Lock()
	defer m.store.mu.Unlock()
	m.store.compaction.least = least
}

// CompactBySteps compacts the state file at once, and calls at between the steps.
func (m *Machine) CompactBySteps(at func(step string)) error {
	s := &m.store
	s.mu.Lock()
	s.compaction.lost, s.compaction.near = false, 1
	s.mu.Unlock()
	copied, err := s.beginCopy()
	if err != nil {
		return err
	}
	at("copied")
	if err := s.catchUp(copied); err != nil {
		return err
	}
	at("caught up")
	if err := s.takeOver(copied); err != nil {
		return err
	}
	at("taken over")
	return nil
}

// RefillAt makes so many bytes of restored records worth a new file.
func (m *Machine) RefillAt(least int) {
	m.store.mu.Lock()
	defer m.store.mu.Unlock()
	m.store.refillLeast = least
}
