package fsm

import "github.com/muster-registry/muster/command"

// Change is one change of the state, as a [Recorder] is told of it.
type Change struct {
	Revision uint64
	Command  *command.Command // must not be changed
	// Lease is the one of the command's items that this change is; nil for
	// every command that is not about leases.
	Lease   *command.Leases_Item
	Created bool // by a put: the record did not exist
}

// Recorder keeps a record of all changes beside the state. Its methods are
// called one at a time, except Sync.
type Recorder interface {
	// Changed tells of the changes of one batch, in their order, before the
	// state file can hold any of them. After a crash, changes that the state
	// file does not hold are told again. It must return quickly.
	Changed(changes []Change)
	// Replaced tells that the state was replaced by that of another node: this
	// one applied none of the changes up to the revision that it had not before.
	Replaced(clusterID string, revision uint64)
	// Sync returns when everything told so far is on disk, or cannot be put
	// there. What was told before it is written to the state file after it.
	Sync()
}

// Record makes r keep the record. To be called before Raft starts.
func (m *Machine) Record(r Recorder) {
	m.recorder = r
	m.store.mu.Lock()
	defer m.store.mu.Unlock()
	m.store.before = r.Sync
}

// note keeps a change for the recorder.
func (b *batch) note(c *command.Command, lease *command.Leases_Item, created bool) {
	if b.m.recorder != nil {
		b.changes = append(b.changes, Change{Revision: b.revision, Command: c, Lease: lease, Created: created})
	}
}
