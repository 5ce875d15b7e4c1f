package jepsen

import (
	"fmt"
	"os"
	"os/exec"
	"sync/atomic"
	"syscall"
	"time"
)

// Process is a running program whose end is noticed.
type Process struct {
	cmd    *exec.Cmd
	wanted atomic.Bool   // we asked for its end
	done   chan struct{} // closed at its end
	err    error         // valid after done
	wrong  wrong         // its wall clock
}

// Launch starts the command; its output is added to the log file.
func Launch(cmd *exec.Cmd, log string) (*Process, error) {
	f, err := os.OpenFile(log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &Process{cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Kill is SIGKILL; it returns when the process is gone.
func (p *Process) Kill() {
	p.wanted.Store(true)
	_ = p.cmd.Process.Signal(syscall.SIGKILL) // it may be gone already
	<-p.done
}

// Pause is SIGSTOP: the process stands still and does not know it.
func (p *Process) Pause() error { return p.cmd.Process.Signal(syscall.SIGSTOP) }

// Resume is SIGCONT.
func (p *Process) Resume() error { return p.cmd.Process.Signal(syscall.SIGCONT) }

// Stop is SIGTERM, and after the patience SIGKILL, which is an error, as is an
// exit code other than 0.
func (p *Process) Stop(patience time.Duration) error {
	p.wanted.Store(true)
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may be gone already
	select {
	case <-p.done:
	case <-time.After(patience):
		p.Kill()
		return fmt.Errorf("process %d was not done %s after SIGTERM", p.cmd.Process.Pid, patience)
	}
	if p.err != nil {
		return fmt.Errorf("process %d ended after SIGTERM with %w", p.cmd.Process.Pid, p.err)
	}
	return nil
}

// Alive tells whether the process runs.
func (p *Process) Alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Died returns an error when the process has ended without being asked.
func (p *Process) Died() error {
	if p.Alive() || p.wanted.Load() {
		return nil
	}
	return fmt.Errorf("process %d ended by itself: %s", p.cmd.Process.Pid, p.cmd.ProcessState)
}
