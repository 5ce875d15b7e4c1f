package node_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/fsm"
	"github.com/muster-registry/muster/node"
)

// A snapshot is restored into the empty data directory of one node; the others
// join it, and the new cluster has everything but the old one's name.
func TestOfflineRestore(t *testing.T) {
	t.Parallel()
	file, want := someServices(t)
	tr := newTrial(t, 3)
	cfg, err := node.Load(tr.nodes[1].config, func(string) string { return "" })
	must(t, err)
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	broken := bytes.Clone(file)
	broken[len(broken)/2] ^= 1
	if _, err := node.RestoreOffline([]*node.Config{cfg}, bytes.NewReader(broken), quiet); !fault.Is(err, fault.InvalidSnapshot) {
		t.Errorf("a damaged snapshot: %v", err)
	}
	if left, err := os.ReadDir(cfg.DataDir); err != nil || len(left) != 0 {
		t.Errorf("it has left %v, %v", left, err)
	}
	plan, err := node.RestoreOffline([]*node.Config{cfg}, bytes.NewReader(file), quiet)
	must(t, err)
	if plan.Hash != want.Hash {
		t.Errorf("state %s, the snapshot's is %s", plan.Hash, want.Hash)
	}
	if _, err := node.RestoreOffline([]*node.Config{cfg}, bytes.NewReader(file), quiet); !fault.Is(err, fault.Conflict) {
		t.Errorf("over the data of a node: %v", err)
	}
	tr.startAll()
	e := newEdge(t, tr)
	for i := range tr.nodes {
		a := e.send(t, i, "HTTP/2.0", call{method: "GET", path: "/v1/namespaces/default/services/s7?consistency=linearizable"})
		if a.status != 200 {
			t.Errorf("%s: %d %s", tr.nodes[i].id, a.status, a.body)
		}
	}
	a := e.send(t, 0, "HTTP/2.0", call{"PUT", "/v1/namespaces/default/services/after", strings.NewReader("{}"), nil})
	revision, err := strconv.ParseUint(a.header.Get("Muster-Revision"), 10, 64)
	if a.status != 201 || err != nil || revision <= want.Header.Revision {
		t.Errorf("a change after the restore: %d %s, revision %d after %d", a.status, a.body, revision, want.Header.Revision)
	}
	var status struct {
		ClusterID string           `json:"cluster_id"`
		Nodes     []map[string]any `json:"nodes"`
	}
	must(t, json.Unmarshal(e.send(t, 2, "HTTP/2.0", call{method: "GET", path: "/v1/cluster/status"}).body, &status))
	if len(status.Nodes) != 3 || status.ClusterID == "" || status.ClusterID == want.Header.ClusterID {
		t.Errorf("the new cluster is %+v", status)
	}
}

// someServices is a snapshot of some services, and what it holds.
func someServices(t *testing.T) ([]byte, *fsm.Plan) {
	t.Helper()
	source := newTrial(t, 1)
	source.startAll()
	e := newEdge(t, source)
	for i := range 20 {
		if a := e.send(t, 0, "HTTP/2.0", call{"PUT", fmt.Sprintf("/v1/namespaces/default/services/s%d", i), strings.NewReader("{}"), nil}); a.status != 201 {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	file := e.send(t, 0, "HTTP/2.0", call{method: "GET", path: "/v1/snapshot"}).body
	want, err := fsm.Inspect(bytes.NewReader(file))
	must(t, err)
	source.stop(0)
	return file, want
}

// One command restores into the data directories of all nodes. They are voters of
// one cluster from their start, with one state, and the disk of one that was left
// out of a second attempt has no part in it.
func TestOfflineRestoreOfAllMembers(t *testing.T) {
	t.Parallel()
	file, want := someServices(t)
	tr := newTrial(t, 3)
	var cfgs []*node.Config
	for i := range tr.nodes {
		cfg, err := node.Load(tr.nodes[i].config, func(string) string { return "" })
		must(t, err)
		cfgs = append(cfgs, cfg)
	}
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	if _, err := node.RestoreOffline([]*node.Config{cfgs[0], cfgs[0]}, bytes.NewReader(file), quiet); !fault.Is(err, fault.Conflict) {
		t.Errorf("one node twice: %v", err)
	}
	nowhere := *cfgs[1]
	nowhere.Advertise.Peer = ":8300"
	if _, err := node.RestoreOffline([]*node.Config{cfgs[0], &nowhere}, bytes.NewReader(file), quiet); !fault.Is(err, fault.BadRequest) {
		t.Errorf("a node that nobody can reach: %v", err)
	}
	_, err := node.RestoreOffline(cfgs, bytes.NewReader(file), quiet)
	must(t, err)
	// Again, and the third disk is of the first attempt.
	for _, cfg := range cfgs[:2] {
		must(t, os.RemoveAll(cfg.DataDir))
	}
	third := filepath.Join(cfgs[2].DataDir, "raft")
	must(t, os.Rename(cfgs[2].DataDir, cfgs[2].DataDir+".first"))
	_, err = node.RestoreOffline(cfgs, bytes.NewReader(file), quiet)
	must(t, err)
	second, err := os.ReadFile(filepath.Join(third, "disk"))
	must(t, err)
	must(t, os.Rename(cfgs[2].DataDir, cfgs[2].DataDir+".second"))
	must(t, os.Rename(cfgs[2].DataDir+".first", cfgs[2].DataDir))
	if first, err := os.ReadFile(filepath.Join(third, "disk")); err != nil || bytes.Equal(first, second) {
		t.Fatalf("both attempts gave the disk the name %s, %v", first, err)
	}
	tr.start(0)
	tr.start(1)
	tr.start(2)
	tr.awaitReady(0)
	tr.awaitReady(1)
	if err := tr.client(tr.token, 2).Ready(t.Context()); err == nil {
		t.Error("the disk of the first attempt is ready")
	}
	tr.stop(2)
	must(t, os.RemoveAll(cfgs[2].DataDir))
	must(t, os.Rename(cfgs[2].DataDir+".second", cfgs[2].DataDir))
	tr.start(2)
	tr.awaitReady(2)
	e := newEdge(t, tr)
	for i := range tr.nodes {
		a := e.send(t, i, "HTTP/2.0", call{method: "GET", path: "/v1/namespaces/default/services/s7?consistency=linearizable"})
		if a.status != 200 {
			t.Errorf("%s: %d %s", tr.nodes[i].id, a.status, a.body)
		}
	}
	var status struct {
		ClusterID string `json:"cluster_id"`
		Nodes     []struct {
			Role string `json:"role"`
			Hash struct {
				Hash string `json:"hash"`
			} `json:"state_hash"`
		} `json:"nodes"`
	}
	must(t, json.Unmarshal(e.send(t, 2, "HTTP/2.0", call{method: "GET", path: "/v1/cluster/status"}).body, &status))
	if len(status.Nodes) != 3 || status.ClusterID == "" || status.ClusterID == want.Header.ClusterID {
		t.Errorf("the new cluster is %+v", status)
	}
	for _, n := range status.Nodes {
		if n.Role == "non-voter" || n.Hash.Hash != want.Hash.String() {
			t.Errorf("a member is %+v, the snapshot's state %s", n, want.Hash)
		}
	}
}
