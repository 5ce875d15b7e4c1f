package workload

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/jepsen"
)

// lease is instances kept by heartbeats: one that was renewed in time, each
// time, is found by every look-up, and one whose caller has gone is not found
// in the end.
type lease struct{ ttl time.Duration }

const leased = "/v1/namespaces/" + namespace + "/services/leased/instances/"

func (*lease) Config() map[string]any { return nil }

func (l *lease) Begin(ctx context.Context, s *Stage) error {
	l.ttl = s.Slack * 4 * time.Second
	_, err := s.must(ctx, http.MethodPut, "/v1/namespaces/"+namespace+"/services/leased", `{}`)
	return err
}

// Step of every second caller keeps an instance, with the others looking; a
// keeper now and then registers one that it then forgets.
func (l *lease) Step(ctx context.Context, s *Stage, c *Caller) time.Duration {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	n := c.any(s)
	id := fmt.Sprintf("kept%d", c.Number)
	switch {
	case c.Number%2 == 1:
		l.look(ctx, s, c, n)
		return c.between(2*time.Millisecond, 10*time.Millisecond)
	case c.Count == 0, c.Count%10 == 0:
		l.register(ctx, s, c, n, id)
	case c.Count%10 == 5:
		l.register(ctx, s, c, n, fmt.Sprintf("lost%d-%d", c.Number, c.Count))
	default:
		op := jepsen.Op{Worker: c.Number, Node: n.ID, Kind: jepsen.Beat, Key: id}
		s.History.Add(op, n.Call(ctx, http.MethodPost, leased+id+"/heartbeat", nil))
	}
	return c.between(l.ttl/20, l.ttl/8)
}

func (l *lease) register(ctx context.Context, s *Stage, c *Caller, n *jepsen.Node, id string) {
	body := fmt.Appendf(nil, `{"address":"192.0.2.1","port":80,"ttl":%q,"deregister_after":"1h"}`, l.ttl)
	op := jepsen.Op{Worker: c.Number, Node: n.ID, Kind: jepsen.Write, Key: id}
	s.History.Add(op, n.Call(ctx, http.MethodPut, leased+id, body))
}

// look notes which instances a look-up found, one operation for each look.
func (l *lease) look(ctx context.Context, s *Stage, c *Caller, n *jepsen.Node) {
	op := jepsen.Op{Worker: c.Number, Node: n.ID, Kind: jepsen.Look}
	path := "/v1/discovery/" + namespace + "/leased"
	if c.Count%4 == 0 {
		path += "?consistency=linearizable"
	}
	a := n.Call(ctx, http.MethodGet, path, nil)
	if a.Outcome == jepsen.OK {
		ids, err := found(a)
		if err != nil {
			a.Err = err
		}
		for i, id := range ids {
			if i > 0 {
				op.Value += " "
			}
			op.Value += id
		}
	}
	s.History.Add(op, a)
}

func found(a *jepsen.Answer) (ids []string, err error) {
	var d struct {
		Instances []struct {
			ID string `json:"id"`
		} `json:"instances"`
	}
	err = json.Unmarshal(a.Body, &d)
	for _, in := range d.Instances {
		ids = append(ids, in.ID)
	}
	return ids, err
}

// stretch is a time during which an instance must be there.
type stretch struct{ from, to int64 }

func (l *lease) Check(ctx context.Context, s *Stage) (string, error) {
	var mistakes fewMistakes
	kept := l.stretches(s.History.Ops(func(op *jepsen.Op) bool {
		return op.Outcome == jepsen.OK && (op.Kind == jepsen.Beat || op.Kind == jepsen.Write)
	}))
	judged := 0
	for _, op := range s.History.Ops(func(op *jepsen.Op) bool { return op.Kind == jepsen.Look && op.Outcome == jepsen.OK }) {
		there := words(op.Value)
		// The answer is of some moment between these.
		from, to := op.Invoke-int64(time.Duration(op.Staleness+1)*time.Millisecond), op.Return
		for id, stretches := range kept {
			must := slices.ContainsFunc(stretches, func(st stretch) bool { return st.from <= from && to <= st.to })
			if !must {
				continue
			}
			judged++
			if !there[id] {
				mistakes.add("%s at %.3f s, %d ms old: %s is not found, and was renewed in time all along", op.Node, float64(op.Invoke)/1e9, op.Staleness, id)
			}
		}
	}
	if err := mistakes.err(); err != nil {
		return "", err
	}
	if judged*int(s.Slack) < 60 {
		return "", fmt.Errorf("only %d instances looked for while they had to be there; the run shows nothing", judged)
	}
	// Nobody renews any more: all must go, though after a wave they may take two TTLs.
	begun := time.Now()
	err := settled(ctx, s, 4*l.ttl/s.Slack+30*time.Second, func() error {
		for _, n := range s.Nodes {
			a := n.Call(ctx, http.MethodGet, "/v1/discovery/"+namespace+"/leased?consistency=linearizable", nil)
			if ids, err := found(a); a.Outcome != jepsen.OK || err != nil || len(ids) > 0 {
				return fmt.Errorf("%s still finds %v: %s", n.ID, ids, a)
			}
		}
		return nil
	})
	return fmt.Sprintf("%d times an instance that had to be there was; all were gone %s after the end", judged, time.Since(begun).Round(time.Millisecond)), err
}

// stretches are the times in which each instance must be there: from a
// registration on, as long as each sign of life was taken before the one before
// it ran out, counted from when it was sent.
func (l *lease) stretches(ops []jepsen.Op) map[string][]stretch {
	slices.SortFunc(ops, func(a, b jepsen.Op) int { return cmp.Compare(a.Return, b.Return) })
	all := map[string][]stretch{}
	for _, op := range ops {
		of := all[op.Key]
		end := op.Invoke + int64(l.ttl)
		last := len(of) - 1
		switch {
		case last >= 0 && op.Return <= of[last].to:
			of[last].to = max(of[last].to, end)
		case op.Kind == jepsen.Write:
			all[op.Key] = append(of, stretch{op.Return, end})
		}
	}
	return all
}

func words(text string) map[string]bool {
	set := map[string]bool{}
	for word := range strings.FieldsSeq(text) {
		set[word] = true
	}
	return set
}
