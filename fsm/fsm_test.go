package fsm_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/fsm"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/setting"
	"github.com/muster-registry/muster/snapshot"
)

var began = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixNano()

func open(t testing.TB, dir string) *fsm.Machine {
	t.Helper()
	m, err := fsm.Open(dir, fsm.Options{FlushEvery: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func shut(t testing.TB, m *fsm.Machine) {
	t.Helper()
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
}

func entry(t testing.TB, index uint64, commands ...*command.Command) *raft.Log {
	t.Helper()
	data, err := proto.Marshal(&command.Batch{Format: 1, Commands: commands})
	if err != nil {
		t.Fatal(err)
	}
	return &raft.Log{Index: index, Term: 1, Type: raft.LogCommand, Data: data}
}

// apply applies one command as the next entry and gives its result.
func apply(t testing.TB, m *fsm.Machine, c *command.Command) command.Result {
	t.Helper()
	return m.Apply(entry(t, m.AppliedIndex()+1, c)).([]command.Result)[0]
}

func must(t testing.TB, r command.Result) *command.Receipt {
	t.Helper()
	if r.Err != nil {
		t.Fatal(r.Err)
	}
	return r.Receipt
}

func service(name string, observed uint64) *command.Command {
	return &command.Command{Principal: "token:t", Time: began, Op: &command.Command_Put{Put: &command.Put{
		Kind: command.Kind_SERVICE, Namespace: "default", Name: name, Observed: observed,
		Spec: []byte(`{"protocol":"rest","owner":"team","description":"","tags":[],"metadata":{}}`),
	}}}
}

func instance(svc, id string, port int, observed uint64) *command.Command {
	return &command.Command{Principal: "token:t", Time: began, Op: &command.Command_Put{Put: &command.Put{
		Kind: command.Kind_INSTANCE, Namespace: "default", Service: svc, Name: id, Observed: observed,
		Spec: fmt.Appendf(nil, `{"address":"10.0.0.1","port":%d,"version":"","zone":"","weight":1,"tags":[],"metadata":{},"ttl":"30s","deregister_after":"1h","checks":[]}`, port),
	}}}
}

func stagePolicy(t interface {
	Helper()
	Fatal(args ...any)
}, module string) *command.Command {
	t.Helper()
	c := policy.Content{Modules: map[string]string{"a.rego": module}}
	if err := c.Normalize(); err != nil {
		t.Fatal(err)
	}
	return &command.Command{Principal: "token:t", Time: began, Op: &command.Command_PolicyStage{PolicyStage: &command.PolicyStage{
		Content: c.Encode(), Digest: c.Digest(), Report: policy.Report{}.Encode(),
	}}}
}

func activate(number, expect uint64) *command.Command {
	return &command.Command{Principal: "token:t", Time: began, Op: &command.Command_PolicyActivate{PolicyActivate: &command.PolicyActivate{Revision: number, ExpectActive: expect}}}
}

// Law 7 and the contract on revisions: each change has its own, also within
// one Raft entry, and a refused command takes none.
func TestEachChangeHasItsOwnRevision(t *testing.T) {
	m := open(t, t.TempDir())
	defer shut(t, m)
	results := m.Apply(entry(t, 1, service("a", 0), instance("nobody", "i", 1, 0), service("b", 0), instance("a", "i", 1, 0))).([]command.Result)
	var got []uint64
	for _, r := range results {
		got = append(got, r.Receipt.GetRevision())
	}
	if diff := cmp.Diff([]uint64{1, 0, 2, 3}, got); diff != "" {
		t.Errorf("revisions (-want +got):\n%s", diff)
	}
	if !fault.Is(results[1].Err, fault.ServiceNotFound) {
		t.Errorf("instance of an unknown service: %v", results[1].Err)
	}
	if v := m.View(); v.Revision != 3 || v.Applied != 1 {
		t.Errorf("view is at revision %d, index %d", v.Revision, v.Applied)
	}
}

// A service goes with all it holds, in one change.
func TestDeleteTakesWhatItHolds(t *testing.T) {
	m := open(t, t.TempDir())
	defer shut(t, m)
	must(t, apply(t, m, service("a", 0)))
	must(t, apply(t, m, instance("a", "i", 1, 0)))
	gone := must(t, apply(t, m, &command.Command{Time: began, Op: &command.Command_Delete{Delete: &command.Delete{Kind: command.Kind_SERVICE, Namespace: "default", Name: "a", Observed: 1}}}))
	if v := m.View(); v.Registry.Counts().Services+v.Registry.Counts().Instances != 0 || v.Revision != gone.Revision || v.Hash != (fsm.Hash{}) {
		t.Errorf("after the deletion: %+v, hash %v", v.Registry.Counts(), v.Hash)
	}
}

// Law 5 and "One write": what was admitted under another policy than the one
// that is active, or over another record, is not applied.
func TestStaleAdmissionIsRefused(t *testing.T) {
	m := open(t, t.TempDir())
	defer shut(t, m)
	must(t, apply(t, m, stagePolicy(t, "package a")))
	gated := service("a", 0)
	gated.Gated = true
	must(t, apply(t, m, gated))
	must(t, apply(t, m, activate(1, 0)))

	old := service("b", 0)
	old.Gated = true
	if r := apply(t, m, old); !errors.Is(r.Err, fsm.ErrPolicyChanged) {
		t.Errorf("admitted under policy 0 while 1 is active: %v", r.Err)
	}
	old.PolicyRevision = 1
	must(t, apply(t, m, old))
	if r := apply(t, m, service("b", 1)); !errors.Is(r.Err, fsm.ErrStale) {
		t.Errorf("decided on an older record: %v", r.Err)
	}
	old = service("c", 0)
	old.Gated, old.PolicyRevision, old.Conditions = true, 1, []byte("others")
	if r := apply(t, m, old); !errors.Is(r.Err, fsm.ErrConditionsChanged) {
		t.Errorf("admitted under other settings: %v", r.Err)
	}
	old.Conditions = m.View().Settings.Conditions()
	must(t, apply(t, m, old))
	if r := apply(t, m, activate(1, 0)); !fault.Is(r.Err, fault.Conflict) {
		t.Errorf("activation against another active revision: %v", r.Err)
	}
}

func TestRepeatGetsTheFirstAnswer(t *testing.T) {
	dir := t.TempDir()
	m := open(t, dir)
	first := service("a", 0)
	first.IdempotencyKey, first.RequestDigest = "k", []byte{1}
	want := must(t, apply(t, m, first))
	must(t, apply(t, m, service("a", want.Revision)))
	shut(t, m)

	m = open(t, dir)
	defer shut(t, m)
	before := m.View().Revision
	got := must(t, apply(t, m, first))
	if !got.Repeated || got.Revision != want.Revision || !bytes.Equal(got.Record, want.Record) {
		t.Errorf("repeat gave %v, first was %v", got, want)
	}
	if m.View().Revision != before {
		t.Error("a repeat changed the state")
	}
	other := service("b", 0)
	other.IdempotencyKey, other.RequestDigest = "k", []byte{2}
	if r := apply(t, m, other); !fault.Is(r.Err, fault.Conflict) {
		t.Errorf("another request under the same key: %v", r.Err)
	}
	later := service("c", 0)
	later.IdempotencyKey, later.RequestDigest, later.Time = "k", []byte{3}, began+int64(25*time.Hour)
	if must(t, apply(t, m, later)).Repeated {
		t.Error("a key is remembered for longer than a day")
	}
}

// However large the answers are, what is kept for repeats is bounded, and it is
// the same after a restart.
func TestRepeatsAreBounded(t *testing.T) {
	dir := t.TempDir()
	m := open(t, dir)
	const big = 1 << 20
	put := func(i int) *command.Command {
		c := service(fmt.Sprintf("s%d", i), 0)
		c.GetPut().Spec = fmt.Appendf(nil, `{"protocol":"rest","owner":"","description":%q,"tags":[],"metadata":{}}`, strings.Repeat("x", big))
		c.IdempotencyKey, c.RequestDigest = fmt.Sprintf("k%d", i), []byte{1}
		return c
	}
	for i := range 80 {
		must(t, apply(t, m, put(i)))
	}
	kept := func() (n int) {
		for i := range 80 {
			if r, err := m.Repeat(put(i)); err != nil {
				t.Fatal(err)
			} else if r != nil {
				n++
			}
		}
		return n
	}
	before := kept()
	if before == 0 || before > 64 {
		t.Errorf("%d answers of 1 MiB are kept", before)
	}
	if r, _ := m.Repeat(put(79)); r == nil {
		t.Error("the newest answer is not kept")
	}
	shut(t, m)
	m = open(t, dir)
	defer shut(t, m)
	if after := kept(); after != before {
		t.Errorf("%d answers are kept after a restart, %d before", after, before)
	}
}

// script draws commands whose outcome depends on what came before.
func script(rt *rapid.T) []*command.Command {
	names := rapid.SampledFrom([]string{"a", "b", "c"})
	var out []*command.Command
	for range rapid.IntRange(1, 60).Draw(rt, "length") {
		svc, id := names.Draw(rt, "service"), names.Draw(rt, "id")
		observed := rapid.Uint64Range(0, 12).Draw(rt, "observed")
		var c *command.Command
		switch rapid.IntRange(0, 9).Draw(rt, "op") {
		case 0:
			c = service(svc, observed)
		case 1, 2:
			c = instance(svc, id, rapid.IntRange(1, 9).Draw(rt, "port"), observed)
		case 3:
			c = &command.Command{Time: began, Op: &command.Command_Delete{Delete: &command.Delete{Kind: command.Kind_SERVICE, Namespace: "default", Name: svc, Observed: observed}}}
		case 4:
			c = &command.Command{Time: began, Op: &command.Command_Leases{Leases: &command.Leases{Items: []*command.Leases_Item{
				{Namespace: "default", Service: svc, Name: id, Change: command.Leases_Change(rapid.IntRange(1, 3).Draw(rt, "change")), Observed: observed},
			}}}}
		case 5:
			c = service(svc, 0)
			c.IdempotencyKey, c.RequestDigest = id, []byte(svc)
		case 6:
			c = stagePolicy(rt, "package "+svc)
		case 7:
			c = activate(observed, rapid.Uint64Range(0, 3).Draw(rt, "active"))
		case 8:
			c = &command.Command{Principal: "token:t", Time: began, Op: &command.Command_Put{Put: &command.Put{
				Kind: command.Kind_SETTING, Service: string(rapid.SampledFrom(setting.Kinds()).Draw(rt, "kind")), Namespace: "default", Name: id, Observed: observed, Spec: []byte(`{"of":"` + svc + `"}`)}}}
		case 9:
			c = &command.Command{Time: began, Op: &command.Command_AuditHead{AuditHead: &command.AuditHead{Node: id, Seq: observed, Hash: svc}}}
		}
		out = append(out, c)
	}
	return out
}

// Law 4 and law 11: one log gives one state, however it is cut into entries
// and batches, across restarts and Raft snapshots.
func TestOneLogOneState(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		commands := script(rt)
		straight, dir := open(t, t.TempDir()), t.TempDir()
		defer shut(t, straight)
		var logs []*raft.Log
		for i := 0; i < len(commands); {
			n := min(rapid.IntRange(1, 5).Draw(rt, "entry"), len(commands)-i)
			logs = append(logs, entry(t, uint64(len(logs)+1), commands[i:i+n]...))
			i += n
		}
		for _, l := range logs {
			straight.Apply(l)
		}

		other := open(t, dir)
		defer func() { shut(t, other) }()
		for i := 0; i < len(logs); {
			n := min(rapid.IntRange(1, 4).Draw(rt, "batch"), len(logs)-i)
			other.ApplyBatch(logs[i : i+n])
			switch rapid.IntRange(0, 3).Draw(rt, "event") {
			case 0: // restart, and the log is replayed from the beginning
				shut(t, other)
				other = open(t, dir)
				other.ApplyBatch(logs[:i+n])
			case 1: // a Raft snapshot moves the state to another node
				image := raftSnapshot(t, other)
				shut(t, other)
				dir = t.TempDir()
				other = open(t, dir)
				if err := other.Restore(io.NopCloser(bytes.NewReader(image))); err != nil {
					t.Fatal(err)
				}
			}
			i += n
		}
		a, b := straight.View(), other.View()
		if a.Hash != b.Hash || a.Revision != b.Revision || a.Applied != b.Applied {
			rt.Fatalf("states differ: %v@%d/%d and %v@%d/%d", a.Hash, a.Revision, a.Applied, b.Hash, b.Revision, b.Applied)
		}
		if a.Registry.Counts() != b.Registry.Counts() {
			rt.Fatalf("counts differ: %v and %v", a.Registry.Counts(), b.Registry.Counts())
		}
	})
}

type sink struct{ bytes.Buffer }

func (*sink) ID() string    { return "s" }
func (*sink) Cancel() error { return nil }
func (*sink) Close() error  { return nil }

func raftSnapshot(t testing.TB, m *fsm.Machine) []byte {
	t.Helper()
	s, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Release()
	var out sink
	if err := s.Persist(&out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// Raft's own snapshot may be under way when it installs that of the leader, and
// does not go on before that is done. So installing must not wait for it.
func TestAnImageIsInstalledWhileAnotherIsHeld(t *testing.T) {
	ahead, behind := open(t, t.TempDir()), open(t, t.TempDir())
	defer shut(t, ahead)
	defer shut(t, behind)
	must(t, apply(t, ahead, service("a", 0)))
	if err := behind.Restore(io.NopCloser(bytes.NewReader(raftSnapshot(t, ahead)))); err != nil {
		t.Fatal(err)
	}
	held, err := behind.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	must(t, apply(t, ahead, service("b", 0)))
	image := raftSnapshot(t, ahead)

	installed := make(chan error, 1)
	go func() { installed <- behind.Restore(io.NopCloser(bytes.NewReader(image))) }()
	select {
	case err := <-installed:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(30 * time.Second):
		held.Release()
		t.Fatal("the image waits for the snapshot that is held")
	}
	if got, want := behind.View(), ahead.View(); got.Hash != want.Hash || got.Applied != want.Applied {
		t.Errorf("entry %d with hash %x, want %d with %x", got.Applied, got.Hash, want.Applied, want.Hash)
	}
	if err := held.Persist(new(sink)); err != nil { // what it began with, from the file that was replaced
		t.Error(err)
	}
	held.Release()
	must(t, apply(t, behind, service("c", 0)))
}

// A damaged Raft snapshot is refused, and the state before it stays.
// A snapshot that comes late is not gone back to: what was shown stays, and
// the entries that Raft then gives again are not applied again.
func TestAnOlderImageChangesNothing(t *testing.T) {
	m := open(t, t.TempDir())
	defer shut(t, m)
	must(t, apply(t, m, service("a", 0)))
	image := raftSnapshot(t, m)
	must(t, apply(t, m, service("b", 0)))
	want := m.View()
	if err := m.Restore(io.NopCloser(bytes.NewReader(image))); err != nil {
		t.Fatal(err)
	}
	if got := m.View(); got.Hash != want.Hash || got.Applied != want.Applied || got.Revision != want.Revision {
		t.Errorf("entry %d with revision %d came before entry %d with %d", want.Applied, want.Revision, got.Applied, got.Revision)
	}
	must(t, apply(t, m, service("c", 0)))
}

func TestDamagedImageChangesNothing(t *testing.T) {
	m := open(t, t.TempDir())
	defer shut(t, m)
	must(t, apply(t, m, service("a", 0)))
	image := raftSnapshot(t, m)
	must(t, apply(t, m, service("b", 0)))
	want := m.View().Hash
	for name, damaged := range map[string][]byte{
		"truncated": image[:len(image)-1],
		"empty":     nil,
		"flipped":   append(append([]byte(nil), image[:100]...), append([]byte{image[100] ^ 1}, image[101:]...)...),
		"foreign":   append([]byte("NOTMINE!"), image[8:]...),
	} {
		if err := m.Restore(io.NopCloser(bytes.NewReader(damaged))); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if m.View().Hash != want {
			t.Errorf("%s: the state changed", name)
		}
	}
	must(t, apply(t, m, service("c", 0)))
}

func export(t testing.TB, m *fsm.Machine) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := m.Export(&out, snapshot.Header{CreatedAt: time.Unix(0, began).UTC(), MusterVersion: "test"}); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// restore stages a snapshot through commands, as a node does.
func restore(t testing.TB, m *fsm.Machine, file []byte) command.Result {
	t.Helper()
	const size = 64
	sum := sha256.Sum256(file)
	chunks := (len(file) + size - 1) / size
	must(t, apply(t, m, &command.Command{Time: began, Op: &command.Command_RestoreBegin{RestoreBegin: &command.RestoreBegin{Id: "r", Chunks: uint32(chunks), Sha256: sum[:]}}}))
	for i := range chunks {
		data := file[i*size : min((i+1)*size, len(file))]
		must(t, apply(t, m, &command.Command{Time: began, Op: &command.Command_RestoreChunk{RestoreChunk: &command.RestoreChunk{Id: "r", Seq: uint32(i), Data: data}}}))
	}
	return apply(t, m, &command.Command{Time: began, Op: &command.Command_RestoreCommit{RestoreCommit: &command.RestoreCommit{Id: "r"}}})
}

// Laws 7 and 8: restore(snapshot(S)) is S, and revisions only go up.
func TestRestoreGivesTheSameState(t *testing.T) {
	source := open(t, t.TempDir())
	defer shut(t, source)
	must(t, apply(t, source, stagePolicy(t, "package a")))
	must(t, apply(t, source, activate(1, 0)))
	must(t, apply(t, source, stagePolicy(t, "package b")))
	must(t, apply(t, source, &command.Command{Principal: "token:t", Time: began, Op: &command.Command_PolicyShadow{PolicyShadow: &command.PolicyShadow{Revision: 2, Share: 0.5}}}))
	for _, kind := range setting.Kinds() {
		must(t, apply(t, source, &command.Command{Principal: "token:t", Time: began, Op: &command.Command_Put{Put: &command.Put{
			Kind: command.Kind_SETTING, Service: string(kind), Namespace: "shop", Name: "a", Spec: []byte(`{"of":"the source"}`)}}}))
	}
	for i := range 20 {
		must(t, apply(t, source, service(fmt.Sprintf("s%d", i), 0)))
		must(t, apply(t, source, instance(fmt.Sprintf("s%d", i), "i", i+1, 0)))
	}
	file := export(t, source)

	for name, before := range map[string]int{"fresh": 0, "ahead": 90} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			m := open(t, dir)
			for i := range before {
				must(t, apply(t, m, service(fmt.Sprintf("old%d", i), 0)))
			}
			was := m.View().Revision
			must(t, restore(t, m, file))
			check := func(v *fsm.View) {
				t.Helper()
				if v.Hash != source.View().Hash || v.Registry.Counts() != source.View().Registry.Counts() || v.Policy.Active().Number != 1 {
					t.Errorf("restored state differs: %v %v", v.Hash, v.Registry.Counts())
				}
				if shadow := v.Policy.Shadow(); shadow == nil || shadow.Number != 2 || shadow.Share != 0.5 {
					t.Errorf("the shadow is %+v", shadow)
				}
				for _, kind := range setting.Kinds() {
					got, ok := v.Settings.Get(kind, "shop", "a")
					want, _ := source.View().Settings.Get(kind, "shop", "a")
					if !ok || string(got.JSON) != string(want.JSON) {
						t.Errorf("%s: %+v, want %+v", kind, got, want)
					}
				}
				if v.Revision <= was || v.Revision <= source.View().Revision {
					t.Errorf("revision %d is not above %d and %d", v.Revision, was, source.View().Revision)
				}
				if v.Restoring != "" {
					t.Error("the restore has not ended")
				}
			}
			check(m.View())
			shut(t, m)
			m = open(t, dir)
			defer shut(t, m)
			check(m.View())
			must(t, apply(t, m, service("more", 0)))
		})
	}
}

