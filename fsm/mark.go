package fsm

import "sync"

// marked is how many Raft entries back the state hash is remembered: at least
// some seconds of the heaviest writing.
const marked = 1 << 14

// marks remembers the state hash after recent Raft entries, so that nodes can
// be compared at equal indices (law 4) although they never stand still.
type marks struct {
	mu   sync.Mutex // guards ring and last
	ring [marked]mark
	last uint64 // newest index
}

type mark struct {
	index uint64
	hash  Hash
}

func (s *marks) add(all []mark) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range all {
		s.ring[m.index%marked] = m
		s.last = m.index
	}
}

// HashAt gives the state hash as it was after the Raft entry with the index;
// false when that is too long ago, before the last restart or restore, or
// still to come.
func (m *Machine) HashAt(index uint64) (Hash, bool) {
	m.marks.mu.Lock()
	defer m.marks.mu.Unlock()
	at := m.marks.ring[index%marked]
	return at.hash, at.index == index && index != 0
}

// Marked is the newest index for which HashAt has an answer; 0 for none.
func (m *Machine) Marked() uint64 {
	m.marks.mu.Lock()
	defer m.marks.mu.Unlock()
	return m.marks.last
}
