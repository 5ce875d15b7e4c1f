// Package command owns the replicated envelope: what one Raft entry carries,
// what a node sends to the leader, and what comes back. It holds no rule of
// the domain and refuses none: it only says how things are written down.
package command

//go:generate protoc --go_out=. --go_opt=paths=source_relative command.proto

// Format is the version of the replicated format this build writes and the
// newest it can read. A batch of a newer format must not be applied.
const Format = 1

// Result is what applying one command gave: a receipt, or a deterministic
// refusal. Exactly one of the two is set.
type Result struct {
	Receipt *Receipt
	Err     error
}
