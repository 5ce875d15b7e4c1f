package jepsen

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

// insideEnv marks the process that runs in a world of its own.
const insideEnv = "MUSTER_JEPSEN_INSIDE"

// tools are the programs a world needs beside the kernel.
var tools = []string{"ip", "nft"}

// Inside tells whether this process was started by [Enter].
func Inside() bool { return os.Getenv(insideEnv) != "" }

// Enter runs this program again, with the same arguments and env added, in
// fresh network, mount and process namespaces, and returns its exit code. Root
// needs nothing else for that; others get a user namespace, where the machine
// allows it. When the program ends, however it ends, the kernel ends everything
// that it started. The error says why there can be no such world here.
func Enter(env ...string) (code int, err error) {
	for _, t := range tools {
		if _, err := exec.LookPath(t); err != nil {
			return 0, fmt.Errorf("the program %s is missing; install iproute2 and nftables", t)
		}
	}
	exe, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(exe, os.Args[1:]...)
	cmd.Env = append(append(os.Environ(), env...), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	// Pdeathsig watches the thread that starts the process, not this process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("no network namespace can be made here, neither as root nor in a user namespace: %w", err)
	}
	err = cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		if exit.ExitCode() < 0 {
			return 1, nil
		}
		return exit.ExitCode(), nil
	}
	return 0, err
}

// Settle furnishes the world from inside: what ip-netns(8) needs, a loopback,
// and a router between the networks to come.
func Settle() error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := syscall.Mount("tmpfs", "/run", "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount a private /run: %w", err)
	}
	// Containers may forbid it; then /proc is the one of outside, which only
	// shows other process numbers.
	_ = syscall.Mount("proc", "/proc", "proc", 0, "")
	if err := run("ip", "link", "set", "lo", "up"); err != nil {
		return err
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
		return fmt.Errorf("forward packets in the new network namespace: %w", err)
	}
	return nil
}
