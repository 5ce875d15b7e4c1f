// Package store owns the places where scheduled snapshots are kept: a folder,
// or a bucket of S3-compatible storage. It gives files their names, lists the
// files of one cluster and removes the oldest of them. It never touches a file
// that does not have a name of this cluster's, and does not look into any.
package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Place is where snapshots are kept. Its methods may be called from any
// goroutine.
type Place interface {
	// Put stores the file under the name; it is there whole or not at all.
	Put(ctx context.Context, name, file string) error
	// List gives the names of all files, of whatever kind.
	List(ctx context.Context) ([]string, error)
	// Remove removes a file; one that is not there is no error.
	Remove(ctx context.Context, name string) error
	// String says where it is, without secrets.
	String() string
}

// Snapshot is a kept snapshot, as its name tells.
type Snapshot struct {
	Name     string
	Taken    time.Time
	Revision uint64
}

const stamp = "20060102T150405Z"

var named = regexp.MustCompile(`^muster-(.+)-(\d{8}T\d{6}Z)-r(\d+)\.snapshot(\.age)?$`)

// Name gives a snapshot its name.
func Name(clusterID string, taken time.Time, revision uint64, encrypted bool) string {
	name := fmt.Sprintf("muster-%s-%s-r%d.snapshot", clusterID, taken.UTC().Format(stamp), revision)
	if encrypted {
		name += ".age"
	}
	return name
}

// List gives the snapshots of a cluster, oldest first.
func List(ctx context.Context, p Place, clusterID string) ([]Snapshot, error) {
	names, err := p.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the snapshots in %s: %w", p, err)
	}
	var all []Snapshot
	for _, n := range names {
		m := named.FindStringSubmatch(n)
		if m == nil || m[1] != clusterID {
			continue
		}
		taken, err := time.Parse(stamp, m[2])
		revision, err2 := strconv.ParseUint(m[3], 10, 64)
		if errors.Join(err, err2) == nil {
			all = append(all, Snapshot{Name: n, Taken: taken, Revision: revision})
		}
	}
	slices.SortFunc(all, func(a, b Snapshot) int { return a.Taken.Compare(b.Taken) })
	return all, nil
}

// Prune removes all but the newest keep snapshots of a cluster.
func Prune(ctx context.Context, p Place, clusterID string, keep int) error {
	all, err := List(ctx, p, clusterID)
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range all[:max(0, len(all)-keep)] {
		if err := p.Remove(ctx, s.Name); err != nil {
			errs = append(errs, fmt.Errorf("remove %s from %s: %w", s.Name, p, err))
		}
	}
	return errors.Join(errs...)
}

// Folder keeps snapshots in a folder, which is made where it is not there.
func Folder(dir string) Place { return folder(dir) }

type folder string

func (f folder) String() string { return string(f) }

func (f folder) Put(_ context.Context, name, file string) (err error) {
	if err := os.MkdirAll(string(f), 0o700); err != nil {
		return err
	}
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(filepath.Join(string(f), name+".part"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = out.ReadFrom(in)
	if err = errors.Join(err, out.Sync(), out.Close()); err == nil {
		err = os.Rename(out.Name(), filepath.Join(string(f), name))
	}
	if err != nil {
		return errors.Join(err, os.Remove(out.Name()))
	}
	d, err := os.Open(string(f))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (f folder) List(context.Context) ([]string, error) {
	entries, err := os.ReadDir(string(f))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		if e.Type().IsRegular() && !strings.HasSuffix(e.Name(), ".part") {
			names = append(names, e.Name())
		}
	}
	return names, err
}

func (f folder) Remove(_ context.Context, name string) error {
	err := os.Remove(filepath.Join(string(f), filepath.Base(name)))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
