package mirror_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	syslog "github.com/leodido/go-syslog/v4"
	"github.com/leodido/go-syslog/v4/octetcounting"
	"github.com/leodido/go-syslog/v4/rfc5424"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	logs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/protobuf/proto"

	"github.com/muster-registry/muster/audit"
	"github.com/muster-registry/muster/audit/mirror"
	"github.com/muster-registry/muster/egress"
	"github.com/muster-registry/muster/pki"
	"github.com/muster-registry/muster/tools/ports"
)

// siem is a sink of one kind: it can go away and come back at the same address.
type siem struct {
	t      *testing.T
	kind   string // syslog, http, otlp
	plain  bool   // nothing is compressed
	tls    *tls.Config
	roots  *x509.CertPool
	addr   string
	server io.Closer

	mu     sync.Mutex
	events []event
	hook   func(w http.ResponseWriter, body []byte) bool // answers instead, where it returns true
	seen   http.Header
	heads  []*rfc5424.SyslogMessage
}

type event struct {
	Seq     uint64 `json:"seq"`
	Dropped uint64 `json:"dropped"`
	Request struct {
		Headers map[string]string `json:"headers"`
	} `json:"request"`
	raw []byte
}

func newSIEM(t *testing.T, kind string) *siem {
	t.Helper()
	ca, err := pki.NewCA("siem", pki.ECDSA, time.Hour, time.Now())
	must(t, err)
	cert, err := ca.Issue("siem", pki.Request{Node: "siem", Hosts: []string{"127.0.0.1"}}, time.Now())
	must(t, err)
	dir := t.TempDir()
	must(t, cert.Write(filepath.Join(dir, "crt"), filepath.Join(dir, "key")))
	must(t, ca.Write(filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")))
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "crt"), filepath.Join(dir, "key"))
	must(t, err)
	pem, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	must(t, err)
	s := &siem{t: t, kind: kind, addr: ports.Free(t), tls: &tls.Config{Certificates: []tls.Certificate{pair}}, roots: x509.NewCertPool()}
	s.roots.AppendCertsFromPEM(pem)
	t.Cleanup(s.leave)
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (s *siem) come() {
	s.t.Helper()
	var l net.Listener
	var err error
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if l, err = net.Listen("tcp", s.addr); err == nil {
			break
		}
		if time.Now().After(deadline) {
			s.t.Fatal(err)
		}
	}
	if s.kind == "syslog" {
		c := &conns{Listener: tls.NewListener(l, s.tls)}
		s.server = c
		go c.serve(s.syslog)
		return
	}
	h := &http.Server{Handler: http.HandlerFunc(s.post), TLSConfig: s.tls.Clone(), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)}
	s.server = h
	go func() { _ = h.ServeTLS(l, "", "") }()
}

func (s *siem) leave() {
	if s.server != nil {
		_ = s.server.Close()
		s.server = nil
	}
}

// conns is a listener that takes its connections along.
type conns struct {
	net.Listener
	mu   sync.Mutex
	open []net.Conn
}

func (c *conns) serve(do func(net.Conn)) {
	for {
		conn, err := c.Accept()
		if err != nil {
			return
		}
		c.mu.Lock()
		c.open = append(c.open, conn)
		c.mu.Unlock()
		go do(conn)
	}
}

func (c *conns) Close() error {
	err := c.Listener.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.open {
		_ = conn.Close()
	}
	return err
}

func (s *siem) syslog(conn net.Conn) {
	octetcounting.NewParser(syslog.WithMaxMessageLength(1<<20), syslog.WithListener(func(r *syslog.Result) {
		if r.Error != nil {
			return // the connection has ended within a message
		}
		m := r.Message.(*rfc5424.SyslogMessage)
		s.mu.Lock()
		s.heads = append(s.heads, m)
		s.mu.Unlock()
		s.take([]byte(*m.Message))
	})).Parse(conn)
}

