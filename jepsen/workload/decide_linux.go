package workload

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/jepsen"
)

// decide publishes one policy revision after the other, each of which leaves
// its own mark in a rule, in another module, in its data and in what is
// written, under look-ups and writes on all nodes. No answer mixes two marks, a
// node never goes back to an older one, an answer is by one that was active when
// it says it was, and what is stored was admitted by the one active at its place.
type decide struct{ pushes atomic.Int64 }

func (*decide) Config() map[string]any { return nil }

func (w *decide) Begin(ctx context.Context, s *Stage) error {
	for _, service := range []string{"open", "closed"} {
		if _, err := s.must(ctx, http.MethodPut, "/v1/namespaces/"+namespace+"/services/"+service, `{}`); err != nil {
			return err
		}
	}
	_, err := s.must(ctx, http.MethodPost, "/v1/policy/revisions?activate=true", marked(0))
	return err
}

// marked is a revision that leaves its mark. The policy that writes are asked
// lets everybody write, and writes down who has let them.
func marked(mark int64) string {
	body, err := json.Marshal(map[string]any{
		"modules": map[string]string{
			"mark.rego": fmt.Sprintf("package marks\n\nmodule := \"%d\"\n", mark),
			"look.rego": fmt.Sprintf(`package api.security.authz

import data.marks

default allow := false

allow if input.resource.name != "closed"

found := {"rule": "%d", "module": marks.module, "data": data.label.mark}

deny contains sprintf("%%s: %%s", [place, mark]) if {
	input.resource.name == "closed"
	some place, mark in found
}

filtered := {"marks": [mark | some mark in found]} if input.resource.name == "open"
`, mark),
			"write.rego": fmt.Sprintf(`package api.registry.authz

default allow := true

filtered := object.union(input.resource.payload, {"owner": "%d"}) if startswith(input.resource.name, "w")
`, mark),
		},
		"data": map[string]any{"label": map[string]string{"mark": strconv.FormatInt(mark, 10)}},
	})
	if err != nil {
		panic(err) // strings and numbers alone
	}
	return string(body)
}

// Step of the first caller publishes, of every third writes, and the others look.
func (w *decide) Step(ctx context.Context, s *Stage, c *Caller) time.Duration {
	ctx, cancel := context.WithTimeout(ctx, 2*Patience)
	defer cancel()
	switch {
	case c.Number == 0:
		w.push(ctx, s, c)
		return c.between(100*time.Millisecond, 400*time.Millisecond)
	case c.Number%3 == 2:
		w.write(ctx, s, c)
		return c.between(5*time.Millisecond, 20*time.Millisecond)
	}
	w.look(ctx, s, c)
	return c.between(time.Millisecond, 6*time.Millisecond)
}

// push makes each try a revision of its own, so that one of unknown outcome
// that comes late can be told from the next.
func (w *decide) push(ctx context.Context, s *Stage, c *Caller) {
	n, mark := c.any(s), w.pushes.Add(1)
	op := jepsen.Op{Worker: c.Number, Node: n.ID, Kind: jepsen.Push, Value: strconv.FormatInt(mark, 10)}
	a := n.Call(ctx, http.MethodPost, "/v1/policy/revisions?activate=true", []byte(marked(mark)))
	if a.Outcome == jepsen.OK {
		var r struct{ Revision uint64 }
		if err := json.Unmarshal(a.Body, &r, json.MatchCaseInsensitiveNames(true)); err != nil {
			a.Err = err
		}
		op.Revision = r.Revision
	}
	s.History.Add(op, a)
}

func (w *decide) write(ctx context.Context, s *Stage, c *Caller) {
	key := fmt.Sprintf("w%d-%d", c.Number, c.Count)
	op := jepsen.Op{Worker: c.Number, Node: c.Node.ID, Kind: jepsen.Write, Key: key}
	a := c.Node.Call(ctx, http.MethodPut, "/v1/namespaces/"+namespace+"/services/"+key, []byte(`{}`))
	if a.Outcome == jepsen.OK {
		op.Value, op.Revision = stamped(a.Body)
	}
	s.History.Add(op, a)
}

func stamped(body []byte) (mark string, revision uint64) {
	var record struct {
		Owner    string `json:"owner"`
		Revision uint64 `json:"revision"`
	}
	_ = json.Unmarshal(body, &record) // without a mark it is a mistake
	return record.Owner, record.Revision
}

func (w *decide) look(ctx context.Context, s *Stage, c *Caller) {
	service := []string{"open", "closed"}[c.Count%2]
	op := jepsen.Op{Worker: c.Number, Node: c.Node.ID, Kind: jepsen.Look, Key: service}
	a := c.Node.Call(ctx, http.MethodGet, "/v1/discovery/"+namespace+"/"+service, nil)
	var body struct {
		Marks          []string `json:"marks"`
		Reasons        []string `json:"reasons"`
		PolicyRevision uint64   `json:"policy_revision"`
	}
	_ = json.Unmarshal(a.Body, &body) // without marks it is no good answer
	marks := body.Marks
	for _, reason := range body.Reasons {
		_, mark, _ := strings.Cut(reason, ": ")
		marks = append(marks, mark)
	}
	op.Value, op.Revision = strings.Join(marks, " "), body.PolicyRevision
	if a.Code == "policy_denied" && len(marks) > 0 {
		a.Outcome = jepsen.OK // as it should be; without a mark the evaluation was cut off, and refused for that
	}
	s.History.Add(op, a)
}

