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
	tr := newTrial(t, 3)
	tr.startAll()
	ctx := context.Background()
	_, err := tr.client(tr.token, 0).Put(ctx, cart, []byte(`{"protocol":"rest","owner":"shop"}`), client.Write{})
	must(t, err)
	tr.stop(2)
	// A byte on its disk is not what was written there.
	state := filepath.Join(tr.dir, "n3", "state", "state.db")
	db, err := bolt.Open(state, 0o600, nil)
	must(t, err)
	must(t, db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte("services"))
		key, record := b.Cursor().First()
		other := bytes.Replace(record, []byte(`"shop"`), []byte(`"shoq"`), 1)
		if bytes.Equal(record, other) {
			return errors.New("there is no owner in " + string(record))
		}
		return b.Put(bytes.Clone(key), other)
	}))
	must(t, db.Close())
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
}
