package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"
)

// The state that is restored: services with so many instances each, a record of
// bodySize bytes for each of both; etcd has as many keys.
const (
	restoreServices  = 10_000
	restoreInstances = 19
	restoreRecords   = restoreServices * (1 + restoreInstances)
)

// What is timed: the commands, and from their beginning until all three nodes
// have answered a linearizable read.
const (
	etcdOffline     = "etcd, offline: etcdutl on three members"
	musterOffline   = "muster, offline: restore for three members"
	musterIntoEmpty = "muster, running and empty"
	musterOver      = "muster, running and holding as much"
)

// timing is one restore.
type timing struct {
	Command time.Duration `json:"command_ns"`
	Served  time.Duration `json:"served_ns"`
	CPU     time.Duration `json:"cpu_ns"` // of the commands and the nodes, until served
}

type restoreReport struct {
	Machine    machine             `json:"machine"`
	EtcdFile   int64               `json:"etcd_file_bytes"`
	MusterFile int64               `json:"muster_file_bytes"`
	Took       map[string][]timing `json:"took"`
}

// restore restores the same number of records of the same size into both, again
// and again, from snapshots that it makes at its first run and keeps beside the
// data.
func (s *settings) restore(ctx context.Context, e *etcd, m *muster) (*restoreReport, error) {
	dir, err := filepath.Abs(s.dir)
	if err != nil {
		return nil, err
	}
	r := &restorer{etcd: e, muster: m, etcdutl: s.etcdutl, rep: &restoreReport{Took: map[string][]timing{}},
		etcdFile: filepath.Join(dir, "restore.etcd"), musterFile: filepath.Join(dir, "restore.muster")}
	defer r.end()
	if r.rep.EtcdFile, err = sizeOr(r.etcdFile, func() error { return r.saveEtcd(ctx) }); err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	if r.rep.MusterFile, err = sizeOr(r.musterFile, func() error { return r.saveMuster(ctx) }); err != nil {
		return nil, fmt.Errorf("muster: %w", err)
	}
	turns := []func(context.Context) error{r.intoEtcd, r.intoStopped, r.intoRunning}
	for n := range s.runs {
		for _, turn := range turns {
			say("run %d of %d", n+1, s.runs)
			err := turn(ctx)
			r.end()
			if err != nil {
				return nil, err
			}
		}
		slices.Reverse(turns)
	}
	return r.rep, nil
}

func sizeOr(file string, make func() error) (int64, error) {
	if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
		if err := make(); err != nil {
			return 0, err
		}
	}
	info, err := os.Stat(file)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

type restorer struct {
	etcd                          *etcd
	muster                        *muster
	etcdutl, etcdFile, musterFile string
	rep                           *restoreReport
}

func (r *restorer) end() {
	r.etcd.stop()
	r.muster.stop()
	r.etcd.clear()
	r.muster.clear()
}

func (r *restorer) note(what string, t timing) {
	say("  %-44s %s, served after %s, processor time %s", what, t.Command.Round(time.Millisecond), t.Served.Round(time.Millisecond), t.CPU.Round(time.Millisecond))
	r.rep.Took[what] = append(r.rep.Took[what], t)
}

func (r *restorer) saveEtcd(ctx context.Context) error {
	defer r.end()
	if err := r.etcd.start(ctx); err != nil {
		return err
	}
	var workers []func(context.Context, int) error
	for range 8 {
		c, err := r.etcd.dial(r.etcd.endpoints...)
		if err != nil {
			return err
		}
		defer c.Close()
		for range 16 {
			workers = append(workers, func(ctx context.Context, i int) error {
				_, err := c.Put(ctx, etcdKey(i/(1+restoreInstances), i%(1+restoreInstances)), string(instanceBody(i, "24h", "24h")))
				return err
			})
		}
	}
	say("etcd: %d keys", restoreRecords)
	if err := each(ctx, restoreRecords, workers); err != nil {
		return err
	}
	c, err := r.etcd.dial(r.etcd.endpoints[0])
	if err != nil {
		return err
	}
	defer c.Close()
	stream, err := c.Snapshot(ctx)
	if err != nil {
		return err
	}
	return errors.Join(keep(r.etcdFile, stream), stream.Close())
}

