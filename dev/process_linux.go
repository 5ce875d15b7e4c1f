package dev

import "syscall"

// attributes keep a terminal's Ctrl-C for muster dev, which then ends its
// nodes in good order, and end them should it be killed itself.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
