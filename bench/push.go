package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// The comparison of pushes: a policy of many modules of which one changes.
const (
	pushModules = 500
	pushRules   = 8 // in each, with a test module for every tenth
)

// pushed is one kind of change and how long each call of it took.
type pushed struct {
	Call string          `json:"call"`
	Goal string          `json:"goal,omitempty"`
	Took []time.Duration `json:"took_ns"`
	CPU  float64         `json:"cpu_ms"` // of all nodes, for one change
}

type pushReport struct {
	Machine machine  `json:"machine"`
	Bytes   int      `json:"bytes"`
	Modules int      `json:"modules"`
	Changes int      `json:"changes"`
	Calls   []pushed `json:"calls"`
}

// pushModule is the text of one module, which says which change it is of.
func pushModule(i, change int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "package teams.t%d\n\nimport rego.v1\n\nversion := %d\n\n", i, change)
	for r := range pushRules {
		fmt.Fprintf(&b, "allow_%d if {\n\tinput.resource.namespace == \"team-%d\"\n\tsome role in input.principal.roles\n\trole == \"publisher-%d\"\n}\n\n", r, i, r)
	}
	return b.String()
}

func pushContent(change int) map[string]string {
	modules := map[string]string{"authz.rego": writePolicy, "security.rego": lookupPolicy}
	for i := range pushModules {
		modules[fmt.Sprintf("teams/t%d.rego", i)] = pushModule(i, 0)
	}
	modules["teams/t0.rego"] = pushModule(0, change)
	return modules
}

// pushes changes one module of many, again and again, in each of the ways that
// there are.
func (s *settings) pushes(ctx context.Context, m *muster, changes int) (*pushReport, error) {
	defer m.stop()
	if err := m.start(ctx); err != nil {
		return nil, err
	}
	c := &pusher{muster: m, http: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: m.tls.RootCAs, MinVersion: tls.VersionTLS13}}}}
	defer c.http.CloseIdleConnections()
	body := func(change int) ([]byte, error) {
		return json.Marshal(map[string]any{"note": "bench", "modules": pushContent(change)})
	}
	first, err := body(1)
	if err != nil {
		return nil, err
	}
	if _, err := c.call(ctx, "POST", m.nodes[0].String()+"/v1/policy/revisions?activate=true", first); err != nil {
		return nil, err
	}
	rep := &pushReport{Bytes: len(first), Modules: pushModules, Changes: changes, Calls: []pushed{
		{Call: "POST /v1/policy/revisions", Goal: ""},
		{Call: "… then POST …/activate: ready on all nodes, and active", Goal: "< 50 ms"},
		{Call: "POST /v1/policy/revisions?activate=true", Goal: "< 150 ms"},
		{Call: "PUT /v1/policies/… on the policy port", Goal: "< 150 ms"},
	}}
	for n := range changes {
		pushed, err := body(2 + 3*n)
		if err != nil {
			return nil, err
		}
		node := m.nodes[n%len(m.nodes)].String()
		answer, err := rep.Calls[0].measure(m, func() ([]byte, error) { return c.call(ctx, "POST", node+"/v1/policy/revisions", pushed) })
		if err != nil {
			return nil, err
		}
		var staged struct {
			Revision uint64 `json:"revision"`
		}
		if err := json.Unmarshal(answer, &staged); err != nil {
			return nil, err
		}
		if _, err := rep.Calls[1].measure(m, func() ([]byte, error) {
			return c.call(ctx, "POST", fmt.Sprintf("%s/v1/policy/revisions/%d/activate", node, staged.Revision), nil)
		}); err != nil {
			return nil, err
		}
		if pushed, err = body(3 + 3*n); err != nil {
			return nil, err
		}
		if _, err := rep.Calls[2].measure(m, func() ([]byte, error) { return c.call(ctx, "POST", node+"/v1/policy/revisions?activate=true", pushed) }); err != nil {
			return nil, err
		}
		if _, err := rep.Calls[3].measure(m, func() ([]byte, error) {
			return c.call(ctx, "PUT", m.cluster.Nodes[n%len(m.nodes)].Policy+"/v1/policies/teams/t0.rego", []byte(pushModule(0, 4+3*n)))
		}); err != nil {
			return nil, err
		}
	}
	for i := range rep.Calls {
		rep.Calls[i].CPU /= float64(changes)
	}
	return rep, nil
}

func (p *pushed) measure(m *muster, call func() ([]byte, error)) ([]byte, error) {
	before, err := cpuOfAll(m.pids())
	if err != nil {
		return nil, err
	}
	from := time.Now()
	answer, err := call()
	p.Took = append(p.Took, time.Since(from))
	if err != nil {
		return nil, err
	}
	after, err := cpuOfAll(m.pids())
	p.CPU += (after - before).Seconds() * 1000
	return answer, err
}

func cpuOfAll(pids []int) (all time.Duration, err error) {
	for _, pid := range pids {
		used, err := cpuOf(pid)
		if err != nil {
			return 0, err
		}
		all += used
	}
	return all, nil
}

type pusher struct {
	muster *muster
	http   *http.Client
}

func (p *pusher) call(ctx context.Context, method, url string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+p.muster.cluster.Token)
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := p.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: %s: %s", method, url, res.Status, answer[:min(len(answer), 300)])
	}
	return answer, err
}

func (r *pushReport) table() string {
	var out bytes.Buffer
	fmt.Fprintf(&out, "A policy of %d modules, %d kB, of which one changes; three nodes, %d changes of each kind.\n%s\n", r.Modules, r.Bytes/1000, r.Changes, r.Machine)
	t := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "call\tmedian\tfastest\tslowest\tCPU of all nodes\tgoal")
	for _, c := range r.Calls {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%.0f ms\t%s\n", c.Call, ms(median(c.Took)), ms(slices.Min(c.Took)), ms(slices.Max(c.Took)), c.CPU, c.Goal)
	}
	_ = t.Flush()
	return out.String()
}
