// Command disk is a disk that fails as disks do: a folder seen through FUSE, of
// which writes that were not synced can be lost, as by a power cut, and whose
// syncs can be slow. It is told what to do by lines on its standard input and
// answers each with one.
//
//	slow 200ms   each sync takes so long; slow 0s: no longer
//	lose 7       what was not synced is lost, block by block by the chance of the seed
//	end          unmounted
package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: disk FOLDER MOUNTPOINT")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "disk:", err)
		os.Exit(1)
	}
}

func run(folder, mountpoint string) error {
	var st syscall.Stat_t
	if err := syscall.Stat(folder, &st); err != nil {
		return err
	}
	d := &disk{files: map[uint64]*file{}, folder: folder}
	root := &fs.LoopbackRoot{Path: folder, Dev: uint64(st.Dev)}
	top := &node{LoopbackNode: fs.LoopbackNode{RootData: root}, d: d}
	root.RootNode = top
	// The kernel keeps no answers: names are gone after a power cut.
	none := time.Duration(0)
	server, err := fs.Mount(mountpoint, top, &fs.Options{
		EntryTimeout: &none, AttrTimeout: &none,
		MountOptions: fuse.MountOptions{DirectMountStrict: true, FsName: "jepsen", Name: "disk", MaxWrite: 1 << 20},
	})
	if err != nil {
		return err
	}
	fmt.Println("mounted")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		answer, err := d.told(lines.Text())
		if errors.Is(err, errEnd) {
			break
		}
		if err != nil {
			answer = "error " + err.Error()
		}
		fmt.Println(answer)
	}
	err = server.Unmount()
	if err == nil {
		fmt.Println("unmounted")
	}
	return err
}

var errEnd = errors.New("end")

func (d *disk) told(line string) (string, error) {
	word, rest, _ := strings.Cut(line, " ")
	switch word {
	case "end":
		return "", errEnd
	case "slow":
		pause, err := time.ParseDuration(rest)
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("ok %d", d.slow(pause)), nil
	case "lose":
		seed, err := strconv.ParseUint(rest, 10, 64)
		if err != nil {
			return "", err
		}
		lost, kept, err := d.lose(seed)
		return fmt.Sprintf("ok %d %d", lost, kept), err
	}
	return "", fmt.Errorf("not known: %q", line)
}
