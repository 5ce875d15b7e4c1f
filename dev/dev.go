// Package dev owns the development cluster: a folder with a CA, certificates
// and secrets, and nodes that run as processes of their own on loopback. It
// refuses to touch a folder's cluster in another size or place than it was
// made with, and knows of the nodes only what any client can see.
package dev

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/muster-registry/muster/client"
)

// The sizes of a cluster, and special values of [Options.PortBase].
const (
	DefaultNodes    = 3
	DefaultPortBase = 8443
	DefaultDir      = ".muster/dev"

	AnyPort  = 0  // take free ports
	Recorded = -1 // as the folder has it, else DefaultPortBase
)

// How long nodes may take to become ready, and to end.
const (
	startPatience = 90 * time.Second
	stopPatience  = 20 * time.Second
)

// Options say which cluster to run.
type Options struct {
	Dir        string
	Nodes      int // 0: as the folder has it, else DefaultNodes
	PortBase   int
	Executable string    // this program
	Say        io.Writer // for people
}

func (o Options) say(format string, args ...any) { fmt.Fprintf(o.Say, format+"\n", args...) }

// Run starts the cluster, calls ready when all nodes are, and returns after
// ctx has ended and they have, too. It is an error when all nodes end before.
func Run(ctx context.Context, o Options, ready func(*Cluster)) error {
	// The system ties the nodes' lives to the thread that starts them.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	l, err := open(o)
	if err != nil {
		return err
	}
	if err := l.checkPorts(1, l.Nodes); err != nil {
		return err
	}
	if err := l.prepare(time.Now()); err != nil {
		return err
	}
	// Whoever waits for the file must not find that of the last start.
	if err := os.RemoveAll(l.path("cluster.json")); err != nil {
		return err
	}
	var nodes []*process
	defer func() {
		l.stopAdopted(nodes, stopPatience)
		stop(nodes, stopPatience)
	}()
	pids := map[string]int{}
	for i := 1; i <= l.Nodes; i++ {
		p, err := l.start(o.Executable, nodeID(i))
		if err != nil {
			return err
		}
		nodes = append(nodes, p)
		pids[p.id] = p.cmd.Process.Pid
	}
	c, err := l.cluster(pids)
	if err != nil {
		return err
	}
	o.say("%d nodes are starting in %s", l.Nodes, l.dir)
	for i, p := range nodes {
		if err := l.await(ctx, c.Nodes[i], p); err != nil {
			if ctx.Err() != nil {
				return nil // asked to stop meanwhile
			}
			return err
		}
	}
	if err := l.save(c); err != nil {
		return err
	}
	ready(c)
	return o.watch(ctx, l, nodes)
}

// watch tells of nodes that end, until ctx does.
func (o Options) watch(ctx context.Context, l layout, nodes []*process) error {
	ended := make(chan *process, len(nodes))
	for _, p := range nodes {
		go func() {
			<-p.done
			ended <- p
		}()
	}
	for range nodes {
		select {
		case <-ctx.Done():
			o.say("stopping")
			return nil
		case p := <-ended:
			o.say("%s has ended (%v); start it again with: muster dev --dir %s --only %s", p.id, how(p.err), l.dir, p.id)
		}
	}
	// Those that were started again elsewhere are still this cluster's.
	look := time.NewTicker(time.Second)
	defer look.Stop()
	for l.anyAdopted() {
		select {
		case <-ctx.Done():
			o.say("stopping")
			return nil
		case <-look.C:
		}
	}
	return fmt.Errorf("all nodes have ended; their logs are %s", l.path("n*", "muster.log"))
}

func how(err error) string {
	if err == nil {
		return "exit code 0"
	}
	return err.Error()
}

// Only runs one node of the folder's cluster in this process, until ctx ends.
// serve runs a node by its configuration file and logs to w.
func Only(ctx context.Context, o Options, id string, serve func(ctx context.Context, config string, w io.Writer) error) error {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, "dev.json")); err != nil {
		return fmt.Errorf("%s holds no cluster; start one with: muster dev --dir %s", dir, dir)
	}
	l, err := open(o)
	if err != nil {
		return err
	}
	at := 0
	for i := 1; i <= l.Nodes; i++ {
		if nodeID(i) == id {
			at = i
		}
	}
	if at < 1 {
		return fmt.Errorf("--only %s: the nodes are n1 to %s", id, nodeID(l.Nodes))
	}
	if err := l.checkPorts(at, at); err != nil {
		return err
	}
	if err := l.prepare(time.Now()); err != nil {
		return err
	}
	if err := l.setPID(id, os.Getpid()); err != nil {
		return err
	}
	log, err := l.log(id)
	if err != nil {
		return err
	}
	defer log.Close()
	c, err := l.cluster(nil)
	if err != nil {
		return err
	}
	o.say("%s is starting as process %d; it logs to %s", id, os.Getpid(), l.path(id, "muster.log"))
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		if l.await(waiting, c.Nodes[at-1], nil) == nil {
			o.say("%s is ready at %s", id, c.Nodes[at-1].Control)
		}
	}()
	return serve(ctx, l.path(id, "muster.yaml"), log)
}

// await returns when a node is ready. p may be nil.
func (l layout) await(ctx context.Context, n Node, p *process) error {
	c, err := client.New(client.Config{Addresses: []string{n.Control}, CACert: l.path("ca.crt"), Timeout: 2 * time.Second})
	if err != nil {
		return err
	}
	defer c.Close()
	ended := make(<-chan struct{})
	if p != nil {
		ended = p.done
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startPatience, errors.New("it took too long"))
	defer cancel()
	for {
		err = c.Ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ended:
			return fmt.Errorf("%s has ended at its start (%s):\n%s", n.ID, how(p.err), l.tail(n.ID))
		case <-ctx.Done():
			return fmt.Errorf("%s did not become ready within %s: %w\n%s", n.ID, startPatience, err, l.tail(n.ID))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// tail is the end of a node's log.
func (l layout) tail(id string) string {
	b, err := os.ReadFile(l.path(id, "muster.log"))
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-10):], []byte("\n")))
}
