// Package musterv1 owns the messages and the service of muster's own gRPC API.
// It is generated from muster.proto and refuses any logic of its own.
package musterv1

//go:generate make -C ../../.. generate
