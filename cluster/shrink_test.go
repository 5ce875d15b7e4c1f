package cluster

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// A log store that was large once gives its room back, and holds what it held,
// the term and the vote with it. What a crash has left of a copy is not looked at.
func TestLogStoreShrinks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log.db")
	open := func() *raftboltdb.BoltStore {
		s, err := raftboltdb.New(raftboltdb.Options{Path: path, NoSync: true, BoltOptions: storeOptions()})
		must(t, err)
		return s
	}
	size := func() int64 {
		info, err := os.Stat(path)
		must(t, err)
		return info.Size()
	}
	store := open()
	var logs []*raft.Log
	for i := range 1000 {
		logs = append(logs, &raft.Log{Index: uint64(i + 1), Term: 3, Data: make([]byte, 4000)})
	}
	must(t, store.StoreLogs(logs))
	must(t, store.SetUint64([]byte("CurrentTerm"), 3))
	must(t, store.Set([]byte("LastVoteCand"), []byte("n2")))
	must(t, store.DeleteRange(1, 990))
	must(t, store.Close())
	large := size()
	must(t, os.WriteFile(path+".compact", []byte("half of a copy"), 0o600))
	const least = 1 << 20
	must(t, shrink(path, least))
	if now := size(); now > large/4 {
		t.Errorf("of %d bytes %d are left", large, now)
	}
	if _, err := os.Stat(path + ".compact"); !os.IsNotExist(err) {
		t.Errorf("the copy is still there: %v", err)
	}
	small := size()
	must(t, shrink(path, least)) // nothing to gain
	store = open()
	defer store.Close()
	first, _ := store.FirstIndex()
	last, _ := store.LastIndex()
	term, _ := store.GetUint64([]byte("CurrentTerm"))
	vote, _ := store.Get([]byte("LastVoteCand"))
	if first != 991 || last != 1000 || term != 3 || string(vote) != "n2" || size() != small {
		t.Errorf("it holds %d to %d, term %d, a vote for %q", first, last, term, vote)
	}
}
