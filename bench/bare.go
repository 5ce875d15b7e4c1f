package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// The bare server is net/http with TLS and nothing behind it: it answers
// look-ups with one fixed answer, and sends what is put to it to everybody who
// follows. It runs as a process of its own, as a node does.

// bareAnswer is about what a look-up of one instance gives.
func bareAnswer() []byte {
	return fmt.Appendf(nil, `{"namespace":"bench","service":"one-0","revision":123456,"instances":[{"id":"i-0",%s]}`, instanceBody(0, "24h", "24h")[1:])
}

func bare(addr, cert, key string) error {
	var mu sync.Mutex
	changed, event := make(chan struct{}), []byte(nil)
	answer := bareAnswer()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/discovery/", func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		for _, name := range []string{"Muster-Revision", "Muster-Node", "Muster-Consistency", "Muster-Staleness-Ms", "X-Request-Id", "Etag"} {
			h[name] = []string{"0123456789"}
		}
		h["Content-Type"] = []string{"application/json"}
		_, _ = w.Write(answer)
	})
	mux.HandleFunc("PUT /v1/event", func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		event = fmt.Appendf(nil, "id: 1\nevent: put\ndata: %s\n\n", b)
		close(changed)
		changed = make(chan struct{})
	})
	mux.HandleFunc("GET /v1/watch", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		flush := http.NewResponseController(w).Flush
		for {
			mu.Lock()
			next := changed
			mu.Unlock()
			if flush() != nil {
				return
			}
			select {
			case <-next:
			case <-r.Context().Done():
				return
			}
			mu.Lock()
			b := event
			mu.Unlock()
			if _, err := w.Write(b); err != nil {
				return
			}
		}
	})
	return (&http.Server{Addr: addr, Handler: mux, ReadHeaderTimeout: 10 * time.Second}).ListenAndServeTLS(cert, key)
}

// startBare starts the bare server in the place of the first node, which does
// not run, with its certificate.
func (m *muster) startBare(ctx context.Context) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(m.dir, m.cluster.Nodes[0].ID)
	p, err := spawn(m.dir+"-bare.log", self, "bare", m.nodes[0].Host, filepath.Join(dir, "node.crt"), filepath.Join(dir, "node.key"))
	if err != nil {
		return nil, err
	}
	c := m.client(0)
	defer c.close()
	return p, p.await(ctx, 30*time.Second, func(ctx context.Context) error {
		return c.do(ctx, "GET", "/v1/discovery/bench/one-0", nil, http.StatusOK, nil)
	})
}
