package node_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/audit"
	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/fault"
)

func (tr *trial) trail(i int) string {
	return filepath.Join(tr.dir, tr.nodes[i].id, "audit", "audit.log")
}

// lines gives the finished lines of a node's trail that match.
func (tr *trial) lines(i int, match func(*audit.Entry) bool) (found []audit.Entry) {
	tr.t.Helper()
	files, err := filepath.Glob(tr.trail(i) + "*")
	must(tr.t, err)
	for _, f := range files {
		b, err := os.ReadFile(f)
		must(tr.t, err)
		for line := range bytes.Lines(b) {
			var e audit.Entry
			if bytes.HasSuffix(line, []byte("\n")) {
				must(tr.t, json.Unmarshal(line, &e))
				if match(&e) {
					found = append(found, e)
				}
			}
		}
	}
	return found
}

// await waits for one line and no more.
func (tr *trial) awaitLine(i int, what string, match func(*audit.Entry) bool) audit.Entry {
	tr.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		found := tr.lines(i, match)
		if len(found) == 1 {
			return found[0]
		}
		if len(found) > 1 || time.Now().After(deadline) {
			tr.t.Fatalf("%s: %d lines in the trail of node %d", what, len(found), i+1)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestAuditTrail: each change stands once in every node's trail, each refused
// call once in that of the node it was sent to; the trails verify, also after
// a restart of all.
func TestAuditTrail(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	tr.startAll()
	ctx := context.Background()
	one := tr.client(tr.token, 1)
	rec, err := one.Put(ctx, cart, []byte(`{"protocol":"rest","owner":"shop"}`), client.Write{})
	must(t, err)
	const refusing = `{"modules":{"w.rego":"package api.registry.authz\n\nimport rego.v1\n\ndefault allow := true\n\ndeny contains \"owner is missing\" if input.resource.payload.owner == \"\"\n"}}`
	if _, err := one.Push(ctx, []byte(refusing), true); err != nil {
		t.Fatal(err)
	}
	second, err := one.Put(ctx, client.Ref{Kind: client.Service, Namespace: "default", Name: "desk"}, []byte(`{"protocol":"rest","owner":"shop"}`), client.Write{})
	must(t, err)

	for i := range tr.nodes {
		change := func(revision uint64) audit.Entry {
			return tr.awaitLine(i, fmt.Sprintf("revision %d", revision), func(e *audit.Entry) bool { return e.Type == audit.Change && e.Revision == revision })
		}
		if e := change(rec.Revision); e.Principal != "token:operator" || e.Action != "register" || e.Record != "service default/cart" || e.RequestID == "" || e.Outcome != "applied" || e.Node != tr.nodes[i].id {
			t.Errorf("node %d: %+v", i+1, e)
		}
		if e := change(second.Revision); e.DecisionID == "" || e.PolicyRevision != 1 || e.Event != "policy_evaluation" {
			t.Errorf("node %d: a change that a policy allowed: %+v", i+1, e)
		}
		for r := uint64(1); r <= second.Revision; r++ {
			change(r)
		}
	}

	// Refused: nobody, by the policy through a node that does not lead, on the policy port, on the peer port.
	if _, err := tr.client("muster_0000000000000000_wrong", 0).Get(ctx, cart, client.Read{}); client.Code(err) != fault.Unauthenticated {
		t.Errorf("a wrong token: %v", err)
	}
	for i := range tr.nodes {
		if _, err := tr.client(tr.token, i).Put(ctx, client.Ref{Kind: client.Service, Namespace: "default", Name: fmt.Sprintf("nameless%d", i)}, []byte(`{"protocol":"rest"}`), client.Write{}); client.Code(err) != fault.PolicyDenied {
			t.Errorf("through node %d: %v", i+1, err)
		}
	}
	conn, err := tls.Dial("tcp", tr.nodes[2].peer, &tls.Config{InsecureSkipVerify: true})
	if err == nil {
		_, _ = conn.Read(make([]byte, 1)) // TLS 1.3: the refusal comes after the client is done
		_ = conn.Close()
	}
	if e := tr.awaitLine(0, "a wrong token", func(e *audit.Entry) bool { return e.Code == "unauthenticated" }); e.Principal != "anonymous" || e.Status != 401 || e.Source != "127.0.0.1" || !strings.HasPrefix(e.Call, "GET /v1/namespaces/default/services/cart") || e.Action != "lookup" || e.Record != "service default/cart" {
		t.Errorf("%+v", e)
	}
	for i := range tr.nodes {
		e := tr.awaitLine(i, "a refusal by policy", func(e *audit.Entry) bool { return e.Code == "policy_denied" })
		if e.Principal != "token:operator" || e.DecisionID == "" || e.PolicyRevision != 1 || e.Event != "policy_evaluation" || e.Action != "register" || e.Record != fmt.Sprintf("service default/nameless%d", i) {
			t.Errorf("node %d: %+v", i+1, e)
		}
	}
	if e := tr.awaitLine(2, "a stranger on the peer port", func(e *audit.Entry) bool { return e.Type == audit.Connection }); e.Reason == "" || e.Source != "127.0.0.1" {
		t.Errorf("%+v", e)
	}

	// logrotate: moved away, and SIGHUP.
	must(t, os.Rename(tr.trail(0), tr.trail(0)+".1"))
	must(t, syscall.Kill(os.Getpid(), syscall.SIGHUP))
	tr.awaitFile(tr.trail(0))

	for i := range tr.nodes {
		tr.stop(i)
	}
	for i := range tr.nodes {
		tr.start(i)
	}
	for i := range tr.nodes {
		tr.awaitReady(i)
	}
	last, err := tr.client(tr.token, 0).Put(ctx, cart, []byte(`{"protocol":"grpc","owner":"shop"}`), client.Write{})
	must(t, err)
	for i := range tr.nodes {
		for r := uint64(1); r <= last.Revision; r++ {
			tr.awaitLine(i, fmt.Sprintf("after the restart, revision %d", r), func(e *audit.Entry) bool { return e.Type == audit.Change && e.Revision == r })
		}
		files, err := filepath.Glob(tr.trail(i) + "*")
		must(t, err)
		report, err := audit.Verify(files...)
		if err != nil {
			t.Errorf("the trail of node %d: %v", i+1, err)
		} else if report.First != 1 || report.Head.Revision < last.Revision {
			t.Errorf("the trail of node %d: %+v", i+1, report)
		}
	}
}

func (tr *trial) awaitFile(name string) {
	tr.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(name); err == nil {
			return
		}
		if time.Now().After(deadline) {
			tr.t.Fatalf("%s is not there", name)
		}
	}
}

// TestUnwritableTrail: a node whose trail cannot be written takes no changes, and
// takes them again when it can.
func TestUnwritableTrail(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Log("there is no /dev/full here to stand for a full disk")
		return
	}
	tr := newTrial(t, 1)
	tr.startAll()
	ctx := context.Background()
	c := tr.client(tr.token, 0)
	_, err := c.Put(ctx, cart, []byte(`{"protocol":"rest"}`), client.Write{})
	must(t, err)
	must(t, os.Remove(tr.trail(0)))
	must(t, os.Symlink("/dev/full", tr.trail(0)))
	must(t, syscall.Kill(os.Getpid(), syscall.SIGHUP))
	deadline := time.Now().Add(time.Minute)
	for i := 0; ; i++ {
		_, err := c.Put(ctx, instanceRef(fmt.Sprintf("i%d", i)), []byte(`{"address":"10.0.0.1","port":80}`), client.Write{})
		if client.Code(err) == fault.NotReady && strings.Contains(err.Error(), "audit trail") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("changes are still taken: %v", err)
		}
	}
	must(t, os.Remove(tr.trail(0)))
	must(t, syscall.Kill(os.Getpid(), syscall.SIGHUP))
	for {
		_, err := c.Put(ctx, instanceRef("late"), []byte(`{"address":"10.0.0.1","port":80}`), client.Write{})
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("changes are not taken again: %v", err)
		}
	}
}