// A snapshot is not signed: what no edge lets pass does not come in by one.
func TestRestoreRefusesWhatNoEdgeLetsPass(t *testing.T) {
	const meta = `"revision":1,"created_at":"2026-01-02T03:04:05Z","updated_at":"2026-01-02T03:04:05Z","created_by":"x"}`
	cart := [3]string{"services", "default/cart", `{"namespace":"default","name":"cart","protocol":"rest","owner":"","description":"","tags":[],"metadata":{},` + meta}
	for name, records := range map[string][][3]string{
		"a lease in the past": {cart, {"instances", "default/cart/i", `{"namespace":"default","service":"cart","id":"i","address":"a","port":1,"version":"","zone":"","weight":1,"tags":[],"metadata":{},"ttl":"-1h","deregister_after":"1h","checks":[],"status":"passing",` + meta}},
		"no name":             {{"services", "de/fault/cart", strings.Replace(cart[2], `"default"`, `"de/fault"`, 1)}},
		"no active policy":    {{"policy", "active", `{"revision":9}`}},
	} {
		t.Run(name, func(t *testing.T) {
			m := open(t, t.TempDir())
			defer shut(t, m)
			var file bytes.Buffer
			w, err := snapshot.NewWriter(&file, snapshot.Header{ClusterID: "c", Revision: 1})
			for _, r := range records {
				if err == nil {
					err = w.Section(r[0])
				}
				if err == nil {
					err = w.Put(r[1], []byte(r[2]))
				}
			}
			if err == nil {
				err = w.Close()
			}
			if err != nil {
				t.Fatal(err)
			}
			if r := restore(t, m, file.Bytes()); !fault.Is(r.Err, fault.InvalidSnapshot) {
				t.Errorf("error = %v, want invalid_snapshot", r.Err)
			}
		})
	}
}

