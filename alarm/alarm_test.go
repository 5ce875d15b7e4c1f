package alarm_test

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/muster-registry/muster/alarm"
)

// An alarm is raised at once, follows what is said of it without a new line in
// the log, survives five good looks, and is over after six.
func TestAlarm(t *testing.T) {
	var log bytes.Buffer
	b := alarm.New(slog.New(slog.NewTextHandler(&log, nil)))
	said := ""
	b.Watch(alarm.MemberAway, func() string { return said })
	began := time.Now()
	i := 0
	for n, step := range []struct {
		said, detail string
		looks, lines int // lines in the log so far
	}{
		{"", "", 1, 0}, {"n2 is\naway", "n2 is away", 1, 1}, {"n2 and n3", "n2 and n3", 1, 1}, {"", "n2 and n3", 5, 1}, {"n3", "n3", 1, 1},
		{"", "n3", 5, 1}, {"", "", 2, 2}, {"n2", "n2", 1, 3},
	} {
		said = step.said
		for range step.looks {
			i++
			b.Look(began.Add(time.Duration(i) * time.Second))
		}
		got, raised := b.Raised(), 0.0
		if step.detail != "" {
			raised = 1
		}
		if float64(len(got)) != raised || raised == 1 && (got[0].Name != alarm.MemberAway || got[0].Detail != step.detail) {
			t.Errorf("step %d: %v, want %q", n, got, step.detail)
		}
		if lines := strings.Count(log.String(), "alarm=member_away"); lines != step.lines {
			t.Errorf("step %d: the log has %d lines, want %d", n, lines, step.lines)
		}
	}
	if got := b.Raised()[0].Since; !got.Equal(began.Add(17 * time.Second)) {
		t.Errorf("raised anew, it is since %v", got)
	}
	if err := testutil.CollectAndCompare(b, strings.NewReader(`
# HELP muster_alarm 1 while the alarm is raised on this node, else 0; docs/operations.md says what to do about each.
# TYPE muster_alarm gauge
`+series(alarm.MemberAway))); err != nil {
		t.Error(err)
	}
}

func series(raised alarm.Name) (text string) {
	for _, name := range alarm.Names() {
		value := " 0\n"
		if name == raised {
			value = " 1\n"
		}
		text += `muster_alarm{alarm="` + string(name) + `"}` + value
	}
	return text
}
