package mirror

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/muster-registry/muster/egress"
)

// SyslogOptions configure a sink that speaks syslog (RFC 5424) over TLS, as RFC
// 5425 has it: each message with its length before it.
type SyslogOptions struct {
	Address string // host:port
	Dialer  *egress.Dialer
	TLS     *tls.Config // nil: the system's authorities
}

// settleSyslog is how long after it was written a message counts as taken.
const settleSyslog = time.Second

// syslog has no answers: what was written shortly before a connection broke is
// written again on the next.
type syslog struct {
	opt  SyslogOptions
	conn net.Conn
	out  []byte

	mu    sync.Mutex // guards ended
	ended error      // the connection has
}

// NewSyslog gives the sink. It connects when there is something to send.
func NewSyslog(o SyslogOptions) Sink {
	if o.TLS == nil {
		o.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if o.TLS = o.TLS.Clone(); o.TLS.ServerName == "" {
		o.TLS.ServerName, _, _ = net.SplitHostPort(o.Address)
	}
	return &syslog{opt: o}
}

// Settle implements Sink.
func (s *syslog) Settle() time.Duration { return settleSyslog }

// Check implements Sink.
func (s *syslog) Check() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}

// Send implements Sink.
func (s *syslog) Send(ctx context.Context, events [][]byte) (rejected int, err error) {
	if s.Check() != nil {
		s.leave()
	}
	if s.conn == nil {
		if err := s.connect(ctx); err != nil {
			return 0, fmt.Errorf("connect to the syslog server: %w", err)
		}
	}
	s.out = s.out[:0]
	for _, e := range events {
		s.out = frame(s.out, e)
	}
	if end, ok := ctx.Deadline(); ok {
		_ = s.conn.SetWriteDeadline(end)
	}
	if _, err := s.conn.Write(s.out); err != nil {
		s.leave()
		return 0, fmt.Errorf("write to the syslog server: %w", err)
	}
	if cap(s.out) > 4<<20 {
		s.out = nil
	}
	return 0, nil
}

func (s *syslog) connect(ctx context.Context) error {
	raw, err := s.opt.Dialer.DialContext(ctx, "tcp", s.opt.Address)
	if err != nil {
		return err
	}
	conn := tls.Client(raw, s.opt.TLS)
	if err := conn.HandshakeContext(ctx); err != nil {
		return errors.Join(err, raw.Close())
	}
	s.mu.Lock()
	s.conn, s.ended = conn, nil
	s.mu.Unlock()
	// The server says nothing; that it has gone is heard by reading alone. A
	// client certificate that it does not take is told here as well.
	go func() {
		_, err := io.Copy(io.Discard, conn)
		if err == nil {
			err = errors.New("the syslog server has closed the connection")
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.conn == conn {
			s.ended = err
		}
	}()
	return nil
}

// leave drops the connection; the next Send makes another.
func (s *syslog) leave() {
	if s.conn != nil {
		_ = s.conn.Close()
	}
	s.mu.Lock()
	s.conn, s.ended = nil, nil
	s.mu.Unlock()
}

// Close implements Sink.
func (s *syslog) Close() error {
	s.leave()
	return nil
}

const logAudit = 13 // the facility

// severities by the type of a line, in syslog's numbers.
var severities = map[string]int{"alarm": 1, "gap": 4, "refusal": 5, "connection": 5}

const informational = 6

// frame appends an event as a message of RFC 5424, with its length before it.
func frame(to, event []byte) []byte {
	kind := text(event, "type")
	severity, ok := severities[kind]
	if !ok {
		severity = informational
	}
	head := make([]byte, 0, 128)
	head = fmt.Appendf(head, "<%d>1 %s %s muster %d %s - ", logAudit*8+severity,
		token(syslogTime(text(event, "time")), 40), token(text(event, "node"), 255), os.Getpid(), token(kind, 32))
	to = strconv.AppendInt(to, int64(len(head)+len(event)), 10)
	to = append(append(to, ' '), head...)
	return append(to, event...)
}

// syslogTime has six digits of a second at most.
func syslogTime(s string) string {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04:05.000000Z")
}

// text reads one of the first members of an event, which are written by the
// trail and hold no escapes; "" where it is not there.
func text(event []byte, name string) string {
	head := event[:min(len(event), 256)]
	_, rest, ok := strings.Cut(string(head), `"`+name+`":"`)
	if !ok {
		return ""
	}
	value, _, _ := strings.Cut(rest, `"`)
	return value
}

// token is a text as syslog's head may have it; "-" for none.
func token(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return -1
		}
		return r
	}, s)
	if s == "" {
		return "-"
	}
	return s[:min(len(s), most)]
}
