package fsm_test

import (
	"fmt"
	"os"
	"syscall"
	"testing"
)

// tmpfs makes a disk of so many bytes, or makes the one that is there as large.
func tmpfs(t *testing.T, dir string, bytes int) {
	t.Helper()
	options := fmt.Sprintf("size=%d", bytes)
	if _, err := os.Stat(dir); err == nil {
		if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT, options); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
}
