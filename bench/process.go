package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a child with its output in a file. It is in a process group of
// its own, so that an interrupt at the terminal reaches only this program,
// which then stops it in order.
type process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{}
}

func spawn(log, path string, args ...string) (*process, error) {
	if err := os.MkdirAll(filepath.Dir(log), 0o755); err != nil {
		return nil, err
	}
	out, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, log: log, done: make(chan struct{})}
	go func() { _ = cmd.Wait(); close(p.done) }()
	return p, nil
}

// stop asks the process to end and kills it when it does not within 20 s.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// await calls ready until it returns nil; it fails when the process ends first
// or the time is up.
func (p *process) await(ctx context.Context, limit time.Duration, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended before it was ready: %s", filepath.Base(p.cmd.Path), p.tail())
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w; its log ends with: %s", filepath.Base(p.cmd.Path), err, p.tail())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (p *process) tail() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b[max(0, len(b)-2000):]))
}

// memory is a process's resident memory in bytes: all of it, and the part that
// is not a mapped file (a mapped database counts in the first only).
type memory struct {
	RSS  int64 `json:"rss"`
	Anon int64 `json:"anon"`
}

func memoryOf(pid int) (memory, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return memory{}, err
	}
	var m memory
	for line := range strings.Lines(string(b)) {
		name, rest, _ := strings.Cut(line, ":")
		kib, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		switch name {
		case "VmRSS":
			m.RSS = kib << 10
		case "RssAnon":
			m.Anon = kib << 10
		}
	}
	if m.RSS == 0 {
		return m, errors.New("no VmRSS in /proc: not a Linux process")
	}
	return m, nil
}

func memoryOfAll(pids []int) ([]memory, error) {
	var all []memory
	for _, pid := range pids {
		m, err := memoryOf(pid)
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, nil
}

// cpuOf is the processor time a process has used, user and system, all threads.
func cpuOf(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseStat(string(b))
}

// parseStat takes fields 14 and 15 of /proc/PID/stat, in ticks of 10 ms. The
// second field is a name in brackets and may hold anything.
func parseStat(line string) (time.Duration, error) {
	after := line[strings.LastIndexByte(line, ')')+1:]
	f := strings.Fields(after)
	if len(f) < 13 {
		return 0, fmt.Errorf("unexpected /proc stat line %q", line)
	}
	user, err1 := strconv.ParseInt(f[11], 10, 64)
	system, err2 := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond, errors.Join(err1, err2)
}

// meter tells how much of the machine went to neither the measured processes
// nor this one: other people's work, which spoils figures.
type meter struct {
	pids       []int
	busy, ours time.Duration
	at         time.Time
}

func newMeter(pids []int) *meter {
	m := &meter{pids: append([]int{os.Getpid()}, pids...)}
	m.busy, m.ours, m.at = m.read()
	return m
}

// others is the mean number of cores that others kept busy since newMeter, the
// kernel's own work included; 0 where it cannot be told.
func (m *meter) others() float64 {
	busy, ours, at := m.read()
	return max(0, float64((busy-m.busy)-(ours-m.ours))/float64(at.Sub(m.at)))
}

func (m *meter) read() (busy, ours time.Duration, at time.Time) {
	for _, pid := range m.pids {
		if used, err := cpuOf(pid); err == nil {
			ours += used
		}
	}
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, time.Now()
	}
	return parseBusy(string(b)), ours, time.Now()
}

// parseBusy adds up the first line of /proc/stat without idle (4th) and iowait
// (5th), and without guest time, which user time already holds.
func parseBusy(stat string) time.Duration {
	line, _, _ := strings.Cut(stat, "\n")
	var ticks int64
	for i, f := range strings.Fields(line) {
		if i >= 1 && i <= 8 && i != 4 && i != 5 {
			n, _ := strconv.ParseInt(f, 10, 64)
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
