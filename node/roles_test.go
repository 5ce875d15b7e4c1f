package node_test

import (
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/muster-registry/muster/policy"
)

// ledger is testdata/roles.txt: which roles may make each call, by edge, method
// and path. It is written by hand, and knows nothing of what the routes say.
type ledger struct {
	may  map[string][]string
	left map[string]bool // rows that no call was looked up by
}

func readLedger(t *testing.T) *ledger {
	t.Helper()
	b, err := os.ReadFile("testdata/roles.txt")
	must(t, err)
	l := &ledger{map[string][]string{}, map[string]bool{}}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] == "#" {
			continue
		}
		if len(f) < 4 || l.left[strings.Join(f[:3], " ")] {
			t.Fatalf("not a row, or a second one of the call: %s", line)
		}
		call, roles := strings.Join(f[:3], " "), f[3:]
		switch roles[0] {
		case "everybody":
			roles = policy.Roles()
		case "open":
			roles = nil
		}
		for _, r := range roles {
			if !slices.Contains(policy.Roles(), r) {
				t.Fatalf("no role %s: %s", r, line)
			}
		}
		l.may[call], l.left[call] = roles, true
	}
	return l
}

// of gives the roles that may make a call; none for one that is open.
func (l *ledger) of(t *testing.T, edge, method, path string, open bool) []string {
	t.Helper()
	call := edge + " " + method + " " + path
	roles, ok := l.may[call]
	if !ok {
		t.Errorf("testdata/roles.txt does not say who may make the call %s", call)
	}
	if ok && open != (roles == nil) {
		t.Errorf("testdata/roles.txt and the edge differ in whether %s is open", call)
	}
	delete(l.left, call)
	return roles
}

// done complains about rows of the edges for which there was no call.
func (l *ledger) done(t *testing.T, edges ...string) {
	t.Helper()
	for _, call := range slices.Sorted(maps.Keys(l.left)) {
		if edge, _, _ := strings.Cut(call, " "); slices.Contains(edges, edge) {
			t.Errorf("testdata/roles.txt has a row for %s, and no edge has the call", call)
		}
	}
}
