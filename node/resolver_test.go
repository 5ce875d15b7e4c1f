package node_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"

	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/client/resolver"
	"github.com/muster-registry/muster/fault"
)

// soon waits until a condition holds.
func soon(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("in vain: %s", what)
		}
	}
}

// greeter is a gRPC server of somebody's, and the instance that it is.
func greeter(t *testing.T) (address, spec string, server *grpc.Server) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	server = grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	_, port, err := net.SplitHostPort(l.Addr().String())
	must(t, err)
	return l.Addr().String(), fmt.Sprintf(`{"address":"127.0.0.1","port":%s,"ttl":"3s"}`, port), server
}

// TestServicesFindEachOtherByName has two instances keep themselves registered,
// and a gRPC client that knows them by name only, while nodes go and come.
func TestServicesFindEachOtherByName(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	tr.startAll()
	c := tr.client(operatorToken, 0, 1, 2)
	first, firstSpec, firstServer := greeter(t)
	second, secondSpec, _ := greeter(t)

	keep := func(id, spec string) (leave func()) {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- c.Keep(ctx, instanceRef(id), []byte(spec), client.Write{CreateService: true}, nil) }()
		left := false
		leave = func() {
			if cancel(); !left {
				left = true
				if err := <-done; err != nil {
					t.Errorf("%s: %v", id, err)
				}
			}
		}
		return leave
	}
	leaveFirst := keep("i1", firstSpec)
	defer leaveFirst()

	r := c.NewResolver(client.ResolverOptions{Wait: 2 * time.Second})
	defer r.Close()
	soon(t, "the first instance", func() bool {
		a, err := r.Resolve(t.Context(), "default", "cart")
		return err == nil && len(a.Instances) == 1
	})
	conn, err := grpc.NewClient("muster:///cart", grpc.WithResolvers(resolver.New(r)), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`))
	must(t, err)
	defer conn.Close()
	ask := func() string {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		var p peer.Peer
		if _, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.Peer(&p), grpc.WaitForReady(true)); err != nil {
			t.Fatal(err)
		}
		return p.Addr.String()
	}
	if got := ask(); got != first {
		t.Fatalf("asked %s", got)
	}
	leaveSecond := keep("i2", secondSpec)
	defer leaveSecond()
	soon(t, "the second instance is asked too", func() bool { return ask() == second })

	t.Run("registered again when forgotten", func(t *testing.T) {
		must(t, c.Delete(t.Context(), instanceRef("i1"), client.Write{}))
		soon(t, "the first is back", func() bool {
			_, err := c.Get(t.Context(), instanceRef("i1"), client.Read{Linearizable: true})
			return err == nil
		})
	})
	t.Run("no call is lost while nodes go", func(t *testing.T) {
		for i := range tr.nodes {
			tr.stop(i)
			for range 20 {
				ask()
			}
			tr.start(i)
			tr.awaitReady(i)
		}
	})
	t.Run("nor without a cluster", func(t *testing.T) {
		for i := range tr.nodes {
			tr.stop(i)
		}
		soon(t, "the resolver knows", func() bool {
			a, err := r.Resolve(t.Context(), "default", "cart")
			if err != nil || len(a.Instances) != 2 {
				t.Fatalf("%+v, %v", a, err)
			}
			return a.Problem != nil
		})
		seen := []string{ask(), ask(), ask(), ask()}
		if !slices.Contains(seen, first) || !slices.Contains(seen, second) {
			t.Errorf("asked %v", seen)
		}
		tr.startAll()
		soon(t, "the resolver follows again", func() bool {
			a, err := r.Resolve(t.Context(), "default", "cart")
			return err == nil && a.Problem == nil
		})
	})
	t.Run("who leaves is gone at once", func(t *testing.T) {
		leaveFirst()
		firstServer.Stop()
		if _, err := c.Get(t.Context(), instanceRef("i1"), client.Read{Linearizable: true}); !fault.Is(err, fault.InstanceNotFound) {
			t.Errorf("it is still there: %v", err)
		}
		for range 10 {
			if got := ask(); got != second {
				t.Errorf("asked %s", got)
			}
		}
	})
	t.Run("refused for good", func(t *testing.T) {
		err := c.Keep(t.Context(), instanceRef("i3"), []byte(`{"address":"127.0.0.1","port":`+strconv.Itoa(1<<20)+`}`), client.Write{}, nil)
		if !fault.Is(err, fault.InvalidField) {
			t.Errorf("got %v", err)
		}
		for _, target := range []string{"muster:///", "muster://host/cart", "muster:///a/b/c"} {
			conn, err := grpc.NewClient(target, grpc.WithResolvers(resolver.New(r)), grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err == nil {
				_, err = grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
				conn.Close()
			}
			if err == nil || !strings.Contains(err.Error(), "names no service") {
				t.Errorf("%s: %v", target, err)
			}
		}
	})
}
