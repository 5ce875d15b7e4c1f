package nemesis

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/muster-registry/muster/jepsen"
)

// disks are the faults of what nodes store.
func disks() []Fault {
	return []Fault{
		{Name: "disk-full", Lay: small, Strike: fill, Hold: [2]time.Duration{3 * time.Second, 5 * time.Second}},
		flips("flip-log", "data/raft/journal", "data/raft/log.db"),
		flips("flip-state", "data/state/*"),
		flips("flip-snapshot", "data/raft/snapshots/*/state.bin"),
	}
}

// small gives each node a disk of its own on which little has room.
func small(s *Scene) (func() error, error) {
	var mounted []string
	undo := func() (err error) {
		for _, dir := range mounted {
			err = errors.Join(err, syscall.Unmount(dir, syscall.MNT_DETACH))
		}
		return err
	}
	for _, n := range s.Nodes {
		dir := n.File("data")
		err := os.MkdirAll(dir, 0o700)
		if err == nil {
			err = syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=160m,mode=0700")
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("a small disk for %s: %w", n.ID, err), undo())
		}
		mounted = append(mounted, dir)
	}
	return undo, nil
}

// fill leaves no room on one node's disk, the leader's every second time.
func fill(ctx context.Context, s *Scene) (End, error) {
	leader, _, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	n := leader
	if s.Round%2 == 1 {
		if n, err = s.follower(ctx); err != nil {
			return nil, err
		}
	}
	ballast := n.File("data/ballast")
	if err := stuff(ballast); err != nil {
		return nil, err
	}
	s.History.Mark(n.ID, "disk full")
	return func(ctx context.Context) (string, error) {
		var left syscall.Statfs_t
		err := syscall.Statfs(n.File("data"), &left)
		// What the node itself gives back it may write again.
		if err == nil && left.Bavail*uint64(left.Bsize) > 16<<20 {
			err = nothing(fmt.Sprintf("%d blocks are free on the disk of %s", left.Bavail, n.ID))
		}
		if err := errors.Join(err, os.Remove(ballast)); err != nil {
			return "", err
		}
		s.History.Mark(n.ID, "room again")
		what := "the disk of follower " + n.ID + " was full"
		if n == leader {
			what = "the disk of leader " + n.ID + " was full"
		}
		if died := n.Died(); died != nil {
			return what + ", and it ended itself", s.start(ctx, n)
		}
		return what, s.ready(ctx)
	}, nil
}

// stuff writes a file until there is no room.
func stuff(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	for size := 1 << 20; size > 0; {
		if _, err = f.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
	if !errors.Is(err, syscall.ENOSPC) {
		return errors.Join(nothing("the disk took everything"), err, f.Close())
	}
	return f.Close()
}

// flips is a fault that turns one bit in a file of a follower that is down, and
// starts it. Whatever it does then it must not let the wrong bit out; in the end
// its disk is emptied, as the manual says.
func flips(name string, patterns ...string) Fault {
	return Fault{
		Name: name, Fresh: true,
		Config: map[string]any{"raft": map[string]any{"snapshot_threshold": 64, "trailing_logs": 32, "snapshot_interval": "1s"}},
		Strike: func(ctx context.Context, s *Scene) (End, error) {
			n, err := s.follower(ctx)
			if err != nil {
				return nil, err
			}
			if name == "flip-snapshot" { // there must be one
				if err := s.compacted(ctx, []*jepsen.Node{n}, 0); err != nil {
					return nil, err
				}
			}
			s.killed(n)
			what, err := s.flip(n, patterns)
			if err != nil {
				return nil, err
			}
			s.History.Mark(n.ID, what)
			if err := n.Start(); err != nil {
				return nil, err
			}
			return func(ctx context.Context) (string, error) {
				switch {
				case n.Died() != nil:
					what += ": it refused to start"
				case !s.isReady(ctx, n):
					what += ": it was not ready"
				default:
					what += ": it went on"
				}
				s.killed(n)
				if err := n.Wipe(); err != nil {
					return "", err
				}
				return what, s.empty(ctx, n)
			}, nil
		},
	}
}

func (s *Scene) isReady(ctx context.Context, n *jepsen.Node) bool {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	return n.Call(ctx, "GET", "/readyz", nil).Outcome == jepsen.OK
}

// flip turns a bit of a byte that is not zero: room that was never used is
// mostly zeros, and shows nothing.
func (s *Scene) flip(n *jepsen.Node, patterns []string) (string, error) {
	var files []string
	for _, p := range patterns {
		found, err := filepath.Glob(n.File(p))
		if err != nil {
			return "", err
		}
		files = append(files, found...)
	}
	if len(files) == 0 {
		return "", fmt.Errorf("%s has no %s: %w", n.ID, strings.Join(patterns, ", "), fs.ErrNotExist)
	}
	file := files[s.Rand.IntN(len(files))]
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	about, err := f.Stat()
	if err != nil {
		return "", err
	}
	if about.Size() == 0 {
		return "", fmt.Errorf("%s is empty", file)
	}
	b := make([]byte, 1)
	for range 1 << 16 {
		at := s.Rand.Int64N(about.Size())
		if _, err := f.ReadAt(b, at); err != nil {
			return "", err
		}
		if b[0] == 0 {
			continue
		}
		bit := s.Rand.IntN(8)
		b[0] ^= 1 << bit
		if _, err := f.WriteAt(b, at); err != nil {
			return "", err
		}
		return fmt.Sprintf("bit %d of byte %d of %s's %s turned", bit, at, n.ID, filepath.Base(file)), nil
	}
	return "", nothing(file + " seems to hold zeros alone")
}
