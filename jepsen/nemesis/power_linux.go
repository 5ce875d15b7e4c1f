package nemesis

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/muster-registry/muster/jepsen"
)

// diskEnv names the built program of peers/disk, which is a module of its own:
// only it needs a library for FUSE.
const diskEnv = "MUSTER_JEPSEN_DISK"

// powers are the faults of disks that lose what was not synced, or are slow.
func powers() []Fault {
	return []Fault{
		{Name: "power-cut-one", Hold: short, Missing: noDisk, Lay: withDisks, Strike: func(_ context.Context, s *Scene) (End, error) {
			return s.cut(s.some(1)...)
		}},
		{Name: "power-cut-all", Hold: short, Missing: noDisk, Lay: withDisks, Strike: func(_ context.Context, s *Scene) (End, error) {
			return s.cut(s.Nodes...)
		}},
		{Name: "slow-disk", Missing: noDisk, Lay: withDisks, Strike: slowly},
	}
}

func noDisk() error {
	if os.Getenv(diskEnv) == "" {
		return fmt.Errorf("a disk that loses what was not synced needs %s, the program of peers/disk", diskEnv)
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return fmt.Errorf("a disk that loses what was not synced needs FUSE: %w", err)
	}
	return nil
}

// disk is a running one, under the data of one node.
type disk struct {
	cmd *exec.Cmd
	to  io.WriteCloser
	out *bufio.Scanner
}

// withDisks puts a disk of ours under each node.
func withDisks(s *Scene) (func() error, error) {
	s.disks = map[*jepsen.Node]*disk{}
	undo := func() (err error) {
		for _, d := range s.disks {
			_, e := d.say("end")
			err = errors.Join(err, e, d.to.Close(), d.cmd.Wait())
		}
		return err
	}
	for _, n := range s.Nodes {
		d, err := mount(n)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("a disk for %s: %w", n.ID, err), undo())
		}
		s.disks[n] = d
	}
	return undo, nil
}

func mount(n *jepsen.Node) (*disk, error) {
	under, at := n.File("disk"), n.File("data")
	if err := errors.Join(os.MkdirAll(under, 0o700), os.MkdirAll(at, 0o700)); err != nil {
		return nil, err
	}
	d := &disk{cmd: exec.Command(os.Getenv(diskEnv), under, at)}
	d.cmd.Stderr = os.Stderr
	var err error
	if d.to, err = d.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	d.out = bufio.NewScanner(out)
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	_, err = d.hear()
	return d, err
}

func (d *disk) say(line string) (string, error) {
	if _, err := fmt.Fprintln(d.to, line); err != nil {
		return "", err
	}
	return d.hear()
}

func (d *disk) hear() (string, error) {
	if !d.out.Scan() {
		return "", errors.Join(errors.New("the disk's program has ended"), d.out.Err())
	}
	if strings.HasPrefix(d.out.Text(), "error") {
		return "", errors.New(d.out.Text())
	}
	return d.out.Text(), nil
}

// cut ends nodes as a power cut does: what they wrote and did not sync is lost,
// or some of it. For a moment before, syncs take a while, or there would rarely
// be anything that waits for one.
func (s *Scene) cut(nodes ...*jepsen.Node) (End, error) {
	for _, n := range nodes {
		if _, err := s.disks[n].say("slow 60ms"); err != nil {
			return nil, err
		}
	}
	time.Sleep(time.Duration(300+s.Rand.IntN(300)) * time.Millisecond)
	s.killed(nodes...)
	lost, kept := 0, 0
	for _, n := range nodes {
		answer, err := s.disks[n].say(fmt.Sprintf("lose %d", s.Rand.Uint32()))
		if err == nil {
			_, err = s.disks[n].say("slow 0s")
		}
		if err != nil {
			return nil, err
		}
		var l, k int
		if _, err := fmt.Sscanf(answer, "ok %d %d", &l, &k); err != nil {
			return nil, fmt.Errorf("%q: %w", answer, err)
		}
		lost, kept = lost+l, kept+k
	}
	s.lost += lost
	s.History.Mark("", fmt.Sprintf("power cut: %d unsynced blocks lost, %d kept", lost, kept))
	return func(ctx context.Context) (string, error) {
		if err := s.start(ctx, nodes...); err != nil {
			return "", err
		}
		what := fmt.Sprintf("the power of %s was cut: %d blocks that were not synced are lost, %d kept", names(nodes), lost, kept)
		if s.Round >= 3 && s.lost == 0 { // at times all is synced, and not each time
			return "", nothing(what)
		}
		return what, nil
	}, nil
}

// slowly makes the syncs of one node's disk slow, the leader's every second time.
func slowly(ctx context.Context, s *Scene) (End, error) {
	n, _, err := s.leader(ctx)
	if err == nil && s.Round%2 == 1 {
		n, err = s.follower(ctx)
	}
	if err != nil {
		return nil, err
	}
	pause := time.Duration(50+s.Rand.IntN(1000)) * time.Millisecond
	if _, err := s.disks[n].say("slow " + pause.String()); err != nil {
		return nil, err
	}
	s.History.Mark(n.ID, "each sync takes "+pause.String())
	return func(context.Context) (string, error) {
		answer, err := s.disks[n].say("slow 0s")
		if err != nil {
			return "", err
		}
		s.History.Mark(n.ID, "syncs are fast again")
		var count int
		if _, err := fmt.Sscanf(answer, "ok %d", &count); err != nil || count == 0 {
			return "", errors.Join(nothing("no sync was slow"), err)
		}
		return fmt.Sprintf("%d syncs of %s took %s each", count, n.ID, pause), nil
	}, nil
}
