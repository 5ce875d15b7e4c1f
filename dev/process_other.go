//go:build unix && !linux

package dev

import "syscall"

// attributes keep a terminal's Ctrl-C for muster dev, which then ends its
// nodes in good order.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
