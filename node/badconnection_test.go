package node_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// slow is what is sent of a request, byte by byte.
type slow struct {
	net.Conn
	rest string
	open atomic.Bool
}

// Row 29: 10 000 connections that send one byte a second, some in the TLS
// handshake, some in the header. They are closed when their time is up, or
// sooner where there are too many; a caller from the same address is served all
// the while, and what they take of memory is bounded.
func TestSlowConnections(t *testing.T) {
	tr := newTrial(t, 1)
	tr.startAll()
	e := newEdge(t, tr)
	served := func() {
		t.Helper()
		if a := e.send(t, 0, "HTTP/1.1", call{method: "GET", path: "/v1/services"}); a.status != 200 {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	served()
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)

	address := strings.TrimPrefix(tr.nodes[0].control, "https://")
	// The beginning of a ClientHello that is said to be long.
	hello := "\x16\x03\x01\x20\x00\x01\x00\x1f\xfc\x03\x03" + strings.Repeat("x", 100)
	var all []*slow
	var left atomic.Int64
	var readers sync.WaitGroup
	keep := func(c net.Conn, rest string) {
		s := &slow{Conn: c, rest: rest}
		s.open.Store(true)
		all = append(all, s)
		left.Add(1)
		must(t, c.SetDeadline(time.Now().Add(2*time.Minute)))
		readers.Go(func() {
			defer left.Add(-1)
			defer c.Close()
			defer s.open.Store(false)
			if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("a connection was never closed")
			}
		})
	}
	for range 50 {
		c := e.dial(t, 0)
		_, err := io.WriteString(c, "GET /v1/services HTTP/1.1\r\nHost: x\r\nX: ")
		must(t, err)
		keep(c, strings.Repeat("x", 200))
	}
	for range 10_000 {
		c, err := net.Dial("tcp", address)
		must(t, err)
		keep(c, hello)
	}
	var most uint64
	second := time.NewTicker(time.Second)
	defer second.Stop()
	for left.Load() > 0 {
		served()
		for _, s := range all {
			if s.open.Load() && s.rest != "" {
				_, _ = io.WriteString(s.Conn, s.rest[:1]) // it may be closed in this moment
				s.rest = s.rest[1:]
			}
		}
		var now runtime.MemStats
		runtime.ReadMemStats(&now)
		most = max(most, now.HeapInuse+now.StackInuse)
		<-second.C
	}
	readers.Wait()
	served()
	// The test's own ends of the connections are in it.
	grown := (most - min(most, before.HeapInuse+before.StackInuse)) >> 20
	t.Logf("at most %d MiB more than before", grown)
	if grown > 600 {
		t.Errorf("10 000 slow connections took %d MiB", grown)
	}
	tr.eventually("none of them is counted any more", func() error {
		line, err := tr.metric(0, "muster_flow_connections")
		if err != nil || strings.HasSuffix(line, " 0") {
			return err
		}
		if fields := strings.Fields(line); len(fields) == 2 && len(fields[1]) <= 2 {
			return nil
		}
		return fmt.Errorf("%q", line)
	})
}

// What HTTP/2 lets a hostile caller do: streams that are reset as soon as they
// are opened, headers that never end, settings and pings without an end. Others
// are served, and nothing of it stays; headers without an end are cut off.
func TestHostileStreams(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	tr.startAll()
	e := newEdge(t, tr)
	var header bytes.Buffer
	enc := hpack.NewEncoder(&header)
	for _, f := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "x"}, {":path", "/v1/services"}, {"authorization", "Bearer " + tr.token}} {
		must(t, enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}))
	}
	for name, attack := range map[string]func(f *http2.Framer, i uint32) error{
		"rapid reset": func(f *http2.Framer, i uint32) error {
			return errors.Join(f.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: header.Bytes(), EndHeaders: true, EndStream: true}),
				f.WriteRSTStream(2*i+1, http2.ErrCodeCancel))
		},
		"headers without an end": func(f *http2.Framer, i uint32) error {
			if i == 0 {
				return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: header.Bytes()})
			}
			return f.WriteContinuation(1, false, bytes.Repeat([]byte{0x82}, 16<<10)) // :method GET, again and again
		},
		"settings without an end": func(f *http2.Framer, _ uint32) error { return f.WriteSettings() },
		"pings without an end":    func(f *http2.Framer, _ uint32) error { return f.WritePing(false, [8]byte{}) },
	} {
		t.Run(name, func(t *testing.T) {
			d := &tls.Dialer{Config: &tls.Config{RootCAs: e.pool, NextProtos: []string{"h2"}}}
			conn, err := d.DialContext(t.Context(), "tcp", strings.TrimPrefix(tr.nodes[0].control, "https://"))
			must(t, err)
			defer conn.Close()
			must(t, conn.SetDeadline(time.Now().Add(time.Minute)))
			_, err = io.WriteString(conn, http2.ClientPreface)
			must(t, err)
			f := http2.NewFramer(conn, nil) // what the node says is not read: its answers pile up
			must(t, f.WriteSettings())
			var sent uint32
			for sent < 50_000 {
				if err = attack(f, sent); err != nil {
					break
				}
				sent++
			}
			if err == nil && name == "headers without an end" {
				t.Errorf("%d frames were taken", sent)
			}
			t.Logf("the connection ended after %d: %v", sent, err)
			for _, version := range []string{"HTTP/1.1", "HTTP/2.0"} {
				if a := e.send(t, 0, version, call{method: "GET", path: "/v1/services"}); a.status != http.StatusOK {
					t.Errorf("others: %d %s", a.status, a.body)
				}
			}
		})
	}
	tr.eventually("nothing of it is in flight", func() error {
		line, err := tr.metric(0, `muster_flow_requests{limit="in-flight"}`)
		if err == nil && !strings.HasSuffix(line, " 0") {
			err = fmt.Errorf("%q", line)
		}
		return err
	})
}
