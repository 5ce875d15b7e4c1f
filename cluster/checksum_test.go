package cluster

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// TestADamagedEntryIsRefused turns bits of an entry in the log's file: none of
// them comes back as an entry that was never written.
func TestADamagedEntryIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log.db")
	open := func() checked {
		store, err := raftboltdb.New(raftboltdb.Options{Path: path, MsgpackUseNewTimeFormat: true})
		if err != nil {
			t.Fatal(err)
		}
		return checked{store}
	}
	entry := raft.Log{Index: 7, Term: 3, Type: raft.LogCommand, Data: []byte("a change that was acknowledged")}
	store := open()
	if err := store.StoreLog(&entry); err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(whole, entry.Data)
	if at < 0 {
		t.Fatal("the entry is not in the file")
	}
	read := func() (l raft.Log, err error) {
		store := open()
		defer store.Close()
		return l, store.GetLog(7, &l)
	}
	if l, err := read(); err != nil || !bytes.Equal(l.Data, entry.Data) || len(l.Extensions) > 0 {
		t.Fatalf("undamaged: %+v, %v", l, err)
	}
	for bit := range 8 * len(entry.Data) {
		damaged := bytes.Clone(whole)
		damaged[at+bit/8] ^= 1 << (bit % 8)
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		if l, err := read(); err == nil {
			t.Fatalf("bit %d is turned, and the entry is %q", bit, l.Data)
		}
	}
}
