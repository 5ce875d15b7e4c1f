package quota

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/redis/go-redis/v9"

	"github.com/muster-registry/muster/tools/ports"
)

// redisServer is a Redis of this test's own.
type redisServer struct {
	t       *testing.T
	path    string
	address string
	process *exec.Cmd
}

// newRedis gives a Redis that does not run yet; nil where none is installed:
// what it would show is then left out, and the log says so.
func newRedis(t *testing.T) *redisServer {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		if os.Getenv("MUSTER_TEST_REDIS") != "" {
			t.Fatal("MUSTER_TEST_REDIS asks for it, and there is no redis-server")
		}
		t.Log("left out: there is no redis-server; install Debian's")
		return nil
	}
	return &redisServer{t: t, path: path, address: ports.Free(t)}
}

func (s *redisServer) start() {
	s.t.Helper()
	_, port, err := net.SplitHostPort(s.address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.process = exec.Command(s.path, "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", s.t.TempDir(), "--requirepass", "a-password")
	if err := s.process.Start(); err != nil {
		s.t.Fatal(err)
	}
	client := redis.NewClient(&redis.Options{Addr: s.address, Password: "a-password"})
	defer client.Close()
	s.t.Cleanup(s.stop)
	eventually(s.t, "the Redis answers", func() bool { return client.Ping(context.Background()).Err() == nil })
}

func (s *redisServer) stop() {
	if s.process != nil {
		_ = s.process.Process.Kill()
		_ = s.process.Wait()
		s.process = nil
	}
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it is not so after a minute: %s", what)
		}
	}
}

// onRedis gives keepers that share a Redis and nothing else.
func onRedis(t *testing.T, address string, n int, static *Rate) []*Keeper {
	t.Helper()
	document, err := Canonical(fmt.Appendf(nil, `{"quota_management":{"backend":"redis","redis_connection":"redis://%s/1","overrides":[
		{"service_id":"slow","requests_per_second":0.001,"burst_capacity":50},
		{"service_id":"wide","requests_per_second":0.001,"burst_capacity":500},
		{"principal":"ann","requests_per_second":0.001,"burst_capacity":20}]}}`, address))
	if err != nil {
		t.Fatal(err)
	}
	var all []*Keeper
	for range n {
		var k *Keeper
		k = New(Options{
			Document: func() ([]byte, uint64) { return document, 1 }, Nodes: func() int { return n },
			Call:   func(ctx context.Context, _ string, p []byte) ([]byte, error) { return k.Serve(ctx, "", p) },
			Static: static, Password: "a-password", Logger: slog.New(slog.DiscardHandler),
		})
		k.store.patience = 30 * time.Second // a slow machine is no Redis that is away
		go k.Run(t.Context())
		all = append(all, k)
	}
	return all
}

func TestRedisKeepsTheCount(t *testing.T) {
	s := newRedis(t)
	if s == nil {
		return
	}
	s.start()
	keepers := onRedis(t, s.address, 3, nil)
	eventually(t, "the script answers", func() bool {
		_, err := keepers[0].Check(t.Context(), Call{ServiceID: "none", Principal: "warm", Hits: 1})
		r, ok := keepers[0].store.check(t.Context(), "redis://"+s.address+"/1", []Limit{{"service/default/warm", Rate{1000, 1000}}}, 1)
		return err == nil && ok && r.Allowed
	})
	var allowed, refused atomic.Int64
	var wg sync.WaitGroup
	for i := range 150 {
		wg.Go(func() {
			r, err := keepers[i%3].Check(t.Context(), Call{ServiceID: "slow", Hits: 1})
			switch {
			case err != nil:
				t.Error(err)
			case r.Allowed:
				allowed.Add(1)
			default:
				refused.Add(1)
				if r.RetryAfter <= 0 || r.Remaining != 0 {
					t.Errorf("%+v", r)
				}
			}
		})
	}
	wg.Wait()
	if allowed.Load() != 50 {
		t.Errorf("%d of 150 are allowed, want 50", allowed.Load())
	}
	// All limits or none: the principal ends first, and the service keeps its hits.
	var last *Result
	for range 25 {
		r, err := keepers[0].Check(t.Context(), Call{ServiceID: "wide", Principal: "ann", Hits: 1})
		if err != nil {
			t.Fatal(err)
		}
		last = r
	}
	if last.Allowed || last.Limits[last.Tightest].Key != "principal/ann" {
		t.Errorf("%+v", last)
	}
	r, err := keepers[1].Check(t.Context(), Call{ServiceID: "wide", Hits: 480})
	if err != nil || !r.Allowed {
		t.Errorf("%+v %v", r, err)
	}
}

// TestRedisGoesAway: while it is away the static limits of each node apply.
func TestRedisGoesAway(t *testing.T) {
	s := newRedis(t)
	address := "127.0.0.1:1"
	if s != nil {
		address = s.address
	}
	k := onRedis(t, address, 1, &Rate{RequestsPerSecond: 0.001, BurstCapacity: 7})[0]
	allowed := 0
	for range 20 {
		r, err := k.Check(t.Context(), Call{ServiceID: "slow", Hits: 1})
		if err != nil {
			t.Fatal(err)
		}
		if r.Allowed {
			allowed++
		} else if r.Limits[0].Rate.RequestsPerSecond != 0.001 || r.RetryAfter <= 0 {
			t.Errorf("%+v", r)
		}
	}
	if up := testutil.ToFloat64(k.metrics.up); allowed != 7 || up != 0 {
		t.Errorf("%d are allowed, want 7; muster_quota_backend_up is %g", allowed, up)
	}
	if s == nil {
		return
	}
	s.start()
	eventually(t, "its return is noticed, without a call", k.Connected)
	s.stop()
	eventually(t, "its loss is noticed", func() bool {
		_, err := k.Check(t.Context(), Call{ServiceID: "slow", Hits: 1})
		return err == nil && testutil.ToFloat64(k.metrics.up) == 0
	})
}
