package jepsen

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

const definition = `{"openapi":"3.0.3","info":{"title":"cart","version":"1"},"paths":{"/carts/{id}":{"get":{"operationId":"getCart",` +
	`"parameters":[{"name":"id","in":"path","required":true,"schema":{"type":"string"}}],"responses":{"200":{"description":"a cart"}}}}}}`

const cartPath = "/v1/namespaces/" + namespace + "/services/cart/versions/1.0.0"

// TestSnapshot: what `muster snapshot save` took from one cluster is, after
// `muster snapshot restore` into a fresh one, on each of its nodes, to the last
// bit of every record.
func TestSnapshot(t *testing.T) {
	x := cluster(t, nil)
	s := Set{History: x.history, Service: "cart", Patience: patience}
	x.fill(s, x.Nodes, "i", 500)
	for i := range 100 {
		op := Registers{History: x.history, Patience: patience}.Set(x.ctx, x.Nodes[i%3].Client, 0, fmt.Sprintf("s%d", i), "x")
		if op.Outcome != OK {
			t.Fatalf("%s: %d %s %s", op.Key, op.Status, op.Code, op.Detail)
		}
	}
	x.do(x.Nodes[1], http.MethodPut, cartPath, `{"format":"openapi","document":`+definition+`}`)
	x.do(x.Nodes[2], http.MethodPost, "/v1/policy/revisions?activate=true",
		`{"modules":{"authz.rego":"package api.registry.authz\n\ndefault allow := false\n\nallow if input.resource.name != \"forbidden\"\n"},"note":"saved along"}`)
	source := x.converged()
	saved := x.get(x.Nodes[0], "/v1/namespaces/"+namespace+"/services/s7")

	file := filepath.Join(filepath.Dir(x.history.Path), "cluster.snapshot")
	_, err := x.Muster(x.ctx, "snapshot", "save", file)
	x.must(err)
	content, err := os.ReadFile(file)
	x.must(err)

	dir := folder(t)
	fresh := &test{T: t, history: x.history, ctx: x.ctx, Cluster: launch(x.ctx, t, dir, nil)}
	empty := fresh.converged()

	damaged := bytes.Clone(content)
	damaged[len(damaged)/2] ^= 1
	broken := filepath.Join(dir, "damaged.snapshot")
	x.must(os.WriteFile(broken, damaged, 0o600))
	if _, err := fresh.Muster(x.ctx, "snapshot", "restore", broken); err == nil {
		t.Error("a snapshot with one wrong bit was restored")
	} else {
		t.Logf("a snapshot with one wrong bit: %v", err)
	}
	if after := fresh.converged(); after.Hash != empty.Hash {
		t.Errorf("a refused snapshot has changed the state from %v to %v", empty, after)
	}

	begin := time.Now()
	_, err = fresh.Muster(x.ctx, "snapshot", "restore", file)
	x.must(err)
	t.Logf("%d bytes restored in %s", len(content), since(begin))
	x.history.Mark("", "restored into a fresh cluster")
	restored := fresh.converged()
	if restored.Hash != source.Hash {
		t.Errorf("the restored cluster has state hash %s, its source %s", restored.Hash, source.Hash)
	}
	if restored.Revision < source.Revision {
		t.Errorf("the revision went back from %d to %d", source.Revision, restored.Revision)
	}
	for _, n := range fresh.Nodes {
		found, err := s.Members(x.ctx, n.Client, "linearizable")
		x.must(err)
		ops := x.history.Ops(func(op *Op) bool { return op.Kind == Write && op.Key[0] == 'i' })
		if _, err := CheckSet(ops, found); err != nil {
			t.Errorf("on the restored %s: %v", n.ID, err)
		}
		if got := fresh.get(n, cartPath+"/document"); string(got) != definition {
			t.Errorf("on the restored %s the definition is %.200q", n.ID, got)
		}
		if got := fresh.get(n, "/v1/namespaces/"+namespace+"/services/s7"); !bytes.Equal(got, saved) {
			t.Errorf("on the restored %s the record is %s, in the source it was %s", n.ID, got, saved)
		}
	}
	// The restored policy decides, and the restored cluster goes on.
	r := Registers{History: x.history, Patience: patience}
	if op := r.Set(x.ctx, fresh.Nodes[0].Client, 0, "forbidden", "x"); op.Code != "policy_denied" {
		t.Errorf("the restored policy should refuse this; it was %s %d %s", op.Outcome, op.Status, op.Code)
	}
	if op := r.Set(x.ctx, fresh.Nodes[1].Client, 0, "after", "x"); op.Outcome != OK || op.Revision <= restored.Revision {
		t.Errorf("a write after the restore: %s %d %s, revision %d after %d", op.Outcome, op.Status, op.Code, op.Revision, restored.Revision)
	}
	fresh.converged()
}

// do makes a request that must succeed.
func (x *test) do(n *Node, method, path, body string) []byte {
	x.Helper()
	ctx, cancel := context.WithTimeout(x.ctx, patience)
	defer cancel()
	var content []byte
	if body != "" {
		content = []byte(body)
	}
	a := n.Call(ctx, method, path, content)
	if a.Outcome != OK {
		x.Fatalf("%s %s at %s: %s %.500s", method, path, n.ID, a, a.Body)
	}
	return a.Body
}

func (x *test) get(n *Node, path string) []byte {
	x.Helper()
	return x.do(n, http.MethodGet, path+"?consistency=linearizable", "")
}
