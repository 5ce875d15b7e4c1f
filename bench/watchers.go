package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"github.com/muster-registry/muster/api/rpc/musterv1"
)

func musterWatches(ctx context.Context, m *muster) ([]watched, error) {
	defer m.clear()
	var out []watched
	for _, kind := range []watching{
		{name: "100 gRPC streams", goal: 140 * time.Millisecond, open: m.watchRPC},
		{name: "blocking queries, 100 on each connection", open: m.watchBlocking},
		{name: sharedStreams, open: func(ctx context.Context, b *board) error { return m.watchSSE(ctx, b, true) }},
		{name: ownStreams, goal: 500 * time.Millisecond, open: func(ctx context.Context, b *board) error { return m.watchSSE(ctx, b, false) }},
	} {
		if err := m.start(ctx); err != nil {
			return nil, err
		}
		c := m.client(0)
		for _, service := range []string{"one-0", "one-1"} {
			if err := c.do(ctx, "PUT", "/v1/namespaces/bench/services/"+service, serviceBody(0), http.StatusOK, nil); err != nil {
				return nil, err
			}
		}
		kind.system, kind.pid = "muster", func() int { return m.pids()[0] }
		kind.put = func(ctx context.Context, n int) error {
			return c.do(ctx, "PUT", instancePath("one-", 0, 0), instanceBody(n, "24h", "24h"), http.StatusOK, nil)
		}
		kind.woken = func() (string, error) { return m.wokenByOthers(ctx, c) }
		got, err := kind.measure(ctx)
		c.close()
		m.stop()
		if err != nil {
			return nil, err
		}
		out = append(out, *got)
	}
	return out, nil
}

// wokenByOthers changes another service, and reads how many watchers that woke.
func (m *muster) wokenByOthers(ctx context.Context, c *client) (string, error) {
	// What is told every 15 s has to come and go between two readings without one.
	for range 10 {
		before, err := m.metric(ctx, "muster_feed_wakeups_total")
		if err != nil {
			return "", err
		}
		const puts = 20
		for n := range puts {
			if err := c.do(ctx, "PUT", instancePath("one-", 1, 0), instanceBody(n, "24h", "24h"), http.StatusOK, nil); err != nil {
				return "", err
			}
		}
		after, err := m.metric(ctx, "muster_feed_wakeups_total")
		if err != nil {
			return "", err
		}
		if before == after {
			return fmt.Sprintf("0 by %d changes", puts), nil
		}
		if err := pause(ctx, time.Second); err != nil {
			return "", err
		}
	}
	return "", errors.New("changes of another service wake watchers")
}

func (m *muster) metric(ctx context.Context, name string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, "GET", m.cluster.Nodes[0].Metrics+"/metrics", nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(rest), nil
		}
	}
	return "", fmt.Errorf("there is no metric %s", name)
}

func (m *muster) watchRPC(ctx context.Context, b *board) error {
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+m.cluster.Token)
	for range watchConns {
		conn, err := grpc.NewClient(m.nodes[0].Host, grpc.WithTransportCredentials(credentials.NewTLS(m.tls)))
		if err != nil {
			return err
		}
		context.AfterFunc(ctx, func() { conn.Close() })
		for range watchStreams / watchConns {
			stream, err := musterv1.NewRegistryClient(conn).Watch(ctx)
			if err != nil {
				return err
			}
			for n := range watchers / watchStreams {
				begin := &musterv1.WatchRequest_Begin{Watch: uint64(n + 1), Namespace: "bench", Service: "one-0"}
				if err := stream.Send(&musterv1.WatchRequest{Request: &musterv1.WatchRequest_Begin_{Begin: begin}}); err != nil {
					return err
				}
			}
			go func() {
				for {
					res, err := stream.Recv()
					if err != nil {
						return
					}
					if res.Begun {
						b.begun.Add(1)
					}
					if n := len(res.Events); n > 0 {
						b.see(n)
					}
				}
			}()
		}
	}
	return nil
}

// watchSSE opens the event streams from several addresses, since one may have
// only so many connections.
func (m *muster) watchSSE(ctx context.Context, b *board, shared bool) error {
	const each = 100
	var opening sync.WaitGroup
	opened := make(chan struct{}, 64) // not all handshakes at once
	for g := range watchers / each {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+g%10))}}
		t := &http.Transport{TLSClientConfig: m.tls.Clone(), DialContext: d.DialContext, DisableCompression: true, ForceAttemptHTTP2: shared, WriteBufferSize: 1 << 10, ReadBufferSize: 1 << 10}
		if !shared {
			t.TLSClientConfig.NextProtos = []string{"http/1.1"}
		}
		opening.Go(func() {
			for range each {
				opened <- struct{}{}
				go func() {
					defer func() { <-opened }()
					// A busy machine may take longer for a handshake than a server waits.
					for try := 0; try < 10 && ctx.Err() == nil && !m.follow(ctx, t, b); try++ {
						_ = pause(ctx, 100*time.Millisecond)
					}
				}()
			}
		})
	}
	opening.Wait()
	return nil
}

// follow opens one event stream, and says whether it has begun.
func (m *muster) follow(ctx context.Context, t *http.Transport, b *board) bool {
	req, err := http.NewRequestWithContext(ctx, "GET", m.nodes[0].String()+"/v1/watch?namespace=bench&service=one-0", nil)
	if err != nil {
		return false
	}
	req.Header.Set("Authorization", "Bearer "+m.cluster.Token)
	resp, err := t.RoundTrip(req)
	if err != nil {
		b.fail(err)
		return false
	}
	if resp.StatusCode != http.StatusOK {
		b.fail(errors.New(resp.Status))
		_ = resp.Body.Close()
		return false
	}
	b.begun.Add(1)
	go func() {
		defer resp.Body.Close()
		lines := bufio.NewReaderSize(resp.Body, 1<<10)
		for {
			line, err := lines.ReadSlice('\n')
			if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
				return
			}
			if bytes.HasPrefix(line, []byte("event: put")) {
				b.see(1)
			}
		}
	}()
	return true
}
