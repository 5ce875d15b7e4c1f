package node_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/fault"
)

// lookups gives a policy that knows look-ups only.
func lookups(rules string) []byte {
	b, err := json.Marshal(map[string]any{"modules": map[string]string{"authz.rego": "package api.security.authz\n\n" + rules + "\n"}})
	if err != nil {
		panic(err)
	}
	return b
}

// TestANodeThatCannotCompileLeavesService: one node's engine lacks a built-in.
// As long as it is there to say so, what needs the built-in is not activated;
// when it comes back after that was, it decides nothing until it can.
func TestANodeThatCannotCompileLeavesService(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	const odd = 2
	tr.nodes[odd].unlike.Without = []string{"sprintf"}
	tr.startAll()
	ctx := t.Context()
	e := newEdge(t, tr)
	get := func(node int, path string) (status int, body string) {
		a := e.send(t, node, "HTTP/2.0", call{method: "GET", path: path})
		return a.status, string(a.body)
	}
	c := tr.client(tr.token, 0, 1)
	cart := client.Ref{Kind: client.Service, Namespace: "shop", Name: "cart"}
	_, err := c.Put(ctx, cart, []byte(`{}`), client.Write{})
	must(t, err)
	simple, err := c.Push(ctx, lookups(`allow := true`), true)
	must(t, err)
	rev, err := c.Push(ctx, lookups("default allow := false\n\ndeny contains sprintf(\"no %s\", [\"carts\"]) if input.resource.name == \"cart\""), false)
	must(t, err)
	demanding := number(t, rev)

	_, err = c.Activate(ctx, demanding)
	if !fault.Is(err, fault.InvalidPolicy) || !strings.Contains(err.Error(), tr.nodes[odd].id) || !strings.Contains(err.Error(), "sprintf") {
		t.Fatalf("activated what a living node cannot compile: %v", err)
	}
	if _, err := c.Shadow(ctx, demanding, 1); !fault.Is(err, fault.InvalidPolicy) {
		t.Errorf("made the shadow: %v", err)
	}
	if active := tr.active(0); active != number(t, simple) {
		t.Errorf("policy revision %d is active", active)
	}

	tr.stop(odd)
	tr.eventually("what the node does not hinder is active", func() error {
		_, err := c.Activate(ctx, demanding) // refused for as long as it counts among the living
		return err
	})
	tr.start(odd)
	lone := tr.client(tr.token, odd)
	var readyz string
	tr.eventually("the node is out of service", func() error {
		res, err := e.http["HTTP/1.1"].Get(tr.nodes[odd].control + "/readyz")
		if err != nil {
			return err // it does not listen yet
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		must(t, err)
		status, body := res.StatusCode, string(b)
		if readyz = body; status != 503 || !strings.Contains(body, string(fault.PolicyUnavailable)) {
			return fmt.Errorf("readyz: %d %s", status, body)
		}
		return nil
	})
	if !strings.Contains(readyz, "sprintf") || !strings.Contains(readyz, "opa ") {
		t.Errorf("readyz does not say why: %s", readyz)
	}
	for path, want := range map[string]fault.Code{
		"/v1/discovery/shop/cart": fault.PolicyUnavailable, "/v1/services": fault.PolicyUnavailable,
		"/v1/namespaces/shop/services/cart": fault.PolicyUnavailable, "/v1/cluster/status": "", "/v1/policy/revisions": "",
	} {
		status, body := get(odd, path)
		if want == "" && status != 200 {
			t.Errorf("%s at the node: %d %s", path, status, body)
		} else if want != "" && (status != 503 || !strings.Contains(body, string(want))) {
			t.Errorf("%s at the node: %d %s", path, status, body)
		}
		if want != "" && path != "/v1/services" {
			if status, body := get(0, path); status != 403 || !strings.Contains(body, "no carts") {
				t.Errorf("%s at another node: %d %s", path, status, body)
			}
		}
	}
	if _, err := lone.Authorize(ctx, []byte(`{"input":{"action":"lookup"}}`)); !fault.Is(err, fault.PolicyUnavailable) {
		t.Errorf("a decision at the node: %v", err)
	}
	for i := range tr.nodes {
		want := "muster_policy_unavailable 0"
		if i == odd {
			want = "muster_policy_unavailable 1"
		}
		if line, err := tr.metric(i, "muster_policy_unavailable"); err != nil || line != want {
			t.Errorf("metric of node %d: %q, %v", i+1, line, err)
		}
	}

	tr.awaitRaised(0, "policy_unavailable "+tr.nodes[odd].id+": ")
	tr.tells(odd, "policy_unavailable")
	s, err := c.Status(ctx)
	must(t, err)
	var status struct {
		Nodes []struct {
			ID          string `json:"id"`
			Ready       bool   `json:"ready"`
			Engine      string `json:"engine"`
			PolicyError string `json:"policy_error"`
		} `json:"nodes"`
		Warnings []string `json:"warnings"`
	}
	must(t, json.Unmarshal(s, &status))
	for i, n := range status.Nodes {
		if !strings.HasPrefix(n.Engine, "opa ") || n.Ready != (i != odd) || strings.Contains(n.PolicyError, "sprintf") != (i == odd) {
			t.Errorf("status of %s: %+v", n.ID, n)
		}
	}
	if len(status.Warnings) != 1 || !strings.Contains(status.Warnings[0], tr.nodes[odd].id+" is out of service") {
		t.Errorf("warnings: %q", status.Warnings)
	}

	// A leader decides about every change: this node must not stay one.
	err = c.TransferLeader(ctx, tr.nodes[odd].id)
	t.Logf("the leadership is given to it: %v", err)
	tr.eventually("changes go on", func() error {
		_, err := c.Put(ctx, cart, []byte(`{"description":"x"}`), client.Write{})
		return err
	})
	tr.eventually("another node leads", func() error {
		s, err := c.Status(ctx)
		if err != nil {
			return err
		}
		var status struct {
			Leader string `json:"leader"`
		}
		must(t, json.Unmarshal(s, &status))
		if status.Leader == "" || status.Leader == tr.nodes[odd].id {
			return fmt.Errorf("%q leads", status.Leader)
		}
		return nil
	})

	// Through the node itself it can be told of a policy that it understands.
	_, err = lone.Rollback(ctx)
	must(t, err)
	tr.awaitReady(odd)
	if status, body := get(odd, "/v1/discovery/shop/cart"); status != 200 {
		t.Errorf("a look-up after it is back: %d %s", status, body)
	}
	if line, err := tr.metric(odd, "muster_policy_unavailable"); err != nil || line != "muster_policy_unavailable 0" {
		t.Errorf("metric of the node that is back: %q, %v", line, err)
	}
	tr.awaitOver(0, "policy_unavailable")
}

func number(t *testing.T, rec *client.Record) uint64 {
	t.Helper()
	var r struct {
		Revision uint64 `json:"revision"`
	}
	must(t, json.Unmarshal(rec.JSON, &r))
	return r.Revision
}

// active is the number of the active policy revision, as a node has it.
func (tr *trial) active(i int) (active uint64) {
	tr.t.Helper()
	items, err := tr.client(tr.token, i).Policies(tr.t.Context())
	must(tr.t, err)
	for _, item := range items {
		var r struct {
			Revision uint64 `json:"revision"`
			State    string `json:"state"`
		}
		must(tr.t, json.Unmarshal(item, &r))
		if r.State == "active" {
			active = r.Revision
		}
	}
	return active
}

// eventually waits until it holds.
func (tr *trial) eventually(what string, holds func() error) {
	tr.t.Helper()
	ctx, cancel := context.WithTimeout(tr.t.Context(), 2*time.Minute)
	defer cancel()
	for {
		err := holds()
		if err == nil {
			return
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			tr.t.Fatalf("not in time: %s: %v", what, err)
		}
	}
}

// metric gives the line of a node's metrics that begins with the name.
func (tr *trial) metric(i int, name string) (line string, err error) {
	res, err := http.Get(tr.nodes[i].metrics + "/metrics")
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), name) {
			return lines.Text(), nil
		}
	}
	return "", lines.Err()
}
