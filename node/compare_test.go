package node_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"

	"github.com/muster-registry/muster/client"
)

// Law 4: a node whose state is not the cluster's is found and leaves service,
// stays out of it across a restart, and comes back with an empty data folder.
func TestNodeThatDiffersLeavesService(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	tr.startAll()
	ctx := context.Background()
	_, err := tr.client(tr.token, 0).Put(ctx, cart, []byte(`{"protocol":"rest","owner":"shop"}`), client.Write{})
	must(t, err)
	tr.stop(2)
	tr.spoil(2, "shop", "shoq")
	// Something is written, so that there is an entry that all have seen.
	_, err = tr.client(tr.token, 0).Put(ctx, instanceRef("i1"), []byte(`{"address":"10.0.0.1","port":80}`), client.Write{})
	must(t, err)

	ready := func(i int) error { return tr.client("", i).Ready(ctx) }
	leaves := func() {
		t.Helper()
		until(t, "the node that differs leaves service", func() error {
			if ready(2) == nil {
				return errors.New("it is ready")
			}
			_, err := os.Stat(filepath.Join(tr.dir, "n3", "diverged"))
			return err
		})
	}
	tr.start(2)
	leaves()
	tr.awaitRaised(0, "state_differs n3: the state of this node differs")
	tr.tells(2, "state_differs")
	if rec, err := tr.client(tr.token, 2).Get(ctx, cart, client.Read{}); err == nil {
		t.Errorf("it answers %s", rec.JSON)
	}
	for i := range 2 {
		if err := ready(i); err != nil {
			t.Errorf("node %d: %v", i+1, err)
		}
	}
	tr.stop(2)
	tr.start(2)
	until(t, "the node says again why it does not serve", func() error {
		if err := ready(2); err == nil || !strings.Contains(err.Error(), "differs") {
			return fmt.Errorf("after a restart: %v", err)
		}
		return nil
	})
	tr.stop(2)
	must(t, os.RemoveAll(filepath.Join(tr.dir, "n3")))
	tr.start(2)
	tr.awaitReady(2)
	rec, err := tr.client(tr.token, 2).Get(ctx, cart, client.Read{})
	if err != nil || !bytes.Contains(rec.JSON, []byte(`"owner":"shop"`)) {
		t.Errorf("with a new data folder: %s, %v", rec.JSON, err)
	}
	tr.awaitOver(0, "state_differs")
}

// spoil makes a byte on a stopped node's disk another than was written there: it
// gives the first service another owner.
func (tr *trial) spoil(i int, owner, other string) {
	tr.t.Helper()
	db, err := bolt.Open(filepath.Join(tr.dir, tr.nodes[i].id, "state", "state.db"), 0o600, nil)
	must(tr.t, err)
	must(tr.t, db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte("services"))
		key, record := b.Cursor().First()
		spoilt := bytes.Replace(record, []byte(`"`+owner+`"`), []byte(`"`+other+`"`), 1)
		if bytes.Equal(record, spoilt) {
			return errors.New("there is no such owner in " + string(record))
		}
		// Without its check, with which the node would not even start.
		return errors.Join(tx.Bucket([]byte("meta")).Delete([]byte("check")), b.Put(bytes.Clone(key), spoilt))
	}))
	must(tr.t, db.Close())
}

// Where no majority has one state nobody can say who is right, and nobody leaves
// service; where one has it again, the node that has another does.
func TestNoMajorityHasOneState(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	tr.startAll()
	c := tr.client(tr.token, 0)
	_, err := c.Put(t.Context(), cart, []byte(`{"protocol":"rest","owner":"shop"}`), client.Write{})
	must(t, err)
	tr.sameState()
	for i := range tr.nodes {
		tr.stop(i)
	}
	tr.spoil(1, "shop", "shoq")
	tr.spoil(2, "shop", "shor")
	for i := range tr.nodes {
		tr.start(i)
	}
	for i := range tr.nodes {
		tr.awaitReady(i)
	}
	tr.put(0, "later") // an entry that all have seen
	lead, err := tr.leader(0)
	must(t, err)
	tr.awaitRaised(0, "state_split "+tr.nodes[lead].id+": the nodes differ in their state, and no majority agrees")
	tr.tells(lead, "state_split")
	for i := range tr.nodes {
		if err := tr.client("", i).Ready(t.Context()); err != nil {
			t.Errorf("%s: %v", tr.nodes[i].id, err)
		}
	}
	for i := range tr.nodes {
		tr.stop(i)
	}
	tr.spoil(1, "shoq", "shop") // two have one state again
	for i := range tr.nodes {
		tr.start(i)
	}
	tr.put(0, "last")
	tr.awaitRaised(0, "state_differs n3: ")
	tr.awaitOver(0, "state_split")
}
