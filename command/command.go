// Package command owns the replicated envelope: what one Raft entry carries,
// what a node sends to the leader, and what comes back. It holds no rule of
// the domain and refuses none: it only says how things are written down.
package command

//go:generate make -C .. generate

// Base is the format that every version reads. A cluster's feature level is the
// newest format that is in its log; it goes up when all of its members know a
// newer one, and never down. Batches are written in the format of the level.
const Base = 2

// Result is what applying one command gave: a receipt, or a deterministic
// refusal. Exactly one of the two is set.
type Result struct {
	Receipt *Receipt
	Err     error
}
