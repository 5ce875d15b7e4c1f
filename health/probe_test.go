package health_test

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	grpchealth "google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/muster-registry/muster/egress"
	"github.com/muster-registry/muster/health"
	"github.com/muster-registry/muster/registry"
)

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

func prober() *health.Prober {
	return &health.Prober{Dialer: &egress.Dialer{Allow: loopback}, Agent: "muster/test"}
}

// check is one that an edge accepted.
func check(t testing.TB, json string) *registry.Check {
	t.Helper()
	spec, err := registry.CanonicalInstance("default", "cart", "a", fmt.Appendf(nil, `{"address":"127.0.0.1","port":80,"checks":[%s]}`, json))
	if err != nil {
		t.Fatalf("%s: %v", json, err)
	}
	txn := registry.New().Txn(nil)
	rec, _, err := txn.PutInstance(registry.Stamp{Revision: 1}, "default", "cart", "a", spec, 0, true)
	if err != nil {
		t.Fatal(err)
	}
	return &rec.Checks[0]
}

func found(t *testing.T, what string, r health.Result, status, words string) {
	t.Helper()
	if r.Status != status || !strings.Contains(r.Output, words) {
		t.Errorf("%s: %s, %.300q; want %s and %q", what, r.Status, r.Output, status, words)
	}
}

func TestHTTPProbes(t *testing.T) {
	var followed atomic.Int32
	mux := http.NewServeMux()
	mux.HandleFunc("/up", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "all is well") })
	mux.HandleFunc("/busy", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTooManyRequests) })
	mux.HandleFunc("/down", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "no database", http.StatusServiceUnavailable)
	})
	mux.HandleFunc("/away", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "/trap")
		w.WriteHeader(http.StatusFound)
	})
	mux.HandleFunc("/trap", func(http.ResponseWriter, *http.Request) { followed.Add(1) })
	mux.HandleFunc("/slow", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	mux.HandleFunc("/drip", func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte("x"))
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	mux.HandleFunc("/endless", func(w http.ResponseWriter, _ *http.Request) {
		for b := []byte(strings.Repeat("x", 1<<16)); ; {
			if _, err := w.Write(b); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/asked", func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprint(w, r.Method, " ", r.Host, " ", r.Header["X-Key"], " ", r.UserAgent(), " ", string(b))
	})
	s := httptest.NewServer(mux)
	defer s.Close()
	for _, c := range []struct{ path, more, status, words string }{
		{"/up", ``, registry.Passing, "200 OK\nall is well"},
		{"/busy", ``, registry.Warning, "429"},
		{"/down", ``, registry.Critical, "no database"},
		{"/away", ``, registry.Critical, "302"},
		{"/away", `,"expect":{"status":[302]}`, registry.Passing, "302"},
		{"/up", `,"expect":{"status":[302]}`, registry.Critical, "200"},
		{"/up", `,"expect":{"body":"is well"}`, registry.Passing, "well"},
		{"/up", `,"expect":{"body":"is ill"}`, registry.Critical, "does not contain"},
		{"/slow", `,"interval":"1s","timeout":"100ms"`, registry.Critical, "no answer within 100ms"},
		{"/drip", `,"interval":"1s","timeout":"100ms"`, registry.Critical, "no answer within 100ms"},
		{"/endless", ``, registry.Passing, "xxx"},
		{"/asked", `,"method":"POST","headers":{"X-Key":["a","b"],"Host":["cart.example"]},"body":"ping"`, registry.Passing, "POST cart.example [a b] muster/test ping"},
	} {
		r := prober().Probe(t.Context(), check(t, fmt.Sprintf(`{"type":"http","target":%q%s}`, s.URL+c.path, c.more)))
		found(t, c.path+c.more, r, c.status, c.words)
		if len(r.Output) > 2*registry.MaxOutput {
			t.Errorf("%s: an output of %d bytes", c.path, len(r.Output))
		}
	}
	if followed.Load() != 0 {
		t.Error("a redirect was followed")
	}
	s.Close()
	found(t, "nobody listens", prober().Probe(t.Context(), check(t, fmt.Sprintf(`{"type":"http","target":%q}`, s.URL))), registry.Critical, "refused")
}

// Nothing is sent to an address that is not public unless it is listed, by no
// type of check; what a name resolves to counts.
func TestProbesKeepToPublicAddresses(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var reached atomic.Int32
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			reached.Add(1)
			conn.Close()
		}
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	p := &health.Prober{Dialer: &egress.Dialer{}}
	for _, c := range []string{
		`{"type":"http","target":"http://127.0.0.1:` + port + `/"}`, `{"type":"tcp","target":"127.0.0.1:` + port + `"}`, `{"type":"grpc","target":"127.0.0.1:` + port + `"}`,
		`{"type":"http","target":"http://localhost:` + port + `/"}`, `{"type":"tcp","target":"localhost:` + port + `"}`, `{"type":"grpc","target":"localhost:` + port + `"}`,
		`{"type":"http","target":"http://169.254.169.254/latest/meta-data"}`, `{"type":"http","target":"http://[::ffff:169.254.169.254]/"}`, `{"type":"tcp","target":"10.0.0.1:22"}`,
	} {
		found(t, c, p.Probe(t.Context(), check(t, c)), registry.Critical, "health.allow")
	}
	if reached.Load() != 0 {
		t.Errorf("%d connections were made", reached.Load())
	}
}

