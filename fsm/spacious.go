package fsm

import (
	"runtime/debug"
	"sync"
)

// roomier is the garbage collector's percentage while a state is loaded.
const roomier = 400

var spaces struct {
	sync.Mutex
	open, before int
}

// spacious lets the heap grow further before it is collected, until done is
// called. Of a state that is loaded nearly everything stays, so there is little
// to collect, and collecting it again and again would be a fifth of the work. A
// memory limit of the process holds as ever.
func spacious() (done func()) {
	spaces.Lock()
	defer spaces.Unlock()
	if spaces.open++; spaces.open == 1 {
		spaces.before = debug.SetGCPercent(roomier)
		if spaces.before < 0 || spaces.before > roomier {
			debug.SetGCPercent(spaces.before)
		}
	}
	return func() {
		spaces.Lock()
		defer spaces.Unlock()
		if spaces.open--; spaces.open == 0 {
			debug.SetGCPercent(spaces.before)
		}
	}
}
