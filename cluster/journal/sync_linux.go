package journal

import (
	"errors"
	"os"
	"syscall"
)

// datasync waits until what was written is on the disk. Unlike fsync it leaves
// the time stamps alone, so that the file system's own journal has no part in it.
func datasync(f *os.File) error {
	for {
		if err := syscall.Fdatasync(int(f.Fd())); !errors.Is(err, syscall.EINTR) {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}
