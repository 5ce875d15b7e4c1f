package node_test

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// halves sends half a message on each of several streams of one connection, and
// gives how many of them are ended before want are, or less than a minute is over.
func halves(t *testing.T, e *edge, streams, want int, extra ...[2]string) (ended int) {
	t.Helper()
	d := &tls.Dialer{Config: &tls.Config{RootCAs: e.pool, NextProtos: []string{"h2"}}}
	conn, err := d.DialContext(t.Context(), "tcp", strings.TrimPrefix(e.tr.nodes[0].control, "https://"))
	must(t, err)
	defer conn.Close()
	must(t, conn.SetDeadline(time.Now().Add(40*time.Second)))
	_, err = io.WriteString(conn, http2.ClientPreface)
	must(t, err)
	f := http2.NewFramer(conn, conn)
	must(t, f.WriteSettings())
	var header bytes.Buffer
	enc := hpack.NewEncoder(&header)
	enc.SetMaxDynamicTableSize(0) // the same bytes on each stream
	for _, h := range append([][2]string{{":method", "POST"}, {":scheme", "https"}, {":authority", "x"}, {":path", "/muster.v1.Registry/Register"}, {"content-type", "application/grpc"}, {"te", "trailers"}}, extra...) {
		must(t, enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}))
	}
	half := append(binary.BigEndian.AppendUint32([]byte{0}, 1<<20), make([]byte, 1000)...)
	for i := range uint32(streams) {
		must(t, f.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: header.Bytes(), EndHeaders: true}))
		must(t, f.WriteData(2*i+1, false, half))
	}
	over := map[uint32]bool{}
	for len(over) < want {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatalf("%d of %d calls have ended, and then: %v", len(over), streams, err)
		}
		switch frame := frame.(type) {
		case *http2.RSTStreamFrame:
			over[frame.StreamID] = true
		case *http2.HeadersFrame:
			over[frame.StreamID] = over[frame.StreamID] || frame.StreamEnded()
		case *http2.DataFrame:
			over[frame.StreamID] = over[frame.StreamID] || frame.StreamEnded()
		case *http2.GoAwayFrame:
			t.Fatalf("%v", frame)
		}
		for id, ended := range over {
			if !ended {
				delete(over, id)
			}
		}
	}
	return len(over)
}

// Who has no credential does not have the node keep half a message for it, on
// either way that gRPC calls come in; and all others only as many as bodies may
// take memory.
func TestHalfAMessage(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	tr.configure(t, "limits: {bodies: 16MiB}\n") // four messages
	tr.startAll()
	e := newEdge(t, tr)
	proxied := [2]string{"x-forwarded-proto", "https"}
	good := [2]string{"authorization", "Bearer " + tr.token}
	for way, c := range map[string]struct {
		streams, want int
		extra         [][2]string
	}{
		"a stranger": {3, 3, nil}, "a stranger, proxied": {3, 3, [][2]string{proxied}},
		"an unknown token": {3, 3, [][2]string{{"authorization", "Bearer muster_0123456789abcdef_" + strings.Repeat("A", 43)}}},
		"an operator":      {10, 6, [][2]string{good}}, "an operator, proxied": {10, 6, [][2]string{good, proxied}},
	} {
		t.Run(way, func(t *testing.T) {
			if ended := halves(t, e, c.streams, c.want, c.extra...); ended != c.want {
				t.Errorf("%d of %d calls have ended, want %d", ended, c.streams, c.want)
			}
		})
	}
}
