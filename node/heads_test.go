package node_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/audit"
	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/fault"
)

// alarms gives what a node says of its trail: in /readyz?verbose and as a metric.
func (tr *trial) alarms(i int) (health string, differs bool) {
	tr.t.Helper()
	get := func(path string) string {
		res, err := http.Get(tr.nodes[i].metrics + path)
		if err != nil {
			return ""
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		must(tr.t, err)
		return string(b)
	}
	for line := range strings.Lines(get("/readyz?verbose")) {
		if strings.Contains(line, "audit trail") {
			health += line
		}
	}
	return health, strings.Contains(get("/metrics"), "\nmuster_audit_differs 1\n")
}

// health gives what a node says in /readyz?verbose.
func (tr *trial) health(i int) string {
	tr.t.Helper()
	res, err := http.Get(tr.nodes[i].metrics + "/readyz?verbose")
	must(tr.t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	must(tr.t, err)
	return string(b)
}

func (tr *trial) awaitAlarm(i int, want string, differs bool) {
	tr.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		health, metric := tr.alarms(i)
		if strings.Contains(health, want) && metric == differs {
			return
		}
		if time.Now().After(deadline) {
			tr.t.Fatalf("node %d says %q, metric %v; want %q, %v", i+1, health, metric, want, differs)
		}
	}
}

// rewrite replaces a text in a trail and makes all hashes right again, as whoever
// is the node's user can.
func rewrite(t *testing.T, file, old, fresh string) {
	t.Helper()
	b, err := os.ReadFile(file)
	must(t, err)
	prev, from := "", false
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		var l struct {
			Hash string `json:"hash"`
		}
		must(t, json.Unmarshal([]byte(line), &l))
		if !from && strings.Contains(line, old) {
			line, from = strings.Replace(line, old, fresh, 1), true
		}
		if at := strings.Index(line, `,"prev":"`); from {
			line = line[:at] + `,"prev":"` + prev + `"`
			sum := sha256.Sum256([]byte(line))
			l.Hash = hex.EncodeToString(sum[:])
			line += `,"hash":"` + l.Hash + `"}` + "\n"
		}
		prev = l.Hash
		out.WriteString(line)
	}
	must(t, os.WriteFile(file, []byte(out.String()), 0o600))
}

// TestAuditHeadInTheCluster: a node tells the cluster of its trail when it stops;
// a trail that was written anew while it was down, with nothing that its own disk
// could tell it by, is an alarm until somebody accepts it.
func TestAuditHeadInTheCluster(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	tr.startAll()
	ctx := context.Background()
	_, err := tr.client(tr.token, 1).Put(ctx, cart, []byte(`{"protocol":"rest","owner":"shop"}`), client.Write{})
	must(t, err)
	tr.awaitLine(0, "the change", func(e *audit.Entry) bool { return e.Record == "service default/cart" })
	for i := range tr.nodes {
		tr.awaitAlarm(i, "[+] the audit trail holds what the cluster knows of it", false)
	}
	verify := func(want bool) string {
		t.Helper()
		list, err := tr.client(tr.token, 1).AuditHeads(ctx)
		must(t, err)
		heads := map[string]audit.Head{}
		for _, h := range list {
			heads[h.Node] = audit.Head{Seq: h.Seq, Hash: h.Hash}
		}
		files, err := filepath.Glob(tr.trail(0) + "*")
		must(t, err)
		if _, err := (audit.Check{Heads: heads}).Verify(files...); (err == nil) != want {
			t.Errorf("verify with the cluster: %v", err)
		}
		r, err := audit.Verify(files...)
		if err != nil {
			t.Errorf("verify alone: %v", err)
		}
		return strings.Join(r.Notes, "\n")
	}
	tr.stop(0)
	verify(true)
	tr.start(0)
	tr.awaitReady(0)
	tr.stop(0) // at once, perhaps before it compared its trail
	begins := tr.lines(0, func(e *audit.Entry) bool { return e.Type == audit.Begin && e.Cause == audit.Start })
	list, err := tr.client(tr.token, 1).AuditHeads(ctx)
	must(t, err)
	if at := slices.IndexFunc(list, func(h client.AuditHead) bool { return h.Node == "n1" }); at < 0 || list[at].Seq < begins[len(begins)-1].Seq {
		t.Errorf("after a short run that began with line %d the cluster knows %v", begins[len(begins)-1].Seq, list)
	}
	tr.start(0)
	tr.awaitReady(0)
	tr.awaitAlarm(0, "[+] the audit trail holds", false)
	tr.stop(0)

	rewrite(t, tr.trail(0), `"principal":"token:operator"`, `"principal":"token:somebody"`)
	must(t, os.Remove(filepath.Join(tr.dir, tr.nodes[0].id, "audit", "head")))
	verify(false)
	tr.start(0)
	tr.awaitReady(0)
	tr.awaitAlarm(0, "[!] line ", true)
	tr.awaitRaised(1, "audit_differs n1: line ")
	tr.tells(0, "audit_differs")
	tr.awaitLine(0, "the alarm", func(e *audit.Entry) bool { return e.Type == audit.Alarmed && e.Reason != "" })
	if notes := verify(false); !strings.Contains(notes, "is not the one that the cluster knows") {
		t.Errorf("the trail itself says %q", notes)
	}
	if err := tr.client(tr.token, 0).ForgetAuditHead(ctx, "n9"); client.Code(err) != fault.NotFound {
		t.Errorf("accepting the trail of no node: %v", err)
	}
	must(t, tr.client(tr.token, 0).ForgetAuditHead(ctx, "n1"))
	tr.awaitAlarm(0, "[+] the audit trail holds", false)
	tr.awaitOver(1, "audit_differs")
	for i := range tr.nodes {
		if e := tr.awaitLine(i, "who accepted it", func(e *audit.Entry) bool { return e.Record == "audit head n1" }); e.Action != "forget" || e.Principal != "token:operator" || e.RequestID == "" {
			t.Errorf("node %d: %+v", i+1, e)
		}
	}
	tr.stop(0)
	verify(true)
}
