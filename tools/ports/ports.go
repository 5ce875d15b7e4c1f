// Package ports gives tests addresses at which something comes, goes and comes
// back. It refuses to give one that others may take meanwhile.
package ports

import (
	"fmt"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"testing"
)

// The ports lie below those that the system gives to outgoing connections, one
// of which could take the place of what is away, and above those of packages
// cluster and node.
const first, count = 30_000, 2_700

var last atomic.Uint32

func init() { last.Store(rand.Uint32N(count)) }

// Free gives an address on loopback for TCP, where nobody listens. Whoever else
// asks, in other processes too, gets others until the end of the test: the port
// of this number is held for UDP.
func Free(t testing.TB) string {
	t.Helper()
	for range count {
		address := fmt.Sprintf("127.0.0.1:%d", first+last.Add(1)%count)
		hold, err := net.ListenPacket("udp", address)
		if err != nil {
			continue
		}
		l, err := net.Listen("tcp", address)
		if err != nil {
			hold.Close()
			continue
		}
		l.Close()
		t.Cleanup(func() { hold.Close() })
		return address
	}
	t.Fatal("no port is free")
	return ""
}
