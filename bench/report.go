package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

// machine is what the figures were taken on.
type machine struct {
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Kernel string `json:"kernel"`
	Disk   string `json:"disk"`
	Fsync  string `json:"fsync"` // median of writing and syncing 4 KiB
	Go     string `json:"go"`
	Muster string `json:"muster"`
	Etcd   string `json:"etcd"`
	Time   string `json:"time"`
}

// result is one run of one system. Samples: by workload, then by variant.
type result struct {
	System      string                       `json:"system"`
	Run         int                          `json:"run"`
	Loaded      time.Duration                `json:"loaded_ns"`
	Memory      []memory                     `json:"memory"`       // per node, with the data set
	MemoryAfter []memory                     `json:"memory_after"` // per node, after the workloads
	Samples     map[string]map[string]sample `json:"samples"`
}

type report struct {
	Machine   machine    `json:"machine"`
	Runs      int        `json:"runs"`
	Span      string     `json:"duration"`
	Workloads []workload `json:"workloads"`
	Lines     []line     `json:"medians"`
	Results   []result   `json:"results"`
}

// line is one line of the table: medians of both, and muster's over etcd's.
type line struct {
	Name   string  `json:"name"`
	Unit   string  `json:"unit"` // "/s", or "MiB" where less is better
	Etcd   *figure `json:"etcd,omitempty"`
	Muster *figure `json:"muster,omitempty"`
	Ratio  float64 `json:"ratio,omitempty"`
	Goal   float64 `json:"goal,omitempty"`
}

// figure is a median. Each value is the median of its own kind over the runs.
type figure struct {
	Value   float64       `json:"value"`
	P50     time.Duration `json:"p50_ns,omitempty"`
	P99     time.Duration `json:"p99_ns,omitempty"`
	Errors  int           `json:"errors"`
	Others  float64       `json:"others_cores"` // the worst run's
	Variant string        `json:"variant,omitempty"`
}

func (r *report) lines() []line {
	var out []line
	for _, w := range r.Workloads {
		out = append(out, line{Name: w.key(), Unit: "/s", Goal: w.Goal, Etcd: r.best("etcd", w), Muster: r.best("muster", w)})
	}
	largest := func(system string, of func(result) []memory) *figure {
		var all []float64
		for _, res := range r.Results {
			if res.System == system {
				top := slices.MaxFunc(of(res), func(a, b memory) int { return int(a.RSS - b.RSS) })
				all = append(all, float64(top.RSS)/(1<<20))
			}
		}
		if len(all) == 0 {
			return nil
		}
		return &figure{Value: median(all)}
	}
	loaded := func(res result) []memory { return res.Memory }
	after := func(res result) []memory { return res.MemoryAfter }
	out = append(out, line{Name: "memory, data set", Unit: "MiB", Etcd: largest("etcd", loaded), Muster: largest("muster", loaded)},
		line{Name: "memory, after all", Unit: "MiB", Etcd: largest("etcd", after), Muster: largest("muster", after)})
	for i, l := range out {
		if l.Etcd != nil && l.Muster != nil && l.Etcd.Value > 0 {
			out[i].Ratio = l.Muster.Value / l.Etcd.Value
		}
	}
	return out
}

// best is the variant with the highest median rate; nil when the system did not run.
func (r *report) best(system string, w workload) *figure {
	byVariant := map[string][]sample{}
	for _, res := range r.Results {
		if res.System == system {
			for variant, got := range res.Samples[w.key()] {
				byVariant[variant] = append(byVariant[variant], got)
			}
		}
	}
	var best *figure
	for variant, runs := range byVariant {
		f := &figure{Variant: variant}
		var rate []float64
		var p50, p99 []time.Duration
		for _, s := range runs {
			rate, p50, p99 = append(rate, s.Rate), append(p50, s.P50), append(p99, s.P99)
			f.Errors += s.Errors
			f.Others = max(f.Others, s.Others)
		}
		f.Value, f.P50, f.P99 = median(rate), median(p50), median(p99)
		if best == nil || f.Value > best.Value {
			best = f
		}
	}
	return best
}

func median[T float64 | time.Duration](v []T) T {
	v = slices.Sorted(slices.Values(v))
	if len(v)%2 == 1 {
		return v[len(v)/2]
	}
	return (v[len(v)/2-1] + v[len(v)/2]) / 2
}

