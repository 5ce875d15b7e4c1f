package fsm_test

import (
	"bytes"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"pgregory.net/rapid"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fsm"
)

// step is one write to the state file, or a sync where there is no data.
type step struct {
	data []byte
	off  int64
}

// tape is all that was done to a state file since it was as base.
type tape struct {
	base  []byte
	steps []step
	// flushed is, after so many steps, the index that the file holds for certain.
	flushed map[int]uint64
}

const metaPages = 2 * 4096

func record(t testing.TB, m *fsm.Machine, dir string) *tape {
	t.Helper()
	base, err := os.ReadFile(filepath.Join(dir, "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	p := &tape{base: base, flushed: map[int]uint64{}}
	var syncs bool
	syncs = m.Tape(func(b []byte, off int64) {
		meta := off < metaPages
		if meta && syncs {
			p.steps = append(p.steps, step{})
		}
		p.steps = append(p.steps, step{bytes.Clone(b), off})
		if meta && syncs {
			p.steps = append(p.steps, step{})
		}
	})
	return p
}

func (p *tape) flush(m *fsm.Machine) {
	m.Flush()
	p.flushed[len(p.steps)] = m.AppliedIndex()
}

// What becomes of the writes that were not synced when the machine stopped.
const (
	kept  = iota // the process ended: the kernel has them
	lost         // the power was cut: none is on the disk
	mixed        // the power was cut: some are, whole or in part
	fates
)

// cut is the file after the first n steps and a crash, and the index that it
// must hold at least.
func (p *tape) cut(n, fate int, r *rand.Rand) (file []byte, atLeast uint64) {
	file = bytes.Clone(p.base)
	synced := 0
	for i, s := range p.steps[:n] {
		if s.data == nil {
			synced = i
		}
		atLeast = max(atLeast, p.flushed[i])
	}
	atLeast = max(atLeast, p.flushed[n])
	for i, s := range p.steps[:n] {
		data := s.data
		if i > synced && fate != kept {
			if fate == lost || r.IntN(2) == 0 {
				continue
			}
			sectors := (len(data) + 511) / 512
			data = data[:min(len(data), 512*(1+r.IntN(sectors)))]
		}
		if end := int(s.off) + len(data); end > len(file) {
			file = append(file, make([]byte, end-len(file))...)
		}
		copy(file[s.off:], data)
	}
	return file, atLeast
}

// crashLog is a log with changes, a restore that is given up, and one that
// is not, of a snapshot of the first changes.
func crashLog(t testing.TB, seed int) []*raft.Log {
	t.Helper()
	draw := rapid.Custom(script)
	source := open(t, t.TempDir())
	defer shut(t, source)
	before, after := draw.Example(2*seed), draw.Example(2*seed+1)
	for _, c := range before[:len(before)/2+1] {
		apply(t, source, c)
	}
	file := export(t, source)
	var logs []*raft.Log
	add := func(all ...*command.Command) {
		for _, c := range all {
			logs = append(logs, entry(t, uint64(len(logs)+1), c))
		}
	}
	add(&command.Command{Time: began, Op: &command.Command_ClusterInit{ClusterInit: &command.ClusterInit{ClusterId: "c"}}})
	add(before...)
	sum := sha256.Sum256(file)
	const size = 200
	chunks := slices.Collect(slices.Chunk(file, size))
	begin := &command.Command{Time: began, Op: &command.Command_RestoreBegin{RestoreBegin: &command.RestoreBegin{Id: "r", Chunks: uint32(len(chunks)), Sha256: sum[:]}}}
	chunk := func(i int, data []byte) *command.Command {
		return &command.Command{Time: began, Op: &command.Command_RestoreChunk{RestoreChunk: &command.RestoreChunk{Id: "r", Seq: uint32(i), Data: data}}}
	}
	add(begin, chunk(0, chunks[0]), &command.Command{Time: began, Op: &command.Command_RestoreAbort{RestoreAbort: &command.RestoreAbort{Id: "r"}}}, begin)
	add(chunk(0, nil)) // tells that the restore goes on
	for i, data := range chunks {
		add(chunk(i, data))
	}
	add(&command.Command{Time: began, Op: &command.Command_RestoreCommit{RestoreCommit: &command.RestoreCommit{Id: "r"}}})
	add(after...)
	return logs
}

// Laws 4, 8 and 11: wherever a crash stops the writing of the state file, with
// what was not synced kept, lost or torn, the node starts by itself with a state
// that the log had at some index, no older than what a flush had finished; and
// the same log makes it the same as one that never crashed.
func TestCrashAtEveryWrite(t *testing.T) {
	scripts := 2
	if n, err := strconv.Atoi(os.Getenv("MUSTER_CRASH_SCRIPTS")); err == nil {
		scripts = n
	}
	for seed := range scripts {
		r := rand.New(rand.NewPCG(uint64(seed), 26))
		logs := crashLog(t, seed)
		dir := t.TempDir()
		m, err := fsm.Open(dir, fsm.Options{FlushEvery: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		p := record(t, m, dir)
		at := map[uint64]fsm.Hash{0: m.View().Hash}
		for i := 0; i < len(logs); {
			n := min(1+r.IntN(4), len(logs)-i)
			m.ApplyBatch(logs[i : i+n])
			i += n
			if r.IntN(2) == 0 {
				p.flush(m)
			}
		}
		p.flush(m)
		for i := range logs {
			at[uint64(i+1)], _ = m.HashAt(uint64(i + 1))
		}
		want := end{m.View(), export(t, m)}
		shut(t, m)
		cases := 0
		for n := range len(p.steps) + 1 {
			for fate := range fates {
				file, atLeast := p.cut(n, fate, r)
				cases++
				if why := comeBack(t, file, atLeast, logs, at, want); why != "" {
					t.Fatalf("script %d, a crash after step %d of %d, what was not synced was %s: %s", seed, n, len(p.steps), []string{"kept", "lost", "mixed"}[fate], why)
				}
			}
		}
		t.Logf("script %d: %d entries, %d writes and syncs, %d crashes", seed, len(logs), len(p.steps), cases)
	}
}

// end is the state that a log leads to.
type end struct {
	view *fsm.View
	file []byte
}

// comeBack starts on a state file that a crash has left, replays the log, and
// says what is wrong.
func comeBack(t *testing.T, file []byte, atLeast uint64, logs []*raft.Log, at map[uint64]fsm.Hash, want end) string {
	t.Helper()
	dir := t.TempDir()
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "state.db"), file, 0o600); err != nil {
		t.Fatal(err)
	}
	return resume(t, dir, atLeast, logs, at, want)
}

// resume is comeBack on what a folder holds.
func resume(t *testing.T, dir string, atLeast uint64, logs []*raft.Log, at map[uint64]fsm.Hash, want end) string {
	t.Helper()
	m, err := fsm.Open(dir, fsm.Options{FlushEvery: time.Hour, NoSync: true})
	if err != nil {
		return err.Error()
	}
	defer shut(t, m)
	v := m.View()
	switch {
	case v.Applied < atLeast:
		return "it holds index " + strconv.FormatUint(v.Applied, 10) + ", a flush had finished at " + strconv.FormatUint(atLeast, 10)
	case v.Hash != at[v.Applied]:
		return "its state is not that of its index " + strconv.FormatUint(v.Applied, 10)
	}
	m.ApplyBatch(logs)
	v = m.View()
	if v.Hash != want.view.Hash || v.Revision != want.view.Revision || v.Applied != want.view.Applied || v.Restoring != want.view.Restoring {
		return "the log has led to another state"
	}
	if !bytes.Equal(export(t, m), want.file) {
		return "the log has led to another content of the file"
	}
	return ""
}

// The same while the file is made, and while that of another node takes its
// place.
func TestCrashWhileTheFileIsMade(t *testing.T) {
	logs := crashLog(t, 0)
	source := open(t, t.TempDir())
	defer shut(t, source)
	source.ApplyBatch(logs)
	image := raftSnapshot(t, source)
	for name, left := range map[string]map[string][]byte{
		"nothing in the new file":       {"state.db.new": {}},
		"zeros in the new file":         {"state.db.new": make([]byte, 16<<10)},
		"an image that is not whole":    {"state.db.restore": image[16 : len(image)/2]},
		"an image of which nothing was": {"state.db.restore": make([]byte, len(image))},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, b := range left {
				if err := os.WriteFile(filepath.Join(dir, file), b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			m := open(t, dir)
			m.ApplyBatch(logs[:3])
			if err := m.Restore(io.NopCloser(bytes.NewReader(image))); err != nil {
				t.Fatal(err)
			}
			shut(t, m)
			m = open(t, dir)
			defer shut(t, m)
			if m.View().Hash != source.View().Hash || m.AppliedIndex() != source.AppliedIndex() {
				t.Error("the state is another")
			}
			if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
				t.Errorf("left are %v, %v", files, err)
			}
		})
	}
}
