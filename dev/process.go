package dev

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// process is one node that was started here.
type process struct {
	id   string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // how it ended; read after done
}

// start runs a node as its own process, which logs into its folder.
func (l layout) start(executable, id string) (*process, error) {
	log, err := l.log(id)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p := &process{id: id, done: make(chan struct{})}
	p.cmd = exec.Command(executable, "server", "--config", l.path(id, "muster.yaml"))
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.Env = environment(os.Environ())
	p.cmd.SysProcAttr = attributes()
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s cannot be started: %w", id, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

func (l layout) log(id string) (*os.File, error) {
	return os.OpenFile(l.path(id, "muster.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
}

// environment leaves muster's own settings out, which are for clients or for
// another node.
func environment(all []string) []string {
	var out []string
	for _, v := range all {
		if !strings.HasPrefix(v, "MUSTER_") {
			out = append(out, v)
		}
	}
	return out
}

// stop asks processes to end, and ends those that have not by the deadline.
func stop(all []*process, patience time.Duration) {
	for _, p := range all {
		_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	}
	late := time.After(patience)
	for _, p := range all {
		select {
		case <-p.done:
		case <-late:
			for _, p := range all {
				_ = p.cmd.Process.Kill()
			}
			<-p.done
		}
	}
}

// stopAdopted ends nodes of this cluster that muster dev --only has started in
// other places, and waits for them a little.
func (l layout) stopAdopted(own []*process, patience time.Duration) {
	c, err := l.load()
	if err != nil || c == nil {
		return
	}
	mine := map[int]bool{}
	for _, p := range own {
		mine[p.cmd.Process.Pid] = true
	}
	end := time.Now().Add(patience)
	for _, n := range c.Nodes {
		if mine[n.PID] || !adopted(n) {
			continue
		}
		_ = syscall.Kill(n.PID, syscall.SIGTERM)
		for time.Now().Before(end) && adopted(n) {
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// anyAdopted reports whether muster dev --only runs a node of this cluster.
func (l layout) anyAdopted() bool {
	c, err := l.load()
	return err == nil && c != nil && slices.ContainsFunc(c.Nodes, adopted)
}

// adopted makes sure that a pid is still a muster dev --only for that node: the
// system may have given it to another program.
func adopted(n Node) bool {
	if n.PID <= 0 {
		return false
	}
	b, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(n.PID), "cmdline"))
	if err != nil {
		return false
	}
	args := strings.Split(string(b), "\x00")
	if len(args) < 3 || filepath.Base(args[0]) != filepath.Base(os.Args[0]) || args[1] != "dev" {
		return false
	}
	for i, a := range args {
		if a == "--only="+n.ID || a == "--only" && i+1 < len(args) && args[i+1] == n.ID {
			return true
		}
	}
	return false
}