func TestRestoreRefusesWrites(t *testing.T) {
	m := open(t, t.TempDir())
	defer shut(t, m)
	must(t, apply(t, m, service("a", 0)))
	want := m.View().Hash
	file := export(t, m)
	file[len(file)/2] ^= 1
	if r := restore(t, m, file); !fault.Is(r.Err, fault.InvalidSnapshot) {
		t.Errorf("a damaged snapshot: %v", r.Err)
	}
	if m.View().Hash != want || m.View().Restoring != "" {
		t.Error("a refused restore left traces")
	}
	must(t, apply(t, m, &command.Command{Time: began, Op: &command.Command_RestoreBegin{RestoreBegin: &command.RestoreBegin{Id: "x"}}}))
	if r := apply(t, m, service("b", 0)); !fault.Is(r.Err, fault.NotReady) {
		t.Errorf("a write during a restore: %v", r.Err)
	}
	must(t, apply(t, m, &command.Command{Time: began, Op: &command.Command_RestoreAbort{RestoreAbort: &command.RestoreAbort{Id: "x"}}}))
	must(t, apply(t, m, service("b", 0)))
}

func TestWaiting(t *testing.T) {
	m := open(t, t.TempDir())
	defer shut(t, m)
	must(t, apply(t, m, service("a", 0)))
	must(t, apply(t, m, service("b", 0)))
	expired, cancel := context.WithCancel(context.Background())
	cancel()
	if err := m.AwaitRevision(expired, 3); !errors.Is(err, context.Canceled) {
		t.Errorf("a revision of the future: %v", err)
	}
	reached := make(chan error)
	go func() { reached <- m.AwaitRevision(context.Background(), 3) }()
	changedA, releaseA := m.Watch("default", "a")
	changedB, releaseB := m.Watch("default", "b")
	defer releaseA()
	defer releaseB()
	must(t, apply(t, m, instance("a", "i", 1, 0)))
	if err := <-reached; err != nil {
		t.Error(err)
	}
	<-changedA
	select {
	case <-changedB:
		t.Error("a change to a woke who watches b")
	default:
	}
}

