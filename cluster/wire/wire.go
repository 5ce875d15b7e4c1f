// Package wire owns the messages nodes exchange on the peer port beside Raft.
// It is generated from peer.proto and refuses any logic of its own.
package wire

//go:generate make -C ../.. generate
