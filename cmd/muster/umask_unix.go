//go:build unix

package main

import "syscall"

// closeFiles keeps whatever the process writes from other users, libraries'
// files too.
func closeFiles() { syscall.Umask(0o077) }