func (s *siem) post(w http.ResponseWriter, r *http.Request) {
	in := io.Reader(r.Body)
	if encoding := r.Header.Values("Content-Encoding"); s.plain {
		if len(encoding) > 0 {
			http.Error(w, "not plain", http.StatusBadRequest)
			return
		}
	} else {
		z, err := gzip.NewReader(r.Body)
		if err != nil || !slices.Equal(encoding, []string{"gzip"}) {
			http.Error(w, "no gzip", http.StatusBadRequest)
			return
		}
		in = z
	}
	body, err := io.ReadAll(in)
	if err != nil {
		return
	}
	s.mu.Lock()
	hook := s.hook
	s.seen = r.Header.Clone()
	s.mu.Unlock()
	if hook != nil && hook(w, body) {
		return
	}
	if s.kind == "otlp" {
		req := new(logs.ExportLogsServiceRequest)
		if r.Header.Get("Content-Type") != "application/x-protobuf" || proto.Unmarshal(body, req) != nil {
			http.Error(w, "no OTLP", http.StatusBadRequest)
			return
		}
		for _, rec := range req.ResourceLogs[0].ScopeLogs[0].LogRecords {
			if rec.TimeUnixNano == 0 || rec.EventName != "muster.audit.change" || req.ResourceLogs[0].Resource.Attributes[0].Value.GetStringValue() != "muster" {
				s.t.Errorf("a log record: %v", rec)
			}
			s.take([]byte(rec.Body.GetStringValue()))
		}
		return
	}
	var all []jsontext.Value
	if err := json.Unmarshal(body, &all); err != nil || r.Header.Get("Content-Type") != "application/json" {
		http.Error(w, "no array", http.StatusBadRequest)
		return
	}
	for _, e := range all {
		s.take(e)
	}
}

func (s *siem) take(raw []byte) {
	e := event{raw: bytes.Clone(raw)}
	if err := json.Unmarshal(raw, &e); err != nil {
		s.t.Errorf("an event that is not JSON: %s", raw)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, e)
}

// await waits for all lines up to the number, and gives the events without those
// that came again.
func (s *siem) await(to uint64) []event {
	s.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		s.mu.Lock()
		all := slices.Clone(s.events)
		s.mu.Unlock()
		var once []event
		high := uint64(0)
		for _, e := range all {
			if e.Seq > high {
				high = e.Seq
				once = append(once, e)
			}
		}
		if high >= to {
			return once
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("of %d lines the sink has %d, up to %d", to, len(all), high)
		}
	}
}

func wantAll(t *testing.T, events []event, to uint64) {
	t.Helper()
	for i, e := range events {
		if e.Seq != uint64(i)+1 {
			t.Fatalf("event %d is line %d", i+1, e.Seq)
		}
	}
	if uint64(len(events)) != to {
		t.Errorf("%d lines, not %d", len(events), to)
	}
}

func (s *siem) sink(allow string) mirror.Sink {
	d := &egress.Dialer{}
	if allow != "" {
		d.Allow = []netip.Prefix{netip.MustParsePrefix(allow)}
	}
	secure := &tls.Config{RootCAs: s.roots, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS12}
	o := mirror.HTTPOptions{URL: "https://" + s.addr + "/events?k=1", Dialer: d, TLS: secure, Plain: s.plain, Node: "n1", Version: "1",
		Headers: func() (map[string]string, error) { return map[string]string{"Authorization": "Splunk abc"}, nil }}
	switch s.kind {
	case "syslog":
		return mirror.NewSyslog(mirror.SyslogOptions{Address: s.addr, Dialer: d, TLS: secure})
	case "otlp":
		return mirror.NewOTLP(o)
	}
	return mirror.NewHTTP(o)
}

const loopback = "127.0.0.0/8"

// bench is a mirror with its folder.
type bench struct {
	t   *testing.T
	opt mirror.Options
	reg *prometheus.Registry
	x   *mirror.Mirror
	at  uint64
}

func newBench(t *testing.T, s *siem) *bench {
	b := &bench{t: t, opt: mirror.Options{Sink: s.sink(loopback), Dir: filepath.Join(t.TempDir(), "mirror"), Gather: 5 * time.Millisecond, Retry: 50 * time.Millisecond, Closing: 5 * time.Second, Logger: slog.New(slog.DiscardHandler)}}
	b.open(s)
	t.Cleanup(b.close)
	return b
}

