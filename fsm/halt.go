package fsm

import (
	"sync/atomic"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
)

// halt is a machine that has come upon what only a newer version can read. It
// applies nothing any more: going on without it would make this node differ.
type halt struct {
	why atomic.Pointer[fault.Error]
	at  chan struct{} // closed with the first why
}

func (h *halt) now(why *fault.Error) {
	if h.why.CompareAndSwap(nil, why) {
		close(h.at)
	}
}

// Halted is closed when the machine applies nothing any more, since the log or
// the state needs a newer version; Trouble says it in words.
func (m *Machine) Halted() <-chan struct{} { return m.halt.at }

// Trouble is why the machine has halted; nil while it has not.
func (m *Machine) Trouble() error {
	if why := m.halt.why.Load(); why != nil {
		return why
	}
	return nil
}

// tooNew refuses what is of a newer format.
func tooNew(what string, format uint64) *fault.Error {
	return fault.New(fault.Conflict, "%s needs feature level %d, and this version knows levels up to %d: the cluster has been upgraded, so start the newer version of muster here; nothing was changed", what, format, command.Format)
}