func (w *decide) Check(ctx context.Context, s *Stage) (string, error) {
	j := &judge{revision: map[string]uint64{}, newest: map[string]jepsen.Op{}}
	for _, op := range s.History.Ops(func(op *jepsen.Op) bool { return op.Kind == jepsen.Push && op.Outcome == jepsen.OK }) {
		j.revision[op.Value] = op.Revision
		j.pushes = append(j.pushes, op)
	}
	looks := s.History.Ops(func(op *jepsen.Op) bool { return op.Kind == jepsen.Look && op.Outcome == jepsen.OK })
	j.learn(looks)
	// In the order of their beginnings; each is held against those that had
	// ended before.
	slices.SortStableFunc(looks, func(a, b jepsen.Op) int { return int(a.Invoke - b.Invoke) })
	for _, op := range looks {
		j.one(op)
	}
	j.goesBack(looks)
	if err := j.stored(ctx, s); err != nil {
		return "", err
	}
	if len(j.pushes)*int(s.Slack) < 3 {
		j.mistakes.add("only %d revisions were published; the run shows nothing", len(j.pushes))
	}
	return fmt.Sprintf("%d revisions published, %d decisions by one of them each, %d records each under the one at its place", len(j.pushes), len(looks), j.records), j.mistakes.err()
}

// judge holds decisions against what was published.
type judge struct {
	mistakes fewMistakes
	pushes   []jepsen.Op // acknowledged
	revision map[string]uint64
	newest   map[string]jepsen.Op
	records  int
}

// learn finds out the numbers of revisions whose publication was not answered.
func (j *judge) learn(looks []jepsen.Op) {
	for _, op := range looks {
		mark, _, _ := strings.Cut(op.Value, " ")
		if _, known := j.revision[mark]; !known && op.Revision > 0 {
			j.revision[mark] = op.Revision
		}
	}
}

func (j *judge) one(op jepsen.Op) {
	marks := strings.Fields(op.Value)
	if len(marks) != 3 || marks[0] != marks[1] || marks[0] != marks[2] {
		j.mistakes.add("%s: one decision carries the marks %v", op.Node, marks)
		return
	}
	if op.Revision > 0 && j.revision[marks[0]] != op.Revision {
		j.mistakes.add("%s: the answer names policy revision %d and carries the mark of %d", op.Node, op.Revision, j.revision[marks[0]])
	}
	by, known := j.revision[marks[0]]
	if !known {
		return
	}
	// The state that decided is no older than the answer says.
	asOf := op.Invoke - int64(time.Duration(op.Staleness+1)*time.Millisecond)
	for _, p := range j.pushes {
		if p.Return < asOf && p.Revision > by {
			j.mistakes.add("%s decided by revision %d, said its state was %d ms old, and %d had been active for %s", op.Node, by, op.Staleness, p.Revision, time.Duration(op.Invoke-p.Return))
			return
		}
	}
}

// goesBack demands that a node's later decision is by no older revision: of two
// of which one had ended before the other began.
func (j *judge) goesBack(looks []jepsen.Op) {
	byNode := map[string][]jepsen.Op{}
	for _, op := range looks {
		byNode[op.Node] = append(byNode[op.Node], op)
	}
	for node, begun := range byNode {
		ended := slices.SortedFunc(slices.Values(begun), func(a, b jepsen.Op) int { return int(a.Return - b.Return) })
		done, newest := 0, uint64(0)
		for _, op := range begun {
			for ; done < len(ended) && ended[done].Return < op.Invoke; done++ {
				newest = max(newest, j.by(ended[done]))
			}
			if by := j.by(op); by > 0 && by < newest {
				j.mistakes.add("%s decided by revision %d after it had decided by %d", node, by, newest)
			}
		}
	}
}

func (j *judge) by(op jepsen.Op) uint64 {
	mark, _, _ := strings.Cut(op.Value, " ")
	return j.revision[mark]
}

// stored demands of what is written that marks rise with revisions, and that
// none after an activation bears an older one.
func (j *judge) stored(ctx context.Context, s *Stage) error {
	type record struct {
		Name     string `json:"name"`
		Owner    string `json:"owner"`
		Revision uint64 `json:"revision"`
	}
	var all []record
	for token := ""; ; {
		a := s.Nodes[0].Call(ctx, http.MethodGet, "/v1/namespaces/"+namespace+"/services?limit=1000&consistency=linearizable&page_token="+token, nil)
		var page struct {
			Items []record `json:"items"`
			Next  string   `json:"next_page_token"`
		}
		if a.Outcome != jepsen.OK {
			return fmt.Errorf("list: %s", a)
		}
		if err := json.Unmarshal(a.Body, &page); err != nil {
			return err
		}
		all = append(all, page.Items...)
		if token = page.Next; token == "" {
			break
		}
	}
	slices.SortFunc(all, func(a, b record) int { return int(a.Revision) - int(b.Revision) })
	var before record
	for _, r := range all {
		if !strings.HasPrefix(r.Name, "w") {
			continue
		}
		j.records++
		by, known := j.revision[r.Owner]
		if !known {
			continue
		}
		if was := j.revision[before.Owner]; by < was {
			j.mistakes.add("record %s at revision %d was admitted under policy revision %d, after %s at %d under %d", r.Name, r.Revision, by, before.Name, before.Revision, was)
		}
		for _, p := range j.pushes {
			if p.At > 0 && r.Revision > p.At && by < p.Revision {
				j.mistakes.add("record %s at revision %d was admitted under policy revision %d, and %d had been activated at revision %d", r.Name, r.Revision, by, p.Revision, p.At)
				break
			}
		}
		before = r
	}
	return nil
}