func (b *bench) open(s *siem) {
	b.t.Helper()
	b.reg = prometheus.NewRegistry()
	b.opt.Sink = s.sink(loopback)
	x, err := mirror.Open(b.opt, mirror.NewMetrics(b.reg))
	must(b.t, err)
	b.x = x
}

func (b *bench) close() { must(b.t, b.x.Close()) }

func line(seq uint64) []byte {
	return fmt.Appendf(nil, `{"seq":%d,"time":"2026-11-23T07:20:11.520000001Z","node":"n1","type":"change","record":"service default/s%d — “ü”","prev":"p","hash":"h"}`, seq, seq)
}

func (b *bench) tell(n int) {
	for range n {
		b.at++
		b.x.Mirror([]audit.Mirrored{{Seq: b.at, Line: line(b.at), Request: audit.Rendered(`{"headers":{"User-Agent":"t"}}`)}})
	}
}

func (b *bench) metric(name string) float64 {
	b.t.Helper()
	families, err := b.reg.Gather()
	must(b.t, err)
	sum := 0.0
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func (b *bench) awaitDelivered() {
	b.t.Helper()
	for deadline := time.Now().Add(time.Minute); b.metric("muster_audit_mirror_waiting_bytes") > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatal("lines still wait")
		}
	}
}

var kinds = []string{"syslog", "http", "otlp"}

// TestPlain: what goes to a sink that wants it so is not compressed, also when it
// is sent again; each body is a whole one of its own.
func TestPlain(t *testing.T) {
	for _, kind := range []string{"http", "otlp"} {
		t.Run(kind, func(t *testing.T) {
			s := newSIEM(t, kind)
			s.plain = true
			failures := 2
			s.hook = func(w http.ResponseWriter, _ []byte) bool {
				s.mu.Lock()
				defer s.mu.Unlock()
				if failures--; failures >= 0 {
					w.WriteHeader(http.StatusServiceUnavailable)
				}
				return failures >= 0
			}
			s.come()
			b := newBench(t, s)
			for range 10 {
				b.tell(100)
				b.awaitDelivered()
			}
			wantAll(t, s.await(b.at), b.at)
		})
	}
}

// TestAwayAndBack: lines wait on disk while the sink is away, over restarts of the
// node, and arrive in order, each at least once; what was under way when the sink
// went comes again.
func TestAwayAndBack(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			s := newSIEM(t, kind)
			b := newBench(t, s)
			b.tell(300)
			b.close()
			b.open(s)
			if got := b.x.Mirrored(); got != 300 {
				t.Errorf("after the restart the mirror has lines up to %d", got)
			}
			if b.metric("muster_audit_mirror_waiting_bytes") == 0 {
				t.Error("nothing waits")
			}
			b.tell(10)
			s.come()
			s.await(310)
			for range 3 {
				b.tell(200)
				s.leave()
				b.tell(200)
				s.come()
			}
			wantAll(t, s.await(b.at), b.at)
			b.awaitDelivered()
			if e := s.await(b.at)[0]; e.Request.Headers["User-Agent"] != "t" || e.Dropped != 0 {
				t.Errorf("%s", e.raw)
			}
			if h := b.x.Health(); !strings.HasPrefix(h, "[+]") || b.metric("muster_audit_mirror_up") != 1 {
				t.Errorf("%s", h)
			}
			b.close()
			b.open(s)
			b.tell(1)
			wantAll(t, s.await(b.at), b.at)
			if sent, dropped := b.metric("muster_audit_mirror_sent_total"), b.metric("muster_audit_mirror_dropped_total"); dropped != 0 || sent > 1 {
				t.Errorf("after a restart with nothing that waited %v lines were sent, %v dropped", sent, dropped)
			}
		})
	}
}

// TestMoreThanMemoryHolds: what waits beyond what is held in memory is read from
// the disk, and the way back to memory leaves nothing out.
func TestMoreThanMemoryHolds(t *testing.T) {
	s := newSIEM(t, "http")
	b := newBench(t, s)
	request := audit.Rendered(`{"headers":{"User-Agent":"` + strings.Repeat("t", 4000) + `"}}`)
	tell := func(n int) {
		var lines []audit.Mirrored
		for range n {
			b.at++
			lines = append(lines, audit.Mirrored{Seq: b.at, Line: line(b.at), Request: request})
		}
		b.x.Mirror(lines)
	}
	for range 15 {
		tell(100) // 6 MB in all
	}
	s.come()
	for range 50 {
		tell(7)
		s.await(b.at - 300)
	}
	wantAll(t, s.await(b.at), b.at)
	b.awaitDelivered()
}

