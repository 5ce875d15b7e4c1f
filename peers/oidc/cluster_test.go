// Package oidc_test runs the built program beside real identity providers, on
// loopback: zitadel's OpenID provider, and Debian's glewlwyd with an LDAP
// directory behind it.
package oidc_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/muster-registry/muster/peers/cluster"
)

// believers are a cluster that believes providers.
type believers struct {
	*cluster.Cluster
	t        *testing.T
	revision uint64 // of the last answer
}

// newCluster starts a cluster that believes the providers in the text.
func newCluster(t *testing.T, identity string) *believers {
	t.Helper()
	return &believers{Cluster: cluster.New(t, identity), t: t}
}

// call makes one call to a node and gives the status and the stable code.
func (c *believers) call(node int, method, path, token, body string) (status int, code string) {
	c.t.Helper()
	resp, b, err := c.Call(node, method, path, token, body)
	if err != nil {
		c.t.Fatal(err)
	}
	c.revision, _ = strconv.ParseUint(resp.Header.Get("Muster-Revision"), 10, 64)
	var problem struct{ Code, Detail string }
	_ = json.Unmarshal(b, &problem)
	if problem.Code == "identity_provider_unavailable" && resp.Header.Get("Retry-After") == "" {
		c.t.Error("a 503 without Retry-After")
	}
	if bytes.Contains(b, []byte(token)) {
		c.t.Error("the answer repeats the token")
	}
	return resp.StatusCode, problem.Code
}

// lookUp is a call that needs the role viewer.
func (c *believers) lookUp(node int, token string) (int, string) {
	return c.call(node, http.MethodGet, "/v1/services", token, "")
}

// rule gives a role to who has a claim.
func (c *believers) rule(name, role, provider, claim, value string) {
	c.t.Helper()
	body := fmt.Sprintf(`{"role":%q,"match":{"provider":%q,"claims":{%q:%q}}}`, role, provider, claim, value)
	if status, code := c.call(0, http.MethodPut, "/v1/roles/"+name, c.OperatorToken, body); status >= 300 {
		c.t.Fatalf("the rule %s: %d %s", body, status, code)
	}
	after := c.revision
	for i := range c.Nodes { // a node may learn of it a moment after the answer
		path := fmt.Sprintf("/v1/services?wait=30s&min_revision=%d", after)
		if status, code := c.call(i, http.MethodGet, path, c.OperatorToken, ""); status != http.StatusOK {
			c.t.Fatalf("node %d, after the rule: %d %s", i+1, status, code)
		}
	}
}

// want makes the call on every node.
func (c *believers) want(what, token string, status int, code string) {
	c.t.Helper()
	for i := range c.Nodes {
		if s, got := c.lookUp(i, token); s != status || got != code {
			c.t.Errorf("%s, node %d: %d %s, want %d %s", what, i+1, s, got, status, code)
		}
	}
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !is(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after two minutes still not: %s", what)
		}
	}
}

func secretFile(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}