// keep writes a file that has its name only when it is whole.
func keep(name string, from io.Reader) error {
	f, err := os.Create(name + ".part")
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

func (r *restorer) saveMuster(ctx context.Context) error {
	defer r.end()
	if err := r.fresh(ctx); err != nil {
		return err
	}
	var first, second []func(context.Context, int) error
	for w := range 128 {
		c := r.muster.client(w)
		defer c.close()
		first = append(first, func(ctx context.Context, i int) error {
			return c.do(ctx, "PUT", "/v1/namespaces/bench/services/svc-"+strconv.Itoa(i), serviceBody(i), http.StatusOK, nil)
		})
		second = append(second, func(ctx context.Context, i int) error {
			return c.do(ctx, "PUT", instancePath("svc-", i/restoreInstances, i%restoreInstances), instanceBody(i, "24h", "24h"), http.StatusOK, nil)
		})
	}
	say("muster: %d records", restoreRecords)
	if err := errors.Join(each(ctx, restoreServices, first), each(ctx, restoreServices*restoreInstances, second)); err != nil {
		return err
	}
	if _, err := r.run(ctx, "snapshot", "save", r.musterFile+".part"); err != nil {
		return err
	}
	return os.Rename(r.musterFile+".part", r.musterFile)
}

// fresh starts an empty muster without any policy, which a snapshot may go into.
func (r *restorer) fresh(ctx context.Context) error {
	if err := os.RemoveAll(r.muster.dir); err != nil {
		return err
	}
	return r.muster.spawn(ctx)
}

// run runs the command line as an operator of the cluster does.
func (r *restorer) run(ctx context.Context, args ...string) (cpu time.Duration, err error) {
	c := exec.CommandContext(ctx, r.muster.binary, args...)
	c.Env = append(os.Environ(), "MUSTER_CACERT="+r.muster.cluster.CA, "MUSTER_TOKEN="+r.muster.cluster.Token)
	if len(r.muster.nodes) > 0 {
		c.Env = append(c.Env, "MUSTER_ADDR="+r.muster.nodes[0].String())
	}
	if out, err := c.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("muster %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return used(c), nil
}

// used is the processor time of a command that has ended.
func used(c *exec.Cmd) time.Duration { return c.ProcessState.UserTime() + c.ProcessState.SystemTime() }

// usedBy is that of running processes so far.
func usedBy(pids []int) (sum time.Duration) {
	for _, pid := range pids {
		if t, err := cpuOf(pid); err == nil {
			sum += t
		}
	}
	return sum
}

func (r *restorer) intoEtcd(ctx context.Context) error {
	e := r.etcd
	if err := errors.Join(os.RemoveAll(e.dir), e.certificates()); err != nil {
		return err
	}
	members := e.members()
	errs := make([]error, len(members))
	var cpu atomic.Int64
	var all sync.WaitGroup
	from := time.Now()
	for i, m := range members {
		name, peer, _ := strings.Cut(m, "=")
		all.Go(func() {
			c := exec.CommandContext(ctx, r.etcdutl, "snapshot", "restore", r.etcdFile, "--name", name, "--initial-cluster", strings.Join(members, ","),
				"--initial-cluster-token", "bench", "--initial-advertise-peer-urls", peer, "--data-dir", filepath.Join(e.dir, name))
			if out, err := c.CombinedOutput(); err != nil {
				errs[i] = fmt.Errorf("etcdutl: %w: %s", err, out)
				return
			}
			cpu.Add(int64(used(c)))
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	command := time.Since(from)
	if err := e.launch(ctx); err != nil {
		return err
	}
	r.note(etcdOffline, timing{command, time.Since(from), time.Duration(cpu.Load()) + usedBy(e.pids())})
	c, err := e.dial(e.endpoints...)
	if err != nil {
		return err
	}
	defer c.Close()
	got, err := c.Get(ctx, etcdKey(restoreServices-1, restoreInstances))
	if err == nil && len(got.Kvs) != 1 {
		err = errors.New("etcd has not what was restored")
	}
	return err
}

func (r *restorer) intoStopped(ctx context.Context) error {
	m := r.muster
	if err := r.fresh(ctx); err != nil {
		return err
	}
	m.stop()
	_ = os.Remove(filepath.Join(m.dir, "cluster.json"))
	for _, n := range m.cluster.Nodes {
		if err := os.RemoveAll(filepath.Join(m.dir, n.ID, "data")); err != nil {
			return err
		}
	}
	args := []string{"snapshot", "restore", r.musterFile}
	for _, n := range m.cluster.Nodes {
		args = append(args, "--config", filepath.Join(m.dir, n.ID, "muster.yaml"))
	}
	from := time.Now()
	cpu, err := r.run(ctx, args...)
	if err != nil {
		return err
	}
	command := time.Since(from)
	if err := m.spawn(ctx); err != nil {
		return err
	}
	if err := r.serves(ctx); err != nil {
		return err
	}
	r.note(musterOffline, timing{command, time.Since(from), cpu + usedBy(m.pids())})
	return nil
}

func (r *restorer) intoRunning(ctx context.Context) error {
	if err := r.fresh(ctx); err != nil {
		return err
	}
	for _, into := range []struct {
		what string
		args []string
	}{{musterIntoEmpty, []string{"snapshot", "restore", r.musterFile}}, {musterOver, []string{"snapshot", "restore", r.musterFile, "--force"}}} {
		before := usedBy(r.muster.pids())
		from := time.Now()
		cpu, err := r.run(ctx, into.args...)
		if err != nil {
			return err
		}
		command := time.Since(from)
		if err := r.serves(ctx); err != nil {
			return err
		}
		r.note(into.what, timing{command, time.Since(from), cpu + usedBy(r.muster.pids()) - before})
	}
	return nil
}

// serves waits until all nodes give the last record, linearizably.
func (r *restorer) serves(ctx context.Context) error {
	for i := range r.muster.nodes {
		err := r.muster.dev.await(ctx, time.Minute, func(ctx context.Context) error {
			c := r.muster.client(i)
			defer c.close()
			return c.do(ctx, "GET", instancePath("svc-", restoreServices-1, restoreInstances-1)+"?consistency=linearizable", nil, http.StatusOK, nil)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *restoreReport) table() string {
	var out bytes.Buffer
	fmt.Fprintf(&out, "%d records of some %d bytes; etcd's snapshot has %d MiB, muster's %d. Medians; served: from the beginning until all three nodes answer linearizably.\n%s\n",
		restoreRecords, bodySize, r.EtcdFile>>20, r.MusterFile>>20, r.Machine)
	t := tabwriter.NewWriter(&out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "restore\tcommand\tserved\truns\tcommand / etcd's\tserved / etcd's\tprocessor time\t")
	of := func(what string) (command, served, cpu time.Duration) {
		var c, s, p []time.Duration
		for _, x := range r.Took[what] {
			c, s, p = append(c, x.Command), append(s, x.Served), append(p, x.CPU)
		}
		return median(c), median(s), median(p)
	}
	if len(r.Took[etcdOffline]) == 0 {
		return out.String()
	}
	command, served, _ := of(etcdOffline)
	for _, what := range []string{etcdOffline, musterOffline, musterIntoEmpty, musterOver} {
		if len(r.Took[what]) > 0 {
			c, s, p := of(what)
			fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%.2f\t%.2f\t%s\t\n", what, ms(c), ms(s), len(r.Took[what]), float64(c)/float64(command), float64(s)/float64(served), ms(p))
		}
	}
	_ = t.Flush()
	return out.String()
}