// TestAfterACrash: a process that ends without a word loses no line, whether it was
// on disk or in memory alone; what it had sent lately may come again.
func TestAfterACrash(t *testing.T) {
	s := newSIEM(t, "http")
	b := newBench(t, s)
	dir := t.TempDir()
	open := func(dir string) *audit.Trail {
		t.Helper()
		trail, err := audit.Open(audit.Options{Path: filepath.Join(dir, "audit.log"), Node: "n1", Mirror: b.x, Logger: slog.New(slog.DiscardHandler)}, audit.NewMetrics(prometheus.NewRegistry()))
		must(t, err)
		return trail
	}
	trail := open(dir)
	tell := func(n int) {
		for range n {
			trail.Refused(audit.Entry{Time: time.Now(), Type: audit.Refusal, Principal: "p", Request: audit.Rendered(`{"headers":{"User-Agent":"x"}}`)})
		}
	}
	// What crashes leave: of a sink that was never there, keeps up, has gone.
	for _, there := range []bool{false, true, true, false, false, true} {
		if s.leave(); there {
			s.come()
		}
		tell(20)
		if there {
			s.await(trail.Head().Seq)
		}
		tell(20)
		crashed := t.TempDir()
		for _, from := range []string{dir, b.opt.Dir} {
			for _, pattern := range []string{"*.events", "done", "audit.log"} {
				files, err := filepath.Glob(filepath.Join(from, pattern))
				must(t, err)
				for _, f := range files {
					content, err := os.ReadFile(f)
					must(t, err)
					must(t, os.WriteFile(filepath.Join(crashed, filepath.Base(f)), content, 0o600))
				}
			}
		}
		s.leave()
		must(t, trail.Close())
		b.close()
		// What the sink took and the crash has made forgotten does not count.
		var done struct{ Seq uint64 }
		if content, err := os.ReadFile(filepath.Join(crashed, "done")); err == nil {
			must(t, json.Unmarshal(content, &done, json.MatchCaseInsensitiveNames(true)))
		}
		s.mu.Lock()
		s.events = slices.DeleteFunc(s.events, func(e event) bool { return e.Seq > done.Seq })
		s.mu.Unlock()
		dir, b.opt.Dir = crashed, crashed
		b.open(s)
		trail = open(dir)
	}
	s.come()
	head := trail.Head().Seq
	events := s.await(head)
	wantAll(t, events, head)
	if events[1].Request.Headers["User-Agent"] != "x" {
		t.Errorf("no request: %s", events[1].raw)
	}
	must(t, trail.Close())
}

// TestSyslogHead: the messages are those of RFC 5424, to a parser that others wrote.
func TestSyslogHead(t *testing.T) {
	s := newSIEM(t, "syslog")
	s.come()
	b := newBench(t, s)
	b.tell(2)
	s.await(2)
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.heads[0]
	if *m.Facility != 13 || *m.Severity != 6 || m.Version != 1 || *m.Hostname != "n1" || *m.Appname != "muster" || *m.MsgID != "change" ||
		m.ProcID == nil || m.StructuredData != nil || !m.Timestamp.Equal(time.Date(2026, 11, 23, 7, 20, 11, 520000000, time.UTC)) {
		t.Errorf("%+v", m)
	}
	if !bytes.HasPrefix(s.events[0].raw, line(1)[:len(line(1))-1]) {
		t.Errorf("the message is not the line: %s", s.events[0].raw)
	}
}

