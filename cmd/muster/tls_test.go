package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/pki"
)

// swap puts a file in the place of another at once.
func swap(t *testing.T, file string, content []byte) {
	t.Helper()
	if err := errors.Join(os.WriteFile(file+".new", content, 0o600), os.Rename(file+".new", file)); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestRotationOfTheCA follows the steps of docs/operators.md on three processes
// that are busy all the time: no call fails, and in the end nothing of the old
// authority is believed.
func TestRotationOfTheCA(t *testing.T) {
	d := startDev(t, filepath.Join(t.TempDir(), "dev"), "--port-base", "0")
	work := t.TempDir()
	at := func(name string) string { return filepath.Join(work, name) }
	oldCA, oldKey := read(t, d.CA), read(t, filepath.Join(filepath.Dir(d.CA), "ca.key"))
	swap(t, at("old.crt"), oldCA)
	swap(t, at("old.key"), oldKey)
	shell{}.ok(t, "tls", "ca", "--dir", "not used", "--out", at("new"), "--algorithm", "ecdsa-p384")
	newCA := read(t, at("new.crt"))
	both := append(append([]byte{}, oldCA...), newCA...)
	swap(t, at("both.crt"), both)
	issue := func(ca, out string, args ...string) (crt, key []byte) {
		shell{}.ok(t, append([]string{"tls", "issue", "--dir", work, "--ca", at(ca + ".crt"), "--out", out}, args...)...)
		return read(t, at(out+".crt")), read(t, at(out+".key"))
	}
	issue("old", "old-operator", "--role", "operator")
	issue("new", "new-operator", "--role", "operator")

	load := startLoad(t, d, at("both.crt"))
	trusting := func(node int, n int, ca []byte) error {
		res, err := http.Get(d.Nodes[node].Metrics + "/readyz?verbose")
		if err != nil {
			return err
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			return err
		}
		if says := fmt.Sprintf("%d authorities are trusted", n); strings.Contains(string(b), "authorities are trusted") != (n > 1) || n > 1 && !strings.Contains(string(b), says) {
			return fmt.Errorf("not yet %s: %s", says, b)
		}
		return nil
	}
	presents := func(node int, ca []byte) error {
		for address, proto := range map[string]string{strings.TrimPrefix(d.Nodes[node].Control, "https://"): "h2", strings.TrimPrefix(d.Nodes[node].Policy, "https://"): "h2"} {
			authorities, err := pki.DecodeCertificates(ca)
			if err != nil {
				return err
			}
			conn, err := tls.Dial("tcp", address, &tls.Config{RootCAs: pki.Pool(authorities), NextProtos: []string{proto}})
			if err != nil {
				return err
			}
			conn.Close()
		}
		return nil
	}
	everyNode := func(step string, do func(dir string, i int), done func(i int) error) {
		t.Helper()
		for i, n := range d.Nodes {
			do(n.Dir, i)
		}
		for i := range d.Nodes {
			eventually(t, 2*time.Minute, func() error { return done(i) })
		}
		load.goesOn(t, step)
	}
	// Clients and nodes read the authorities of muster dev from the same file.
	everyNode("both are trusted", func(string, int) { swap(t, d.CA, both) }, func(i int) error { return trusting(i, 2, nil) })
	load.use(t, at("new-operator"))
	everyNode("nodes have certificates of the new one", func(dir string, i int) {
		crt, key := issue("new", d.Nodes[i].ID, "--node", d.Nodes[i].ID)
		swap(t, filepath.Join(dir, "node.key"), key)
		swap(t, filepath.Join(dir, "node.crt"), crt)
	}, func(i int) error { return presents(i, newCA) })
	load.trust(t, at("new.crt"))
	swap(t, filepath.Join(filepath.Dir(d.CA), "ca.key"), read(t, at("new.key")))
	everyNode("only the new one is trusted", func(string, int) { swap(t, d.CA, newCA) }, func(i int) error { return trusting(i, 1, nil) })
	load.stop(t)

	s := d.shell()
	for _, n := range d.Nodes {
		c, err := client.New(client.Config{Addresses: []string{n.Control}, CACert: at("new.crt"), ClientCert: at("old-operator.crt"), ClientKey: at("old-operator.key")})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Status(t.Context()); err == nil {
			t.Errorf("%s believes a client of the old authority", n.ID)
		}
		c.Close()
		out, _, code := s.do(t, "tls", "verify", n.Peer, "--cacert", at("old.crt"))
		if code != exitError || !strings.Contains(out, "no path to the CA") {
			t.Errorf("the peer port of %s: exit code %d: %s", n.ID, code, out)
		}
		contains(t, s.ok(t, "tls", "verify", n.Peer, "--cacert", at("new.crt")), "All is well")
	}
	// A node that has to make all its connections anew.
	s.ok(t, "apply", "-f", write(t, "cart.yaml", manifestText))
	death(t, d, s)
}

// load are clients that call all the time: some over connections that stay, some
// over new ones for each call, by token and by certificate.
type load struct {
	calls, failed atomic.Int64
	first         atomic.Pointer[string]
	ca, cert      atomic.Pointer[string]
	stopped       chan struct{}
	wait          sync.WaitGroup
}

func startLoad(t *testing.T, d *devCluster, ca string) *load {
	l := &load{stopped: make(chan struct{})}
	l.ca.Store(&ca)
	none := ""
	l.cert.Store(&none)
	for i, n := range d.Nodes {
		for _, fresh := range []bool{false, true} {
			l.wait.Go(func() {
				r := client.Ref{Kind: client.Service, Namespace: "default", Name: fmt.Sprintf("load-%d-%t", i, fresh)}
				var c *client.Client
				for turn := 0; ; turn++ {
					select {
					case <-l.stopped:
						return
					default:
					}
					if c == nil || fresh {
						cfg := client.Config{Addresses: []string{n.Control}, CACert: *l.ca.Load()}
						if cert := *l.cert.Load(); cert != "" && turn%2 == 0 {
							cfg.ClientCert, cfg.ClientKey = cert+".crt", cert+".key"
						} else {
							cfg.Token = d.OperatorToken
						}
						var err error
						if c, err = client.New(cfg); err != nil {
							l.fail(err)
							return
						}
					}
					ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
					rec, err := c.Put(ctx, r, fmt.Appendf(nil, `{"description":"%d"}`, turn), client.Write{})
					if err == nil {
						_, err = c.Get(ctx, r, client.Read{MinRevision: rec.Revision})
					}
					cancel()
					l.calls.Add(1)
					if err != nil {
						l.fail(fmt.Errorf("%s, new connections %t: %w", n.ID, fresh, err))
					}
					if fresh {
						c.Close()
					}
				}
			})
		}
	}
	t.Cleanup(func() { l.end() })
	return l
}

func (l *load) fail(err error) {
	l.failed.Add(1)
	s := err.Error()
	l.first.CompareAndSwap(nil, &s)
}

func (l *load) use(t *testing.T, cert string) {
	l.cert.Store(&cert)
	l.goesOn(t, "other client certificates")
}
func (l *load) trust(t *testing.T, ca string) {
	l.ca.Store(&ca)
	l.goesOn(t, "clients trust the new one alone")
}

// goesOn waits until calls were made after now, none of which failed.
func (l *load) goesOn(t *testing.T, step string) {
	t.Helper()
	goal := l.calls.Load() + 60
	eventually(t, 2*time.Minute, func() error {
		if n := l.calls.Load(); n < goal {
			return fmt.Errorf("%s: %d of %d calls", step, n, goal)
		}
		return nil
	})
	if n := l.failed.Load(); n > 0 {
		t.Fatalf("%s: %d calls failed, the first: %s", step, n, *l.first.Load())
	}
}

func (l *load) end() {
	select {
	case <-l.stopped:
	default:
		close(l.stopped)
	}
	l.wait.Wait()
}

func (l *load) stop(t *testing.T) {
	t.Helper()
	l.end()
	if n := l.failed.Load(); n > 0 {
		t.Errorf("%d of %d calls failed, the first: %s", n, l.calls.Load(), *l.first.Load())
	}
	t.Logf("%d calls, none failed", l.calls.Load())
}
