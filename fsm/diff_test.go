package fsm_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/fsm"
	"github.com/muster-registry/muster/snapshot"
)

func TestDiffNamesWhatLiesBetween(t *testing.T) {
	m := open(t, t.TempDir())
	defer shut(t, m)
	for _, name := range []string{"stays", "goes"} {
		must(t, apply(t, m, service(name, 0)))
	}
	at := must(t, apply(t, m, instance("stays", "i", 1, 0))).Revision
	before := export(t, m)
	must(t, apply(t, m, instance("stays", "i", 2, at)))
	must(t, apply(t, m, service("comes", 0)))
	must(t, apply(t, m, &command.Command{Principal: "token:t", Time: began, Op: &command.Command_Delete{Delete: &command.Delete{
		Kind: command.Kind_SERVICE, Namespace: "default", Name: "goes", Observed: 2}}}))
	must(t, apply(t, m, stagePolicy(t, "package a")))
	after := export(t, m)

	d, err := fsm.Diff(bytes.NewReader(before), bytes.NewReader(after))
	if err != nil {
		t.Fatal(err)
	}
	want := []fsm.RecordChange{
		{Kind: "instance", Name: "default/stays/i", Change: fsm.Changed},
		{Kind: "policy", Name: "1", Change: fsm.Added},
		{Kind: "service", Name: "default/comes", Change: fsm.Added},
		{Kind: "service", Name: "default/goes", Change: fsm.Removed},
	}
	if !reflect.DeepEqual(d.Changes, want) {
		t.Errorf("changes %+v, want %+v", d.Changes, want)
	}
	if s := d.Kinds["service"]; s == nil || *s != (fsm.Tally{Added: 1, Removed: 1}) {
		t.Errorf("services: %+v", s)
	}
	if same, err := fsm.Diff(bytes.NewReader(after), bytes.NewReader(export(t, m))); err != nil || len(same.Changes) != 0 {
		t.Errorf("a state and itself: %+v, %v", same, err)
	}
	if _, err := fsm.Diff(bytes.NewReader(before), bytes.NewReader(after[:len(after)-1])); !fault.Is(err, fault.InvalidSnapshot) {
		t.Errorf("a truncated snapshot: %v", err)
	}
}

// Neither the dry load of verify nor the restore itself takes a snapshot in
// which one bit was turned, whichever it is.
func TestNoFlippedBitIsRestored(t *testing.T) {
	source := open(t, t.TempDir())
	defer shut(t, source)
	for i := range 30 {
		must(t, apply(t, source, service(fmt.Sprintf("s%d", i), 0)))
		must(t, apply(t, source, instance(fmt.Sprintf("s%d", i), "i", i+1, 0)))
	}
	file := export(t, source)
	m := open(t, t.TempDir())
	defer shut(t, m)
	must(t, apply(t, m, service("mine", 0)))
	was := m.View().Hash
	for range 1000 {
		bit := rand.IntN(len(file) * 8)
		flipped := bytes.Clone(file)
		flipped[bit/8] ^= 1 << (bit % 8)
		if _, err := fsm.Inspect(bytes.NewReader(flipped)); !fault.Is(err, fault.InvalidSnapshot) {
			t.Fatalf("bit %d of %d: verify says %v", bit, len(file)*8, err)
		}
		if r := restore(t, m, flipped); !fault.Is(r.Err, fault.InvalidSnapshot) {
			t.Fatalf("bit %d of %d: the restore says %v", bit, len(file)*8, r.Err)
		}
		if m.View().Hash != was || m.View().Restoring != "" {
			t.Fatalf("bit %d of %d: the refused restore has changed the state", bit, len(file)*8)
		}
	}
}

// The checksums within a snapshot are looked at by whoever announces it; the
// others hold it to what was announced, however whole it is in itself.
func TestAnotherSnapshotThanAnnouncedIsRefused(t *testing.T) {
	source := open(t, t.TempDir())
	defer shut(t, source)
	must(t, apply(t, source, service("a", 0)))
	announced := sha256.Sum256(export(t, source))
	must(t, apply(t, source, service("b", 0)))
	m := open(t, t.TempDir())
	defer shut(t, m)
	was := must(t, apply(t, m, service("mine", 0))).Revision
	hash := m.View().Hash
	for _, c := range []*command.Command{
		{Time: began, Op: &command.Command_RestoreBegin{RestoreBegin: &command.RestoreBegin{Id: "r", Chunks: 1, Sha256: announced[:]}}},
		{Time: began, Op: &command.Command_RestoreChunk{RestoreChunk: &command.RestoreChunk{Id: "r", Data: export(t, source)}}},
	} {
		must(t, apply(t, m, c))
	}
	if r := apply(t, m, &command.Command{Time: began, Op: &command.Command_RestoreCommit{RestoreCommit: &command.RestoreCommit{Id: "r"}}}); !fault.Is(r.Err, fault.InvalidSnapshot) {
		t.Errorf("the restore says %v", r.Err)
	}
	if v := m.View(); v.Hash != hash || v.Restoring != "" || v.Registry.Counts().Services != 1 {
		t.Errorf("at revision %d, after %d, the refused restore has changed the state", v.Revision, was)
	}
}

// A definition is kept in the file alone: a snapshot without it would look
// whole until somebody asks for it.
func TestASnapshotWithoutADefinitionIsRefused(t *testing.T) {
	const meta = `"revision":2,"created_at":"2026-01-02T03:04:05Z","updated_at":"2026-01-02T03:04:05Z","created_by":"x"}`
	const digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" // of abc
	version := `{"namespace":"default","service":"cart","version":"1.0.0","format":"openapi","lifecycle":"published","digest":"` + digest + `","routes":[],"findings":[],` + meta
	service := `{"namespace":"default","name":"cart","protocol":"rest","owner":"","description":"","tags":[],"metadata":{},` + meta
	for definition, ok := range map[string]bool{"abc": true, "abd": false, "": false} {
		var file bytes.Buffer
		w, err := snapshot.NewWriter(&file, snapshot.Header{ClusterID: "c", Revision: 2})
		put := func(bucket, key, value string) {
			if err == nil {
				err = w.Section(bucket)
			}
			if err == nil && key != "" {
				err = w.Put(key, []byte(value))
			}
		}
		put("services", "default/cart", service)
		put("versions", "default/cart/1.0.0", version)
		if definition != "" {
			put("documents", "default/cart/1.0.0@2", definition)
		}
		if err == nil {
			err = w.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fsm.Inspect(&file); ok != (err == nil) || !ok && !fault.Is(err, fault.InvalidSnapshot) {
			t.Errorf("definition %q: %v", definition, err)
		}
	}
}