// TestHTTPHead: what the sink wants to know goes along, and a redirect is not
// followed with it.
func TestHTTPHead(t *testing.T) {
	s := newSIEM(t, "http")
	elsewhere := newSIEM(t, "http")
	elsewhere.come()
	turned := make(chan struct{})
	var once sync.Once
	s.hook = func(w http.ResponseWriter, _ []byte) bool {
		w.Header().Set("Location", "https://"+elsewhere.addr)
		w.WriteHeader(http.StatusTemporaryRedirect)
		once.Do(func() { close(turned) })
		return true
	}
	s.come()
	b := newBench(t, s)
	b.tell(1)
	select {
	case <-turned:
	case <-time.After(time.Minute):
		t.Fatal("nothing is sent")
	}
	s.mu.Lock()
	s.hook = nil
	s.mu.Unlock()
	s.await(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen.Get("Authorization") != "Splunk abc" || elsewhere.seen != nil {
		t.Errorf("%v, elsewhere %v", s.seen, elsewhere.seen)
	}
}

// TestFullSpool: what does not fit is counted, the next line that arrives says how
// many are missing, and who may refuse changes is told before anything is lost.
func TestFullSpool(t *testing.T) {
	s := newSIEM(t, "http")
	b := newBench(t, s)
	b.close()
	b.opt.Bound = 64 << 10
	b.open(s)
	for b.x.Full() == nil {
		b.tell(1)
		if b.at > 10_000 {
			t.Fatal("the spool is never full")
		}
	}
	if b.metric("muster_audit_mirror_dropped_total") != 0 {
		t.Error("lines were lost before it was said that there is no room")
	}
	before := b.at
	b.tell(200)
	lost := b.metric("muster_audit_mirror_dropped_total")
	if lost == 0 || lost >= 200 {
		t.Errorf("of 200 more, %v were dropped", lost)
	}
	if waits := b.metric("muster_audit_mirror_waiting_bytes"); waits > 64<<10 {
		t.Errorf("%v bytes wait", waits)
	}
	if h := b.x.Health(); !strings.HasPrefix(h, "[!]") {
		t.Error(h)
	}
	s.come()
	b.awaitDelivered()
	if err := b.x.Full(); err != nil {
		t.Error(err)
	}
	b.tell(1)
	events := s.await(b.at)
	last := events[len(events)-1]
	if float64(last.Dropped) != lost || uint64(len(events)) != b.at-uint64(lost) || b.at != before+201 {
		t.Errorf("%d events of %d lines, the last says %d of %v were dropped", len(events), b.at, last.Dropped, lost)
	}
	files, err := filepath.Glob(filepath.Join(b.opt.Dir, "*"))
	must(t, err)
	for _, f := range files {
		info, err := os.Stat(f)
		must(t, err)
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", f, info.Mode())
		}
	}
	if len(files) > 3 {
		t.Errorf("what was sent stays on disk: %v", files)
	}
}

// TestAFileThatWasCut: a last line that a crash left unfinished is not sent.
func TestAFileThatWasCut(t *testing.T) {
	s := newSIEM(t, "http")
	b := newBench(t, s)
	b.tell(50)
	b.close()
	files, err := filepath.Glob(filepath.Join(b.opt.Dir, "*.events"))
	must(t, err)
	info, err := os.Stat(files[0])
	must(t, err)
	must(t, os.Truncate(files[0], info.Size()-30))
	b.open(s)
	if got := b.x.Mirrored(); got != 49 {
		t.Errorf("lines up to %d are there", got)
	}
	b.at = 49
	b.tell(10)
	s.come()
	wantAll(t, s.await(59), 59)
}

// TestTooLargeAtOnce: a sink that takes little at once gets little; a line that it
// never takes does not stop the others.
func TestTooLargeAtOnce(t *testing.T) {
	s := newSIEM(t, "http")
	s.hook = func(w http.ResponseWriter, body []byte) bool {
		if len(body) > 2000 {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			return true
		}
		return false
	}
	b := newBench(t, s)
	b.tell(100)
	b.at++
	b.x.Mirror([]audit.Mirrored{{Seq: b.at, Line: line(b.at), Request: audit.Rendered(`"` + strings.Repeat("x", 4000) + `"`)}})
	b.tell(100)
	s.come()
	events := s.await(b.at)
	if len(events) != 200 || b.metric("muster_audit_mirror_dropped_total") != 1 {
		t.Errorf("%d lines, %v dropped", len(events), b.metric("muster_audit_mirror_dropped_total"))
	}
}

