// Package wire owns the messages nodes exchange on the peer port beside Raft.
// It is generated from peer.proto and refuses any logic of its own.
package wire

//go:generate protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative peer.proto