func (r *report) table() string {
	r.Lines = r.lines()
	var out bytes.Buffer
	fmt.Fprintf(&out, "Median of %d runs of %s, one system at a time, three nodes and the load generator on this machine.\n%s\n", r.Runs, r.Span, r.Machine)
	t := tabwriter.NewWriter(&out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "workload, clients\tetcd\tp50\tp99\tmuster\tp50\tp99\tmuster/etcd\tgoal\t")
	var notes []string
	for _, l := range r.Lines {
		ratio, goal := "-", ""
		if l.Ratio > 0 {
			ratio = fmt.Sprintf("%.2f", l.Ratio)
		}
		if l.Goal > 0 {
			goal = fmt.Sprintf("≥ %.1f", l.Goal)
		}
		if l.Unit == "MiB" {
			goal = "less is better"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t\n", l.Name, l.Etcd.cells(l.Unit), l.Muster.cells(l.Unit), ratio, goal)
		for name, f := range map[string]*figure{"etcd": l.Etcd, "muster": l.Muster} {
			if f != nil && f.Errors > 0 {
				notes = append(notes, fmt.Sprintf("! %s, %s: %d requests failed; the JSON names the first error", name, l.Name, f.Errors))
			}
			if f != nil && f.Others > disturbed {
				notes = append(notes, fmt.Sprintf("! %s, %s: %.1f cores were busy with something else; repeat it on a quiet machine", name, l.Name, f.Others))
			}
		}
	}
	_ = t.Flush()
	slices.Sort(notes)
	for _, n := range notes {
		fmt.Fprintln(&out, n)
	}
	fmt.Fprint(&out, footnote)
	return out.String()
}

const footnote = `etcd: put of a 32 B key and 400 B value, range of one key; clientv3 with TLS client certificates, the best of one
client, one per node and one per 16 workers. muster: PUT of an instance of 400 B, discovery of a service with one instance;
HTTP/1.1 with a bearer token, one connection per worker, every call decided by the active policy. The load generator's
own cost is in the figures of both. Memory is the resident memory of the largest node.
`

// disturbed is how many cores others may keep busy before a figure is doubted;
// the kernel's own work on a busy machine stays below it.
const disturbed = 0.3

func (f *figure) cells(unit string) string {
	switch {
	case f == nil:
		return "-\t\t"
	case unit == "MiB":
		return fmt.Sprintf("%.0f MiB\t\t", f.Value)
	}
	return fmt.Sprintf("%.0f/s\t%s\t%s", f.Value, ms(f.P50), ms(f.P99))
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2fms", float64(d)/1e6) }

func (s sample) trouble() string {
	if s.Errors == 0 {
		return ""
	}
	return fmt.Sprintf("  (%d failed, first: %s)", s.Errors, s.First)
}

func (b *beats) table() string {
	var out bytes.Buffer
	fmt.Fprintf(&out, "%d services × %d instances, a heartbeat every %s each, loaded in %s.\n%s\n", services, instances, b.Every, b.Loaded, b.Machine)
	fmt.Fprintf(&out, "heartbeats: %.0f/s of %.0f/s, p50 %s, p99 %s%s; passing at the end, of a sample: %s\n", b.Beats.Rate,
		float64(b.Instances)/beatEvery.Seconds(), ms(b.Beats.P50), ms(b.Beats.P99), b.Beats.trouble(), b.Passing)
	t := tabwriter.NewWriter(&out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "node\tCPU idle\tCPU with heartbeats\tfor the heartbeats\tmemory\tof it anonymous\t")
	for _, n := range b.Nodes {
		fmt.Fprintf(t, "%s\t%.1f %%\t%.1f %%\t%.1f %%\t%.0f MiB\t%.0f MiB\t\n", n.ID, n.IdleCPU, n.BeatCPU, n.BeatCPU-n.IdleCPU,
			float64(n.Memory.RSS)/(1<<20), float64(n.Memory.Anon)/(1<<20))
	}
	_ = t.Flush()
	if b.Beats.Others > disturbed {
		fmt.Fprintf(&out, "! %.1f cores were busy with something else; repeat it on a quiet machine\n", b.Beats.Others)
	}
	fmt.Fprintln(&out, "goal: under 20 % of one core for the heartbeats, under 300 MiB, on each node")
	return out.String()
}

// publish prints the table, then the JSON, and keeps the JSON in a file.
func publish(dir, name string, v any, table string) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	fmt.Printf("%s\n%s\n", table, b)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	path := filepath.Join(dir, name+"-"+time.Now().UTC().Format("20060102T150405Z")+".json")
	say("kept as %s", path)
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

func (m machine) String() string {
	return fmt.Sprintf("%s, %d cores, Linux %s; data on %s, 4 KiB write and fsync %s; %s, %s", m.CPU, m.Cores, m.Kernel, m.Disk, m.Fsync, m.Muster, m.Etcd)
}

func describe(dir string, s *settings) machine {
	m := machine{CPU: "unknown CPU", Cores: runtime.NumCPU(), Go: runtime.Version(), Time: time.Now().UTC().Format(time.RFC3339),
		Muster: firstLine("muster", s.muster, "version"), Etcd: firstLine("etcd", s.etcd, "--version"), Disk: disk(dir), Fsync: fsync(dir)}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if _, rest, ok := strings.Cut(string(b), "model name"); ok {
			line, _, _ := strings.Cut(rest, "\n")
			m.CPU = strings.TrimLeft(line, "\t :")
		}
	}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(b))
	}
	return m
}

func firstLine(name, binary string, args ...string) string {
	b, err := exec.Command(binary, args...).Output()
	if err != nil {
		return "no " + name
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	return line
}

func disk(dir string) string {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return "unknown disk"
	}
	switch st.Type {
	case 0xef53:
		return "ext4"
	case 0x58465342:
		return "xfs"
	case 0x9123683e:
		return "btrfs"
	case 0x794c7630:
		return "overlay"
	case 0x01021994:
		return "tmpfs (fsync costs nothing here: writes mean little)"
	}
	return fmt.Sprintf("file system %#x", st.Type)
}

func fsync(dir string) string {
	f, err := os.CreateTemp(dir, "fsync-*")
	if err != nil {
		return "unknown"
	}
	defer os.Remove(f.Name())
	defer f.Close()
	var took []time.Duration
	block := make([]byte, 4<<10)
	for range 50 {
		from := time.Now()
		if _, err := f.Write(block); err != nil || f.Sync() != nil {
			return "unknown"
		}
		took = append(took, time.Since(from))
	}
	return median(took).Round(time.Microsecond).String()
}