// TestRejected: what an OTLP collector says it does not take is counted.
func TestRejected(t *testing.T) {
	s := newSIEM(t, "otlp")
	var once sync.Once
	s.hook = func(w http.ResponseWriter, _ []byte) bool {
		first := false
		if once.Do(func() { first = true }); !first {
			return false
		}
		answer, _ := proto.Marshal(&logs.ExportLogsServiceResponse{PartialSuccess: &logs.ExportLogsPartialSuccess{RejectedLogRecords: 1}})
		_, _ = w.Write(answer)
		return true
	}
	b := newBench(t, s)
	b.tell(10)
	s.come()
	b.awaitDelivered()
	if sent, dropped := b.metric("muster_audit_mirror_sent_total"), b.metric("muster_audit_mirror_dropped_total"); sent != 9 || dropped != 1 {
		t.Errorf("%v sent, %v dropped", sent, dropped)
	}
}

// TestOnlyWhereItMay: a sink at a private address that the configuration does not
// list is not connected to, however it is spelled.
func TestOnlyWhereItMay(t *testing.T) {
	for _, kind := range kinds {
		s := newSIEM(t, kind)
		s.come()
		sink := s.sink("")
		_, err := sink.Send(context.Background(), [][]byte{line(1)})
		if err == nil || !strings.Contains(err.Error(), "loopback") {
			t.Errorf("%s: %v", kind, err)
		}
		must(t, sink.Close())
	}
}

// TestAStrangerInItsPlace: a sink that cannot prove itself gets nothing.
func TestAStrangerInItsPlace(t *testing.T) {
	for _, kind := range kinds {
		s, other := newSIEM(t, kind), newSIEM(t, kind)
		s.tls = other.tls
		s.come()
		sink := s.sink(loopback)
		if _, err := sink.Send(context.Background(), [][]byte{line(1)}); err == nil || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("%s: %v", kind, err)
		}
		must(t, sink.Close())
	}
}

// TestTheTrailIsMirrored: each line of the trail arrives as it stands there, also
// those that a crash kept from the spool.
func TestTheTrailIsMirrored(t *testing.T) {
	s := newSIEM(t, "http")
	b := newBench(t, s)
	file := filepath.Join(t.TempDir(), "audit.log")
	open := func() *audit.Trail {
		t.Helper()
		trail, err := audit.Open(audit.Options{Path: file, Node: "n1", Mirror: b.x, Size: 4 << 10, Logger: slog.New(slog.DiscardHandler)}, audit.NewMetrics(prometheus.NewRegistry()))
		must(t, err)
		return trail
	}
	trail := open()
	for r := range uint64(50) {
		trail.Refused(audit.Entry{Time: time.Now(), Type: audit.Refusal, Principal: fmt.Sprint(r), Request: audit.Rendered(`{"headers":{"User-Agent":"x"}}`)})
	}
	must(t, trail.Close())
	b.close()
	files, err := filepath.Glob(filepath.Join(b.opt.Dir, "*.events"))
	must(t, err)
	for _, f := range files { // nothing was sent, and half of it is lost
		info, err := os.Stat(f)
		must(t, err)
		must(t, os.Truncate(f, info.Size()/2))
	}
	b.open(s)
	trail = open()
	s.come()
	head := trail.Head()
	events := s.await(head.Seq)
	wantAll(t, events, head.Seq)
	must(t, trail.Close())
	parts, err := filepath.Glob(file + "*")
	must(t, err)
	lines := map[string]bool{}
	for _, p := range parts {
		f, err := os.Open(p)
		must(t, err)
		for r := bufio.NewScanner(f); r.Scan(); {
			lines[strings.TrimSuffix(r.Text(), "}")] = true
		}
		must(t, f.Close())
	}
	for _, e := range events {
		own, _, _ := strings.Cut(strings.TrimSuffix(string(e.raw), "}"), `,"request":`)
		if !lines[own] {
			t.Errorf("no line of the trail: %s", e.raw)
		}
	}
	if len(parts) < 2 || events[1].Request.Headers["User-Agent"] != "x" {
		t.Errorf("%d files; %s", len(parts), events[1].raw)
	}
}

func TestMetricsAreWellNamed(t *testing.T) {
	reg := prometheus.NewRegistry()
	mirror.NewMetrics(reg)
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
}
