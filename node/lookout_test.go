package node_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
)

// raised gives the alarms in the status that a node answers with, as
// "alarm node: detail".
func (tr *trial) raised(i int) (all []string, err error) {
	b, err := tr.client(tr.token, i).Status(tr.t.Context())
	if err != nil {
		return nil, err
	}
	var s struct {
		Alarms []struct{ Alarm, Node, Detail string }
	}
	if err := json.Unmarshal(b, &s, json.MatchCaseInsensitiveNames(true)); err != nil {
		return nil, err
	}
	for _, a := range s.Alarms {
		all = append(all, a.Alarm+" "+a.Node+": "+a.Detail)
	}
	return all, nil
}

// awaitRaised waits for an alarm that begins so, on the status of node i.
func (tr *trial) awaitRaised(i int, begins string) {
	tr.t.Helper()
	tr.eventually("the alarm "+begins, func() error {
		all, err := tr.raised(i)
		for _, a := range all {
			if strings.HasPrefix(a, begins) {
				return nil
			}
		}
		return fmt.Errorf("%q, %v", all, err)
	})
}

// awaitOver waits until no alarm of these names is raised, on the status of node i.
func (tr *trial) awaitOver(i int, names ...string) {
	tr.t.Helper()
	tr.eventually("the alarms are over", func() error {
		all, err := tr.raised(i)
		for _, a := range all {
			if name, _, _ := strings.Cut(a, " "); slices.Contains(names, name) {
				err = errors.Join(err, errors.New(a))
			}
		}
		return err
	})
}

// tells demands that an alarm which is raised on node i is told by it everywhere.
func (tr *trial) tells(i int, name string) {
	tr.t.Helper()
	if line, err := tr.metric(i, `muster_alarm{alarm="`+name+`"}`); err != nil || !strings.HasSuffix(line, " 1") {
		tr.t.Errorf("the metric of %s: %q, %v", name, line, err)
	}
	if text := tr.readyz(i); !strings.Contains(text, "alarm "+name+" since ") {
		tr.t.Errorf("/readyz?verbose has nothing of %s: %s", name, text)
	}
	tr.awaitLog(tr.t, i, `msg="an alarm is raised`, "alarm="+name)
}

// readyz is the answer of /readyz?verbose, and its status.
func (tr *trial) readyz(i int) string {
	res, err := http.Get(tr.nodes[i].metrics + "/readyz?verbose")
	if err != nil {
		return err.Error()
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	return res.Status + " " + string(b)
}

// One list, four ways to see it: a member that is gone is an alarm in the
// status, in the metrics, in /readyz?verbose and in the log, and it ends with the
// trouble. Who has lost the majority says so itself.
func TestAlarmsAreToldEverywhere(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	tr.startAll()
	if all, err := tr.raised(0); len(all) > 0 || err != nil {
		t.Fatalf("a cluster that is well has %q, %v", all, err)
	}
	tr.awaitQuorumLine(0, "[+] of 3 voters 3 are there: 1 may be taken away")
	tr.stop(2)
	lead := 0
	tr.eventually("one of the two leads", func() (err error) {
		lead, err = tr.leader(0)
		return err
	})
	leader := tr.nodes[lead].id
	tr.awaitRaised(1-lead, "member_away "+leader+": n3 has not answered for")
	tr.awaitRaised(lead, "quorum_at_risk "+leader+": 2 of 3 voters answer, without n3")
	if line, err := tr.metric(lead, `muster_alarm{alarm="member_away"}`); err != nil || !strings.HasSuffix(line, " 1") {
		t.Errorf("%q, %v", line, err)
	}
	if line, err := tr.metric(1-lead, `muster_alarm{alarm="member_away"}`); err != nil || !strings.HasSuffix(line, " 0") {
		t.Errorf("the node that does not lead: %q, %v", line, err)
	}
	if text := tr.readyz(lead); !strings.HasPrefix(text, "200") || !strings.Contains(text, "[!] alarm quorum_at_risk since ") {
		t.Errorf("readyz: %s", text)
	}
	tr.awaitLog(t, lead, `msg="an alarm is raised`, "alarm=member_away")
	tr.awaitQuorumLine(lead, "[!] of 3 voters 2 are there: whoever takes another one away takes the quorum")
	if b, err := tr.client(tr.token, lead).Status(t.Context()); err != nil || !strings.Contains(string(b), "2 of 3 voters answer: whoever takes another one away, or empties its disk, takes the quorum") {
		t.Errorf("the status does not warn: %s, %v", b, err)
	}

	tr.stop(1 - lead)
	tr.awaitRaised(lead, "quorum_lost "+leader+": no leader that a majority")
	tr.eventually("a node that is not ready says what else is wrong", func() error {
		if text := tr.readyz(lead); !strings.HasPrefix(text, "503") || !strings.Contains(text, "alarm quorum_lost since") {
			return fmt.Errorf("readyz: %s", text)
		}
		return nil
	})

	tr.start(1 - lead)
	tr.start(2)
	tr.eventually("all is well again", func() error {
		if all, err := tr.raised(0); len(all) > 0 || err != nil {
			return fmt.Errorf("%q, %v", all, err)
		}
		return nil
	})
	tr.awaitLog(t, lead, `msg="an alarm is over"`, "alarm=quorum_lost")
}

func (tr *trial) awaitQuorumLine(i int, want string) {
	tr.t.Helper()
	tr.eventually("readyz counts the voters", func() error {
		if text := tr.readyz(i); !strings.Contains(text, want) {
			return fmt.Errorf("want %q in %s", want, text)
		}
		return nil
	})
}

// leader is the one that a node takes for the leader.
func (tr *trial) leader(ask int) (int, error) {
	b, err := tr.client(tr.token, ask).Status(tr.t.Context())
	if err != nil {
		return 0, err
	}
	var s struct {
		Leader string `json:"leader"`
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return 0, err
	}
	for i, n := range tr.nodes {
		if n.id == s.Leader && n.stop != nil {
			return i, nil
		}
	}
	return 0, fmt.Errorf("%q leads", s.Leader)
}
