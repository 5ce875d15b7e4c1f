package cluster

import "syscall"

// room is what is free for this user on the disk that holds a folder, and how
// large it is, in bytes.
func room(dir string) (free, size uint64, ok bool) {
	var s syscall.Statfs_t
	if syscall.Statfs(dir, &s) != nil || s.Bsize <= 0 {
		return 0, 0, false
	}
	return s.Bavail * uint64(s.Bsize), s.Blocks * uint64(s.Bsize), true
}
