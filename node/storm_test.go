package node_test

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/muster-registry/muster/node"
	"github.com/muster-registry/muster/pki"
)

// alone names the configuration of the one node that the test binary is to be,
// where a test wants to kill it, or to know what memory it takes.
const alone = "MUSTER_TEST_NODE"

func TestMain(m *testing.M) {
	if file := os.Getenv(alone); file != "" {
		if err := runAlone(file); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func runAlone(file string) error {
	cfg, err := node.Load(file, func(string) string { return "" })
	if err != nil {
		return err
	}
	patient(cfg)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	cfg.Stdout, cfg.Stderr = os.Stdout, os.Stderr
	return node.Run(ctx, cfg, "test", slog.New(slog.NewTextHandler(os.Stderr, nil)))
}

// startAlone starts a node as a process of its own. Its stop is a SIGTERM.
func (tr *trial) startAlone(i int) *exec.Cmd {
	tr.t.Helper()
	n := tr.nodes[i]
	logs, err := os.OpenFile(tr.file(n.id+".log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	must(tr.t, err)
	defer logs.Close()
	cmd := exec.Command(os.Args[0])
	cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), alone+"="+n.config), logs, logs
	must(tr.t, cmd.Start())
	n.done = make(chan error, 1)
	go func() { n.done <- cmd.Wait() }()
	n.stop = func() { _ = cmd.Process.Signal(syscall.SIGTERM) }
	return cmd
}

// memory is what a process holds that is no file, in bytes, and the most that it
// held of all.
func memory(t *testing.T, pid int) (now, most int64) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Skip("no /proc: the memory of another process cannot be read here")
	}
	for line := range strings.Lines(string(b)) {
		name, rest, _ := strings.Cut(line, ":")
		kib, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		switch name {
		case "VmRSS":
			now = kib << 10
		case "VmHWM":
			most = kib << 10
		}
	}
	return now, most
}

// guest is a client of its own identity, which remembers its TLS session.
type guest struct {
	token string // "": it has a certificate
	tls   *tls.Config
	from  net.IP

	conn  *tls.Conn // nil: it has none
	in    *bufio.Reader
	again []string // why calls were made again
	cold  bool     // a handshake failed, after which Go's client does not resume
}

func (g *guest) connect(ctx context.Context, address string) error {
	d := &tls.Dialer{NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: g.from}}, Config: g.tls}
	c, err := d.DialContext(ctx, "tcp", strings.TrimPrefix(address, "https://"))
	if err != nil {
		g.cold = true
		return err
	}
	g.conn, g.in = c.(*tls.Conn), bufio.NewReader(c)
	if end, ok := ctx.Deadline(); ok {
		return g.conn.SetDeadline(end)
	}
	return nil
}

// ask looks a service up on the connection.
func (g *guest) ask() (status int, after string, err error) {
	request := "GET /v1/discovery/default/cart HTTP/1.1\r\nHost: muster\r\n"
	if g.token != "" {
		request += "Authorization: Bearer " + g.token + "\r\n"
	}
	if _, err := io.WriteString(g.conn, request+"\r\n"); err != nil {
		return 0, "", err
	}
	res, err := http.ReadResponse(g.in, nil)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err == nil && res.StatusCode == http.StatusOK && !strings.Contains(string(body), `"10.0.0.1"`) {
		err = fmt.Errorf("found %s", body)
	}
	return res.StatusCode, res.Header.Get("Retry-After"), err
}

func (g *guest) leave() {
	if g.conn != nil {
		_ = g.conn.Close()
		g.conn = nil
	}
}

// visit asks until it is served, as clients do: again after a pause where there
// is nobody, no time or no room.
func (g *guest) visit(ctx context.Context, address string) error {
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		status, after := 0, ""
		err := g.connect(ctx, address)
		if err == nil {
			status, after, err = g.ask()
		}
		if err == nil && status == http.StatusOK {
			return nil
		}
		g.leave()
		if err == nil && status != http.StatusTooManyRequests && status != http.StatusServiceUnavailable {
			return fmt.Errorf("answered %d", status)
		}
		wait := pause
		if s, bad := strconv.Atoi(after); bad == nil && after != "" {
			wait = time.Duration(s) * time.Second
		}
		why := "answered " + strconv.Itoa(status)
		if err != nil {
			_, why, _ = strings.Cut(err.Error(), "->")
			_, why, _ = strings.Cut(why, ": ")
			why = cmp.Or(why, err.Error())
		}
		g.again = append(g.again, why)
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(wait):
		}
	}
}

