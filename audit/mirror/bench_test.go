package mirror_test

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/muster-registry/muster/audit"
	"github.com/muster-registry/muster/audit/mirror"
	"github.com/muster-registry/muster/egress"
)

func BenchmarkRender(b *testing.B) {
	m := mirror.NewMasker(nil)
	h := [][2]string{{"Authorization", "Bearer muster_0123456789abcdef_0123456789abcdef0123456789abcdef"}, {"Content-Type", "application/json"}, {"User-Agent", "muster-bench"}, {"Content-Length", "420"}, {"Accept-Encoding", "gzip"}}
	b.ReportAllocs()
	for b.Loop() {
		m.Render(&mirror.Request{Method: "PUT", Path: "/v1/namespaces/bench/services/svc-0/instances/i-1", Host: "127.0.0.1:8443", Scheme: "https", Source: "127.0.0.1", Headers: func(yield func(string, string) bool) {
			for _, p := range h {
				if !yield(p[0], p[1]) {
					return
				}
			}
		}})
	}
}

// BenchmarkMirror sends lines in the groups in which a busy trail writes them.
func BenchmarkMirror(b *testing.B) {
	sink := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
	defer sink.Close()
	d := &egress.Dialer{Allow: []netip.Prefix{netip.MustParsePrefix(loopback)}}
	x, err := mirror.Open(mirror.Options{Sink: mirror.NewHTTP(mirror.HTTPOptions{URL: sink.URL, Dialer: d}), Dir: b.TempDir(), Logger: slog.New(slog.DiscardHandler)}, mirror.NewMetrics(prometheus.NewRegistry()))
	if err != nil {
		b.Fatal(err)
	}
	request := audit.Rendered(`{"method":"PUT","path":"/v1/namespaces/bench/services/svc-0/instances/i-1","host":"127.0.0.1:8443","headers":{"User-Agent":"muster-bench"}}`)
	group := make([]audit.Mirrored, 40)
	seq := uint64(0)
	b.ReportAllocs()
	for b.Loop() {
		seq++
		l := audit.Mirrored{Seq: seq, Line: line(seq), Request: request}
		if group[seq%40] = l; seq%40 == 0 {
			x.Mirror(group)
		}
	}
	if err := x.Close(); err != nil {
		b.Fatal(err)
	}
}

// form is a call as an edge holds it.
type form struct {
	masker  *mirror.Masker
	headers http.Header
}

func (f *form) AppendJSON(to []byte) []byte {
	return f.masker.Append(to, &mirror.Request{Method: "GET", Path: "/v1/discovery/bench/one-0", Host: "127.0.0.1:8443", Scheme: "https", Source: "127.0.0.1", Fields: f.headers})
}

// BenchmarkLookups is the whole way of a look-up's line, from the trail to the
// sink, in groups as a node with 6 000 of them a second has them. The processor
// time holds the sink's.
func BenchmarkLookups(b *testing.B) {
	for name, plain := range map[string]bool{"gzip": false, "plain": true} {
		b.Run(name, func(b *testing.B) { benchmarkLookups(b, plain) })
	}
}

func benchmarkLookups(b *testing.B, plain bool) {
	sink := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
	defer sink.Close()
	d := &egress.Dialer{Allow: []netip.Prefix{netip.MustParsePrefix(loopback)}}
	x, err := mirror.Open(mirror.Options{Sink: mirror.NewHTTP(mirror.HTTPOptions{URL: sink.URL, Dialer: d, Plain: plain}), Dir: b.TempDir(), Logger: slog.New(slog.DiscardHandler)}, mirror.NewMetrics(prometheus.NewRegistry()))
	if err != nil {
		b.Fatal(err)
	}
	trail, err := audit.Open(audit.Options{Path: filepath.Join(b.TempDir(), "audit.log"), Node: "n1", Mirror: x, Logger: slog.New(slog.DiscardHandler)}, audit.NewMetrics(prometheus.NewRegistry()))
	if err != nil {
		b.Fatal(err)
	}
	masker := mirror.NewMasker(nil)
	const group = 300
	var forms [group]form
	for i := range forms {
		forms[i] = form{masker, http.Header{"Authorization": {"Bearer muster_0123456789abcdef_0123456789abcdef0123456789abcdef"}, "Content-Type": {"application/json"}, "User-Agent": {"muster-bench"}}}
	}
	seq := uint64(0)
	before := processorTime(b)
	b.ReportAllocs()
	for b.Loop() {
		seq++
		e := audit.Entry{
			Time: time.Now(), Type: audit.Lookup, Principal: "token:operator", Source: "127.0.0.1", Operation: "discoverInstances", Call: "GET /v1/discovery/bench/one-0", Action: "lookup", Record: "service bench/one-0",
			DecisionID: "01a206f8-fefb-70ff-b5b3-526bb" + strconv.FormatUint(1<<24+seq*7919%(1<<24), 16), RequestID: "6a1f0d2c7e9b4a53-" + strconv.FormatUint(seq, 36), Outcome: audit.Allowed, Status: http.StatusOK, Request: &forms[seq%group],
		}
		if seq%group > 0 {
			trail.Looked(&e)
		} else {
			trail.Refused(e)
		}
	}
	b.ReportMetric(float64(processorTime(b)-before)/float64(seq), "cpu-ns/op")
	if err := errors.Join(trail.Close(), x.Close()); err != nil {
		b.Fatal(err)
	}
}

func processorTime(b *testing.B) int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}