// An entry of a newer format halts the node instead of being skipped: nothing
// of it and behind it is applied, or goes into a snapshot.
func TestNewerFormatHalts(t *testing.T) {
	dir := t.TempDir()
	m := open(t, dir)
	entry := func(index uint64, format uint32) *raft.Log {
		data, err := proto.Marshal(&command.Batch{Format: format})
		if err != nil {
			t.Fatal(err)
		}
		return &raft.Log{Index: index, Type: raft.LogCommand, Data: data}
	}
	m.ApplyBatch([]*raft.Log{entry(1, command.Base), entry(2, command.Format), entry(3, command.Format+1), entry(4, command.Base)})
	m.ApplyBatch([]*raft.Log{entry(5, command.Base)})
	select {
	case <-m.Halted():
	default:
		t.Fatal("it goes on")
	}
	if err := m.Trouble(); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), fmt.Sprintf("feature level %d", command.Format+1)) {
		t.Errorf("it says %v", err)
	}
	if m.AppliedIndex() != 2 || m.Level() != command.Format {
		t.Errorf("applied %d at level %d", m.AppliedIndex(), m.Level())
	}
	if _, err := m.Snapshot(); err == nil {
		t.Error("it gives a snapshot that Raft takes for one of entry 5")
	}
	shut(t, m)

	m = open(t, dir) // as it was, so the entry is seen again
	if m.AppliedIndex() != 2 || m.Level() != command.Format || m.Trouble() != nil {
		t.Errorf("opened again: applied %d at level %d, %v", m.AppliedIndex(), m.Level(), m.Trouble())
	}
	shut(t, m)
	db, err := bolt.Open(filepath.Join(dir, "state.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		return tx.Bucket([]byte("meta")).Put([]byte("level"), binary.BigEndian.AppendUint64(nil, command.Format+1))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := fsm.Open(dir, fsm.Options{}); !fault.Is(err, fault.Conflict) {
		t.Errorf("a state of a newer level: %v", err)
	}
}