// TestEverybodyComesBackAtOnce: a node is killed and starts again, and all clients
// connect to it in one moment, each with an identity of its own that this
// process has never seen, and with the TLS session that another node gave it.
// All are served, every session is resumed, and each connection costs a bounded
// amount of memory. MUSTER_STORM says how many they are; make storm has ten
// thousand.
func TestEverybodyComesBackAtOnce(t *testing.T) {
	clients := 300
	if s := os.Getenv("MUSTER_STORM"); s != "" {
		var err error
		clients, err = strconv.Atoi(s)
		must(t, err)
	} else {
		t.Parallel()
	}
	tr := newTrial(t, 3)
	k := believe(t, tr)
	tr.start(1)
	tr.start(2)
	first := tr.startAlone(0)
	for i := range tr.nodes {
		tr.awaitReady(i)
	}
	e := newEdge(t, tr)
	e.mustDo(t, "PUT", "/v1/namespaces/default/services/cart", `{}`)
	e.mustDo(t, "PUT", "/v1/namespaces/default/services/cart/instances/a", `{"address":"10.0.0.1","port":80,"ttl":"1h"}`)
	e.mustDo(t, "PUT", "/v1/roles/storm", `{"role":"viewer","match":{"provider":"ci","claims":{"groups":"api_admin"}}}`)

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	guests := make([]*guest, clients)
	each := func(atOnce int, do func(i int, g *guest) error) {
		t.Helper()
		var wg sync.WaitGroup
		var failed atomic.Int64
		next := make(chan int)
		for range atOnce {
			wg.Go(func() {
				for i := range next {
					if err := do(i, guests[i]); err != nil && failed.Add(1) <= 5 {
						t.Errorf("client %d: %v", i, err)
					}
				}
			})
		}
		for i := range guests {
			next <- i
		}
		close(next)
		wg.Wait()
		if n := failed.Load(); n > 0 {
			t.Fatalf("%d of %d clients were not served", n, clients)
		}
	}
	each(4, func(i int, _ *guest) error {
		g := &guest{from: net.IPv4(127, 1, byte(i>>6), 1), tls: &tls.Config{RootCAs: e.pool, ServerName: "127.0.0.1", ClientSessionCache: tls.NewLRUClientSessionCache(1)}}
		if guests[i] = g; i%2 == 0 {
			g.token = k.good(map[string]any{"sub": fmt.Sprint("client-", i)})
			return nil
		}
		pair, err := tr.ca.Issue("muster", pki.Request{Role: "viewer", Name: fmt.Sprint("client-", i)}, time.Now())
		if err == nil {
			g.tls.Certificates = []tls.Certificate{{Certificate: [][]byte{pair.Certificate.Raw}, PrivateKey: pair.Key}}
		}
		return err
	})
	// Each has a session of node 2 or 3, under keys that all nodes have.
	probe := guests[0]
	resumes := func(from, to int) {
		t.Helper()
		tr.eventually(fmt.Sprintf("node %d resumes sessions of node %d", to+1, from+1), func() error {
			defer probe.leave()
			if err := probe.visit(ctx, tr.nodes[from].control); err != nil {
				return err
			}
			probe.leave()
			if err := probe.visit(ctx, tr.nodes[to].control); err != nil {
				return err
			}
			if !probe.conn.ConnectionState().DidResume {
				return errors.New("a whole handshake")
			}
			return nil
		})
	}
	resumes(1, 2)
	resumes(2, 1)
	began := time.Now()
	each(16, func(i int, g *guest) error {
		defer g.leave()
		return g.visit(ctx, tr.nodes[1+i%2].control)
	})
	t.Logf("%d clients came one after the other, at nodes 2 and 3, in %v", clients, time.Since(began).Round(time.Millisecond))

	must(t, first.Process.Kill())
	_ = tr.nodes[0].end() // it was killed
	tr.nodes[0].stop = nil
	second := tr.startAlone(0)
	tr.awaitReady(0)
	resumes(1, 0)
	before, _ := memory(t, second.Process.Pid)
	began = time.Now()
	each(clients, func(_ int, g *guest) error { return g.visit(ctx, tr.nodes[0].control) })
	took := time.Since(began)
	// Nobody was let in at another's expense, and they come at once a second time.
	each(clients, func(_ int, g *guest) error {
		if status, _, err := g.ask(); err != nil || status != http.StatusOK {
			return fmt.Errorf("asked again on the same connection: %d, %w", status, err)
		}
		return nil
	})
	now, most := memory(t, second.Process.Pid)
	resumed, cold, again := 0, 0, map[string]int{}
	for _, g := range guests {
		if g.conn.ConnectionState().DidResume {
			resumed++
		} else if g.cold {
			cold++
		}
		for _, why := range g.again {
			again[why]++
		}
	}
	for _, g := range guests {
		g.leave()
	}
	t.Logf("%d clients came back at once, in %v, %d sessions resumed, calls made again: %v; memory %d MiB before, %d with all connected, %d at most",
		clients, took.Round(time.Millisecond), resumed, again, before>>20, now>>20, most>>20)
	if resumed+cold != clients {
		t.Errorf("%d of %d sessions were resumed, and %d handshakes failed", resumed, clients, cold)
	}
	const slack, client = 256 << 20, 96 << 10 // the slack is for the race detector
	if grown := most - before; grown > slack+client*int64(clients) {
		t.Errorf("%d connections took %d MiB", clients, grown>>20)
	}
}