func TestTLSProbes(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {}))
	defer s.Close()
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	address := strings.TrimPrefix(s.URL, "https://")
	allowed := prober()
	allowed.SkipVerify = true
	for _, c := range []struct {
		what, json, status, words string
		by                        *health.Prober
	}{
		{"an unknown authority", fmt.Sprintf(`{"type":"http","target":%q}`, s.URL), registry.Critical, "certificate", prober()},
		{"its own authority", fmt.Sprintf(`{"type":"http","target":%q,"tls":{"ca":%q}}`, s.URL, ca), registry.Passing, "200", prober()},
		{"another name", fmt.Sprintf(`{"type":"http","target":%q,"tls":{"ca":%q,"server_name":"cart.internal"}}`, s.URL, ca), registry.Critical, "cart.internal", prober()},
		{"a name it has", fmt.Sprintf(`{"type":"http","target":%q,"tls":{"ca":%q,"server_name":"example.com"}}`, s.URL, ca), registry.Passing, "200", prober()},
		{"skipping", fmt.Sprintf(`{"type":"http","target":%q,"tls":{"skip_verify":true}}`, s.URL), registry.Critical, "allow_skip_verify", prober()},
		{"skipping where allowed", fmt.Sprintf(`{"type":"http","target":%q,"tls":{"skip_verify":true}}`, s.URL), registry.Passing, "200", allowed},
		{"over TCP", fmt.Sprintf(`{"type":"tcp","target":%q,"tls":{"ca":%q}}`, address, ca), registry.Passing, "success", prober()},
		{"over TCP, unknown", fmt.Sprintf(`{"type":"tcp","target":%q,"tls":{}}`, address), registry.Critical, "certificate", prober()},
	} {
		found(t, c.what, c.by.Probe(t.Context(), check(t, c.json)), c.status, c.words)
	}
}

func TestTCPProbes(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := check(t, fmt.Sprintf(`{"type":"tcp","target":%q}`, l.Addr()))
	found(t, "a listener", prober().Probe(t.Context(), c), registry.Passing, "success")
	l.Close()
	found(t, "no listener", prober().Probe(t.Context(), c), registry.Critical, "refused")
}

func TestGRPCProbes(t *testing.T) {
	serve := func(opts ...grpc.ServerOption) (address string, h *grpchealth.Server) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := grpc.NewServer(opts...)
		h = grpchealth.NewServer()
		healthpb.RegisterHealthServer(s, h)
		go func() { _ = s.Serve(l) }()
		t.Cleanup(s.Stop)
		return l.Addr().String(), h
	}
	address, h := serve()
	h.SetServingStatus("cart", healthpb.HealthCheckResponse_NOT_SERVING)
	found(t, "the server", prober().Probe(t.Context(), check(t, fmt.Sprintf(`{"type":"grpc","target":%q}`, address))), registry.Passing, "SERVING")
	cart := check(t, fmt.Sprintf(`{"type":"grpc","target":%q,"service":"cart"}`, address))
	found(t, "a service that does not serve", prober().Probe(t.Context(), cart), registry.Critical, "NOT_SERVING")
	h.SetServingStatus("cart", healthpb.HealthCheckResponse_SERVING)
	found(t, "a service that does", prober().Probe(t.Context(), cart), registry.Passing, "SERVING")
	found(t, "no such service", prober().Probe(t.Context(), check(t, fmt.Sprintf(`{"type":"grpc","target":%q,"service":"x"}`, address))), registry.Critical, "NotFound")
	found(t, "TLS where there is none", prober().Probe(t.Context(), check(t, fmt.Sprintf(`{"type":"grpc","target":%q,"tls":{}}`, address))), registry.Critical, "")

	pair := httptest.NewTLSServer(nil)
	defer pair.Close()
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate().Raw}))
	secure, _ := serve(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: pair.TLS.Certificates})))
	found(t, "over TLS", prober().Probe(t.Context(), check(t, fmt.Sprintf(`{"type":"grpc","target":%q,"tls":{"ca":%q}}`, secure, ca))), registry.Passing, "SERVING")
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	found(t, "silence", prober().Probe(t.Context(), check(t, fmt.Sprintf(`{"type":"grpc","target":%q,"interval":"1s","timeout":"200ms"}`, silent.Addr()))), registry.Critical, "no answer within 200ms")
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	found(t, "no time at all", prober().Probe(ctx, cart), registry.Critical, "")
}
