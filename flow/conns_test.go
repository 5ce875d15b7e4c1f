package flow_test

import (
	"bufio"
	"io"
	"math"
	"net"
	"net/http"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/muster-registry/muster/flow"
)

// server is one where /wait tells that it has begun, and waits for release.
type server struct {
	addr   string
	states sync.Map // what the server holds of a client's address
}

func serve(t *testing.T, f *flow.Flow, began chan<- struct{}, release <-chan struct{}) *server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	of := &server{addr: l.Addr().String()}
	s := &http.Server{ConnState: func(c net.Conn, state http.ConnState) {
		flow.ConnState(c, state)
		of.states.Store(c.RemoteAddr().String(), state)
	}, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			began <- struct{}{}
			<-release
		}
	})}
	go s.Serve(f.Listen(l, math.MaxInt)) //nolint:errcheck // ends with the test
	t.Cleanup(func() { s.Close() })
	return of
}

func (s *server) dial(t *testing.T) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", s.addr)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	must(t, c.SetDeadline(time.Now().Add(time.Minute)))
	return c
}

func ask(t *testing.T, c net.Conn, path string) {
	t.Helper()
	_, err := io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n")
	must(t, err)
}

// answered reads an answer. A client may have all of it before the server holds
// the connection for idle: until then nothing may take its place.
func (s *server) answered(t *testing.T, c net.Conn) {
	t.Helper()
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	must(t, err)
	res.Body.Close()
	if res.StatusCode != 200 {
		t.Errorf("answered %d", res.StatusCode)
	}
	until(t, func() bool {
		state, _ := s.states.Load(c.LocalAddr().String())
		return state == http.StateIdle
	})
}

// closed waits for the server to close a connection.
func closed(t *testing.T, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("the connection was not closed: %d bytes, %v", n, err)
	} else if e, ok := err.(net.Error); ok && e.Timeout() {
		t.Error("the connection was not closed")
	}
}

// However many connections stay silent, the next one is served; one with a
// request under way never gives way.
func TestSilentConnectionsGiveWay(t *testing.T) {
	for name, l := range map[string]flow.Limits{
		"of one address": {ConnectionsPerAddress: 4},
		"in all":         {Connections: 4},
	} {
		t.Run(name, func(t *testing.T) {
			f := flow.New(l)
			reg := prometheus.NewRegistry()
			reg.MustRegister(f.Collectors()...)
			if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) > 0 {
				t.Errorf("%v %v", problems, err)
			}
			began, release := make(chan struct{}), make(chan struct{})
			s := serve(t, f, began, release)
			wait := func() net.Conn {
				t.Helper()
				c := s.dial(t)
				ask(t, c, "/wait")
				select {
				case <-began:
				case <-time.After(time.Minute):
					t.Fatal("a request was not served")
				}
				return c
			}

			waiting := []net.Conn{wait(), wait()}
			resting := s.dial(t)
			ask(t, resting, "/")
			s.answered(t, resting)
			for range 50 { // one place is left; each takes it from the one before
				last := s.dial(t)
				_, err := io.WriteString(last, "GET / HTTP/1.1\r\nX: ")
				must(t, err)
			}
			c := s.dial(t)
			ask(t, c, "/")
			s.answered(t, c)
			ask(t, resting, "/") // idle ones are the last to go
			s.answered(t, resting)

			// With nothing but requests under way, the next has no place.
			waiting = append(waiting, wait(), wait())
			closed(t, resting)
			until(t, func() bool {
				c := s.dial(t)
				_, err := c.Read(make([]byte, 1))
				return err != nil
			})
			close(release)
			for _, c := range waiting {
				s.answered(t, c)
			}
		})
	}
}

func until(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatal("it did not come to be")
		}
		runtime.Gosched()
	}
}
