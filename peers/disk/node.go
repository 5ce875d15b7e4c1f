package main

import (
	"context"
	"math"
	"path/filepath"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// node is a file or folder, which tells the disk before it is changed.
type node struct {
	fs.LoopbackNode
	d *disk
}

var (
	_ fs.NodeWrapChilder    = (*node)(nil)
	_ fs.NodeWriter         = (*node)(nil)
	_ fs.NodeFsyncer        = (*node)(nil)
	_ fs.NodeSetattrer      = (*node)(nil)
	_ fs.NodeAllocater      = (*node)(nil)
	_ fs.NodeCopyFileRanger = (*node)(nil)
	_ fs.NodeOpener         = (*node)(nil)
	_ fs.NodeCreater        = (*node)(nil)
)

// WrapChild makes every node one of these.
func (n *node) WrapChild(_ context.Context, ops fs.InodeEmbedder) fs.InodeEmbedder {
	return &node{LoopbackNode: fs.LoopbackNode{RootData: ops.(*fs.LoopbackNode).RootData}, d: n.d}
}

func (n *node) path() string { return filepath.Join(n.d.folder, n.Path(n.Root())) }

// Open keeps O_TRUNC from changing anything unseen: the kernel truncates by
// Setattr, which comes first.
func (n *node) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if flags&syscall.O_TRUNC != 0 {
		n.d.mu.Lock()
		err := n.d.touch(n.path(), 0, math.MaxInt64/2)
		n.d.mu.Unlock()
		if err != nil {
			return nil, 0, fs.ToErrno(err)
		}
	}
	f, flag, errno := n.LoopbackNode.Open(ctx, flags)
	return plain(f), flag, errno
}

// Create is as Open.
func (n *node) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	inode, f, flag, errno := n.LoopbackNode.Create(ctx, name, flags, mode, out)
	return inode, plain(f), flag, errno
}

// whole is what a handle of the library's can do, but for handing its file to
// the kernel, which would then write to it unseen.
type whole interface {
	fs.FileReader
	fs.FileWriter
	fs.FileFsyncer
	fs.FileReleaser
	fs.FileFlusher
	fs.FileGetattrer
	fs.FileSetattrer
	fs.FileAllocater
	fs.FileLseeker
}

type handle struct{ whole }

func plain(f fs.FileHandle) fs.FileHandle {
	if f == nil {
		return nil
	}
	return handle{f.(whole)}
}

func (n *node) Write(ctx context.Context, f fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	n.d.mu.Lock()
	defer n.d.mu.Unlock()
	if err := n.d.touch(n.path(), off, off+int64(len(data))); err != nil && n.Path(n.Root()) != "" && !gone(err) {
		return 0, fs.ToErrno(err)
	}
	return f.(fs.FileWriter).Write(ctx, data, off)
}

// gone is of a file without a name: nobody finds it after a power cut.
func gone(err error) bool { return fs.ToErrno(err) == syscall.ENOENT }

func (n *node) Fsync(ctx context.Context, f fs.FileHandle, flags uint32) syscall.Errno {
	n.d.wait()
	if s, ok := f.(fs.FileFsyncer); ok {
		if errno := s.Fsync(ctx, flags); errno != 0 {
			return errno
		}
	}
	n.d.synced(n.path())
	return 0
}

func (n *node) Setattr(ctx context.Context, f fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok {
		n.d.mu.Lock()
		defer n.d.mu.Unlock()
		if err := n.d.touch(n.path(), int64(size), math.MaxInt64/2); err != nil && !gone(err) {
			return fs.ToErrno(err)
		}
	}
	return n.LoopbackNode.Setattr(ctx, f, in, out)
}

func (n *node) Allocate(ctx context.Context, f fs.FileHandle, off, size uint64, mode uint32) syscall.Errno {
	n.d.mu.Lock()
	defer n.d.mu.Unlock()
	if err := n.d.touch(n.path(), int64(off), int64(off+size)); err != nil && !gone(err) {
		return fs.ToErrno(err)
	}
	return f.(fs.FileAllocater).Allocate(ctx, off, size, mode)
}

// CopyFileRange lets the kernel copy by reading and writing, which is seen.
func (n *node) CopyFileRange(context.Context, fs.FileHandle, uint64, *fs.Inode, fs.FileHandle, uint64, uint64, uint64) (uint32, syscall.Errno) {
	return 0, syscall.ENOSYS
}
