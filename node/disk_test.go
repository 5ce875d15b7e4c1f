package node_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/fault"
)

// turnstile holds writes up while it is closed.
type turnstile struct {
	mu   sync.Mutex
	open chan struct{}
}

func (g *turnstile) pass() {
	g.mu.Lock()
	open := g.open
	g.mu.Unlock()
	if open != nil {
		<-open
	}
}

// shut closes it until the function that it gives is called.
func (g *turnstile) shut() (release func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = make(chan struct{})
	return sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		close(g.open)
		g.open = nil
	})
}

// put registers a service, trying again while there is no leader.
func (tr *trial) put(i int, name string) {
	tr.t.Helper()
	c := tr.client(tr.token, i)
	tr.eventually(name+" is registered", func() error {
		ctx, cancel := context.WithTimeout(tr.t.Context(), 10*time.Second)
		defer cancel()
		_, err := c.Put(ctx, client.Ref{Kind: client.Service, Namespace: "default", Name: name}, []byte(`{"protocol":"rest"}`), client.Write{})
		return err
	})
}

// A leader whose disk does not return from a write goes on sending heartbeats, so
// that nobody would replace it: it gives the lead away itself. The node tells what
// is wrong, leads no more while it is, and is well again when the disk is.
func TestStalledDiskOfTheLeader(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	tr.with("raft: {disk_stall: 3s}\n")
	gates := make([]turnstile, len(tr.nodes))
	for i := range tr.nodes {
		tr.nodes[i].unlike.BeforeWrite = gates[i].pass
	}
	tr.startAll()
	tr.put(0, "before")
	lead, err := tr.leader(0)
	must(t, err)
	other, id := (lead+1)%3, tr.nodes[lead].id
	release := gates[lead].shut()
	t.Cleanup(release)

	// What is sent now waits at the old leader, and is answered all the same.
	sent, fate := make(chan struct{}), make(chan error, 1)
	go func() {
		close(sent)
		_, err := tr.client(tr.token, lead).Put(t.Context(), client.Ref{Kind: client.Service, Namespace: "default", Name: "during"}, []byte(`{"protocol":"rest"}`), client.Write{})
		fate <- err
	}()
	<-sent
	tr.eventually("another node leads", func() error {
		now, err := tr.leader(other)
		if err == nil && now == lead {
			err = fmt.Errorf("%s still leads", id)
		}
		return err
	})
	tr.put(other, "after")
	select {
	case err := <-fate:
		if f := fault.From(err); err != nil && f.Code != fault.NoLeader && f.Code != fault.NotReady {
			t.Errorf("the change that was under way: %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("the change that was under way is not answered")
	}
	tr.awaitRaised(other, "disk_stalled "+id+": a write to the Raft log took")
	tr.tells(lead, "disk_stalled")
	// It answers, and applies nothing.
	now, err := tr.leader(other)
	must(t, err)
	tr.awaitRaised(other, "follower_behind "+tr.nodes[now].id+": "+id+" has applied entry ")
	tr.tells(now, "follower_behind")

	release()
	tr.eventually("the node has caught up", func() error {
		_, err := tr.client(tr.token, lead).Get(t.Context(), client.Ref{Kind: client.Service, Namespace: "default", Name: "after"}, client.Read{})
		return err
	})
	tr.eventually("the alarm is over", func() error {
		if all, err := tr.raised(other); len(all) > 0 || err != nil {
			return fmt.Errorf("%q, %v", all, err)
		}
		return nil
	})
	tr.sameState()
}

// sameState waits until all nodes have one revision, and compares their hashes.
func (tr *trial) sameState() {
	tr.t.Helper()
	tr.eventually("all nodes have one state", func() error {
		b, err := tr.client(tr.token, 0).Status(tr.t.Context())
		if err != nil {
			return err
		}
		if n := strings.Count(string(b), `"hash":"`); n != len(tr.nodes) {
			return fmt.Errorf("%d nodes tell their state", n)
		}
		first := strings.Split(string(b), `"state_hash":`)[1]
		first = first[:strings.Index(first, "}")]
		if strings.Count(string(b), first) != len(tr.nodes) {
			return errors.New(string(b))
		}
		return nil
	})
}

// small gives a node a disk of its own of so many bytes, as its data_dir.
func (tr *trial) small(i int, bytes int) (dir string) {
	tr.t.Helper()
	dir = filepath.Join(tr.dir, tr.nodes[i].id)
	must(tr.t, os.MkdirAll(dir, 0o700))
	must(tr.t, syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", bytes)))
	tr.t.Cleanup(func() {
		tr.stop(i)
		_ = syscall.Unmount(dir, syscall.MNT_DETACH)
	})
	return dir
}

// fill takes all but so many bytes of the disk that holds the folder.
func fill(t *testing.T, dir string, leave uint64) (file string) {
	t.Helper()
	file = filepath.Join(dir, "filler")
	f, err := os.Create(file)
	must(t, err)
	defer f.Close()
	block := make([]byte, 1<<20)
	for {
		var s syscall.Statfs_t
		must(t, syscall.Statfs(dir, &s))
		free := s.Bavail * uint64(s.Bsize)
		if free <= leave {
			return file
		}
		if _, err := f.Write(block[:min(uint64(len(block)), free-leave)]); err != nil {
			if errors.Is(err, syscall.ENOSPC) {
				return file
			}
			t.Fatal(err)
		}
	}
}

// A full disk: the leader gives the lead to a node that has room; when a majority
// has none, changes are refused with the reason, what frees records goes on, and
// look-ups too; a disk without a byte left ends no process and damages nothing;
// and when there is room again, all goes on by itself.
func TestFullDisks(t *testing.T) {
	if os.Getenv("MUSTER_TEST_ROOT") == "" {
		t.Skip("needs root, for disks of its own: MUSTER_TEST_ROOT=1")
	}
	t.Parallel()
	tr := newTrial(t, 3)
	var dirs []string
	for i := range tr.nodes {
		dirs = append(dirs, tr.small(i, 160<<20))
	}
	tr.startAll()
	ctx := t.Context()
	tr.put(0, "before")
	lead, err := tr.leader(0)
	must(t, err)
	other := (lead + 1) % 3

	soon := fill(t, dirs[lead], 24<<20)
	tr.awaitRaised(other, "disk_nearly_full "+tr.nodes[lead].id+": ")
	tr.tells(lead, "disk_nearly_full")
	must(t, os.Remove(soon))
	tr.awaitOver(other, "disk_nearly_full")
	lead, err = tr.leader(0)
	must(t, err)
	other = (lead + 1) % 3

	fillers := []string{fill(t, dirs[lead], 8<<20)}
	tr.awaitRaised(other, "disk_full "+tr.nodes[lead].id+": ")
	tr.tells(lead, "disk_full")
	tr.eventually("a node with room leads", func() error {
		now, err := tr.leader(other)
		if err == nil && now == lead {
			err = errors.New("the one that is full leads")
		}
		return err
	})
	tr.put(lead, "through-the-full-one")

	now, err := tr.leader(other)
	must(t, err)
	fillers = append(fillers, fill(t, dirs[now], 8<<20))
	refused := func(i int) error {
		_, err := tr.client(tr.token, i).Put(ctx, client.Ref{Kind: client.Service, Namespace: "default", Name: "refused"}, []byte(`{"protocol":"rest"}`), client.Write{})
		if !fault.Is(err, fault.DiskFull) || fault.From(err).Outcome != fault.Definite {
			return fmt.Errorf("a change is answered with %v", err)
		}
		return nil
	}
	for i := range tr.nodes {
		tr.eventually("changes are refused with the reason", func() error { return refused(i) })
	}
	must(t, tr.client(tr.token, other).Delete(ctx, client.Ref{Kind: client.Service, Namespace: "default", Name: "through-the-full-one"}, client.Write{}))

	// Not a byte is left anywhere, the reserves are gone.
	for _, dir := range dirs {
		f := filepath.Join(dir, "last")
		fillers = append(fillers, f)
		must(t, os.Rename(fill(t, dir, 0), f))
	}
	for i := range tr.nodes {
		if _, err := tr.client(tr.token, i).Get(ctx, client.Ref{Kind: client.Service, Namespace: "default", Name: "before"}, client.Read{}); err != nil {
			t.Errorf("a look-up on %s: %v", tr.nodes[i].id, err)
		}
	}
	// Something for the log all the same.
	for i := range tr.nodes {
		short, cancel := context.WithTimeout(ctx, 2*time.Second)
		_ = tr.client(tr.token, i).Delete(short, client.Ref{Kind: client.Service, Namespace: "default", Name: "before"}, client.Write{})
		cancel()
	}
	for i := range tr.nodes {
		select {
		case err := <-tr.nodes[i].done:
			tr.nodes[i].stop = nil
			t.Fatalf("%s has ended: %v", tr.nodes[i].id, err)
		default:
		}
	}
	for _, f := range fillers {
		if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	tr.put(other, "after")
	tr.eventually("the alarms are over", func() error {
		all, err := tr.raised(0)
		for _, a := range all {
			if strings.HasPrefix(a, "disk_full") {
				err = errors.Join(err, errors.New(a))
			}
		}
		return err
	})
	tr.sameState()
	for i := range tr.nodes {
		tr.stop(i)
	}
	tr.startAll()
	if _, err := tr.client(tr.token, 0).Get(ctx, client.Ref{Kind: client.Service, Namespace: "default", Name: "after"}, client.Read{}); err != nil {
		t.Error(err)
	}
	tr.sameState()
}