// An entry that is none stops the node with a panic.
func TestGarbageStops(t *testing.T) {
	m := open(t, t.TempDir())
	defer shut(t, m)
	defer func() {
		if recover() == nil {
			t.Error("applied")
		}
	}()
	m.Apply(&raft.Log{Index: 1, Type: raft.LogCommand, Data: []byte{0xff, 0xff}})
}

func TestStateFileOfAnotherProcess(t *testing.T) {
	dir := t.TempDir()
	m := open(t, dir)
	defer shut(t, m)
	if _, err := fsm.Open(dir, fsm.Options{}); err == nil {
		t.Errorf("two machines opened %s", filepath.Join(dir, "state.db"))
	}
}

func signedPolicy(t testing.TB, number uint64) *command.Command {
	t.Helper()
	c := stagePolicy(t, "package a")
	c.GetPolicyStage().Origin = policy.Origin{Signature: &policy.Signature{Key: "ci", Kind: "opa", Number: number}}.Encode()
	return c
}

// A snapshot does not bring back the time in which an old signed policy was
// still to come.
func TestRestoreKeepsTheHighestSignedNumber(t *testing.T) {
	dir := t.TempDir()
	m := open(t, dir)
	must(t, apply(t, m, signedPolicy(t, 4)))
	file := export(t, m)
	must(t, apply(t, m, signedPolicy(t, 9)))
	must(t, restore(t, m, file))
	check := func() {
		t.Helper()
		if v := m.View(); v.Policy.Signed() != 9 || v.Policy.Len() != 1 {
			t.Errorf("the highest is %d with %d revisions", v.Policy.Signed(), v.Policy.Len())
		}
		for _, n := range []uint64{4, 9} {
			if r := apply(t, m, signedPolicy(t, n)); !errors.Is(r.Err, policy.ErrOvertaken) {
				t.Errorf("number %d: %v", n, r.Err)
			}
		}
	}
	check()
	want := m.View().Hash
	shut(t, m)
	m = open(t, dir)
	defer shut(t, m)
	if m.View().Hash != want {
		t.Error("after a restart the state is another")
	}
	check()
	must(t, apply(t, m, signedPolicy(t, 10)))

	// A cluster that had seen less takes what the snapshot knows.
	fresh := open(t, t.TempDir())
	defer shut(t, fresh)
	must(t, apply(t, fresh, signedPolicy(t, 2)))
	must(t, restore(t, fresh, file))
	if got := fresh.View().Policy.Signed(); got != 4 {
		t.Errorf("the highest is %d, want that of the snapshot", got)
	}
}
