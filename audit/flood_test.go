package audit_test

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/audit"
)

// entries are the lines of the trail.
func (x *trial) entries() (all []audit.Entry) {
	x.t.Helper()
	for _, f := range x.files() {
		b, err := os.ReadFile(f)
		if err != nil {
			x.t.Fatal(err)
		}
		for line := range bytes.Lines(b) {
			var e audit.Entry
			if err := json.Unmarshal(bytes.TrimSpace(line), &e); err != nil {
				x.t.Fatal(err)
			}
			all = append(all, e)
		}
	}
	return all
}

// TestFlood: who is refused over and over fills no trail; how often is said, and
// who is refused now and then has every line.
func TestFlood(t *testing.T) {
	x := newTrial(t)
	x.opt.PerSecond = 2 // and 20 at once
	trail := x.open()
	now := time.Now()
	refuse := func(principal, source string, at time.Time) {
		trail.Refused(audit.Entry{Time: at, Type: audit.Refusal, Principal: principal, Source: source, Status: 403})
	}
	for range 5000 {
		trail.Decided(audit.Entry{Time: now, Type: audit.Decision, Principal: "token:ann", Source: "10.0.0.1", Outcome: audit.Refused})
		refuse("token:eve", "10.0.0.1", now)
		refuse(audit.Anonymous, "10.0.0.2", now)
	}
	for i := range 10 {
		refuse("token:ann", "10.0.0.1", now)
		refuse(audit.Anonymous, fmt.Sprintf("10.0.1.%d", i), now)
	}
	refuse("token:eve", "10.0.0.1", now.Add(time.Second)) // 2 have come back
	x.close(trail)

	lines, suppressed, decided, undecided := map[string]int{}, map[string]uint64{}, 0, uint64(0)
	for _, e := range x.entries() {
		who := e.Principal + " " + e.Source
		if e.Type == audit.Decision { // who is told no as often is still heard when its calls are refused
			if undecided += e.Suppressed; e.Suppressed == 0 {
				decided++
			}
		} else if e.Suppressed > 0 {
			suppressed[who] += e.Suppressed
			if !e.Since.Equal(now) || e.Type != audit.Refusal {
				t.Errorf("%+v", e)
			}
		} else if e.Type == audit.Refusal {
			lines[who]++
		}
	}
	if lines["token:eve 10.0.0.1"] != 21 || suppressed["token:eve 10.0.0.1"] != 4980 || lines["anonymous 10.0.0.2"] != 20 || suppressed["anonymous 10.0.0.2"] != 4980 {
		t.Errorf("of those who flood: %v, and counted %v", lines, suppressed)
	}
	if decided != 20 || undecided != 4980 {
		t.Errorf("of decisions: %d lines, and %d counted", decided, undecided)
	}
	if lines["token:ann 10.0.0.1"] != 10 || lines["anonymous 10.0.1.7"] != 1 || len(suppressed) != 2 {
		t.Errorf("of others: %v, and counted %v", lines, suppressed)
	}
	x.verify()
}

// TestFloodFromManyAddresses: addresses are cheap, so all that proved nothing
// have a bound together, and nobody who did pays for it.
func TestFloodFromManyAddresses(t *testing.T) {
	x := newTrial(t)
	x.opt.PerSecond = 2
	trail := x.open()
	now := time.Now()
	const calls = 15_000
	for i := range calls {
		trail.Refused(audit.Entry{Time: now, Type: audit.Connection, Principal: "CN=node", Source: fmt.Sprintf("10.0.%d.%d", i/250, i%250), Outcome: audit.Refused})
	}
	trail.Refused(audit.Entry{Time: now, Type: audit.Refusal, Principal: "token:ann", Outcome: audit.Refused})
	x.close(trail)
	lines, counted, ann := 0, uint64(0), 0
	for _, e := range x.entries() {
		switch {
		case e.Principal == "token:ann":
			ann++
		case e.Suppressed > 0:
			counted += e.Suppressed
		case e.Type == audit.Connection:
			lines++
		}
	}
	if lines != 400 || lines+int(counted) != calls || ann != 1 {
		t.Errorf("%d lines, %d counted; %d of another caller", lines, counted, ann)
	}
}

// TestEveryFault: a check that goes on names each fault once.
func TestEveryFault(t *testing.T) {
	x := newTrial(t)
	trail := x.open()
	trail.Changed(changes(1, 30))
	x.close(trail)
	b, err := os.ReadFile(x.path)
	if err != nil {
		t.Fatal(err)
	}
	lines := slices.Collect(bytes.Lines(b))
	lines[4] = bytes.Replace(lines[4], []byte("token:ann"), []byte("token:bob"), 1)
	lines = slices.Delete(lines, 10, 12)                    // 11 and 12 of the trail
	lines = slices.Insert(lines, 20, []byte("nonsense\n"))  // in line 21 of the file
	lines[25] = bytes.Replace(lines[25], lines[25], nil, 1) // line 27 of the trail
	if err := os.WriteFile(x.path, slices.Concat(lines...), 0o600); err != nil {
		t.Fatal(err)
	}
	report, err := audit.Check{All: true}.Verify(x.path)
	if err == nil || !strings.Contains(err.Error(), "4 faults") {
		t.Errorf("%v", err)
	}
	for i, want := range []string{":5: it was altered", ":11: lines 11 to 12 of the trail are missing", ":21: it is not a line", ":26: line 27 of the trail is missing"} {
		if len(report.Faults) <= i || !strings.Contains(report.Faults[i], want) {
			t.Errorf("the faults are\n%s\nand the one at %d is not %q", strings.Join(report.Faults, "\n"), i, want)
		}
	}
}
