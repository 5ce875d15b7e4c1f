package cluster

import (
	"errors"
	"net"
	"time"
)

const (
	// frameTimeout is how long one Raft message may take to arrive, and the
	// longest silence inside of a snapshot.
	frameTimeout = 5 * time.Second
	// maxFrame bounds one Raft message: as many entries as one may carry, each
	// of the greatest size. go-msgpack allocates 256 KiB at a time as bytes
	// really arrive, so a length that lies costs nothing; this bounds one that
	// does not.
	maxFrame = maxAppendEntries * (maxEntry + 4096)

	kindSnapshot = 2 // rpcInstallSnapshot of raft's net_transport.go: streamed to disk
)

var errFrame = errors.New("a Raft message over the limit")

// guard watches an incoming Raft connection, which raft itself reads without
// any deadline. raft answers each message with a write: what is read between
// two writes is one message (or two, since two are pipelined at most). While
// there is none, the connection may rest for ever; TCP keep-alives find the
// dead ones.
type guard struct {
	net.Conn
	read  int64 // bytes since the last write
	first byte  // first of them
	began time.Time
	dead  bool // a read has failed: raft may still try to answer
}

func (g *guard) Read(p []byte) (int, error) {
	n := g.read
	snapshot := g.first == kindSnapshot
	switch {
	case g.began.IsZero():
		_ = g.Conn.SetReadDeadline(time.Now().Add(frameTimeout))
	case n == 0:
		_ = g.Conn.SetReadDeadline(time.Time{})
	case n > 2*maxFrame && !snapshot:
		return 0, errFrame
	case snapshot:
		_ = g.Conn.SetReadDeadline(time.Now().Add(frameTimeout))
	default:
		_ = g.Conn.SetReadDeadline(g.began.Add(frameTimeout))
	}
	m, err := g.Conn.Read(p)
	if n == 0 && m > 0 {
		g.first, g.began = p[0], time.Now()
	}
	g.read += int64(m)
	g.dead = g.dead || err != nil
	return m, err
}

func (g *guard) Write(p []byte) (int, error) {
	if g.dead {
		return 0, net.ErrClosed
	}
	g.read = 0
	_ = g.Conn.SetWriteDeadline(time.Now().Add(frameTimeout))
	return g.Conn.Write(p)
}
