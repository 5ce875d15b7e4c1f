package node_test

import (
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/muster-registry/muster/api/opa"
	"github.com/muster-registry/muster/api/rest"
	"github.com/muster-registry/muster/pki"
	"github.com/muster-registry/muster/policy"
)

// asked is one call that an edge answers.
type asked struct {
	base         func(*running) string
	method, path string
	action       policy.Action
	kind         string
	open         bool // answered without a credential
}

// edges lists the calls of every edge. A new room below api belongs in here,
// with all it answers; what answers nobody is nil.
var edges = map[string]func() []asked{
	"door": nil, // the edges are in front of it
	"rpc":  nil, // it has no paths: TestNoMethodWithoutARole
	"rest": func() (all []asked) {
		for _, r := range rest.Table() {
			all = append(all, asked{func(n *running) string { return n.control }, r.Method, r.Path, r.Action, r.Kind, r.Open})
		}
		return all
	},
	"opa": func() (all []asked) {
		for _, r := range opa.Table() {
			all = append(all, asked{func(n *running) string { return n.policy }, r.Method, r.Path, r.Action, r.Kind, r.Open})
		}
		return all
	},
}

var placeholder = regexp.MustCompile(`\{[a-z_.]+\}|\{\$\}`)

// Every call of every edge asks who calls and whether the role allows it:
// without a credential it is 401, with one that no rule knows and with every
// role that the table does not name 403, and nothing has changed.
func TestNoCallWithoutARole(t *testing.T) {
	rooms, err := filepath.Glob("../api/*")
	must(t, err)
	for _, room := range rooms {
		files, err := filepath.Glob(filepath.Join(room, "*.go"))
		must(t, err)
		if _, known := edges[filepath.Base(room)]; !known && len(files) > 0 {
			t.Errorf("this test does not walk the edge %s: list its calls in edges", room)
		}
	}
	tr := newTrial(t, 1)
	tr.startAll()
	e := newEdge(t, tr)
	tokens := map[string]string{}
	for _, role := range policy.Roles() {
		tokens[role] = e.credential(t, role)
	}
	stranger := e.certified(t, pki.Request{ID: "spiffe://muster/ns/shop/sa/stranger"})
	anonymous := &http.Client{Transport: e.http["HTTP/1.1"].Transport}
	n := tr.nodes[0]
	before := e.states(t)
	refused := 0
	for room, calls := range edges {
		if calls == nil {
			continue
		}
		for _, c := range calls() {
			if c.open {
				continue
			}
			path := placeholder.ReplaceAllStringFunc(c.path, func(name string) string {
				return map[string]string{"{$}": "", "{revision}": "1", "{token}": "0123456789abcdef", "{version}": "1.0.0"}[name] + map[bool]string{true: "shop"}[name != "{$}" && name != "{revision}" && name != "{token}" && name != "{version}"]
			})
			url, what := c.base(n)+path, room+" "+c.method+" "+c.path
			req, err := http.NewRequestWithContext(t.Context(), c.method, url, strings.NewReader("{}"))
			must(t, err)
			res, err := anonymous.Do(req)
			must(t, err)
			if a := read(t, res); a.status != 401 {
				t.Errorf("%s without a credential: %d %s", what, a.status, a.body)
			}
			if a := stranger.do(t, c.base(n), c.method, path, "{}"); a.status != 403 {
				t.Errorf("%s as somebody without a role: %d %s", what, a.status, a.body)
			}
			for role, token := range tokens {
				p := policy.Principal{Roles: []string{role}}
				if policy.Permit(p, c.action, c.kind, "shop") == nil || policy.Permit(p, c.action, c.kind, "") == nil {
					continue // it may, and what it does then is for other tests
				}
				req, err := http.NewRequestWithContext(t.Context(), c.method, url, strings.NewReader("{}"))
				must(t, err)
				req.Header.Set("Authorization", "Bearer "+token)
				res, err := anonymous.Do(req)
				must(t, err)
				if a := read(t, res); a.status != 403 {
					t.Errorf("%s as %s: %d %s", what, role, a.status, a.body)
				}
				refused++
			}
		}
	}
	if after := e.states(t); after != before {
		t.Errorf("a refused call changed the state:\nbefore %s\nafter  %s", before, after)
	}
	if refused < 100 {
		t.Errorf("only %d calls with a wrong role were tried", refused)
	}
	if _, err := os.Stat(tr.file(n.id)); err != nil {
		t.Error(err)
	}
}
