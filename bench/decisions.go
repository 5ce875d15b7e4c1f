package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// The comparison of decisions: one node of muster beside one OPA.
const (
	deciders   = 16   // connections, one worker each
	manyTokens = 1000 // different ones
)

// decisionCase is one line of the table.
type decisionCase struct {
	Inputs string  `json:"inputs"` // "same input", "1 000 tokens"
	Logged bool    `json:"decision_log"`
	Goal   float64 `json:"goal"`
}

var decisionCases = []decisionCase{
	{"same input", true, 2}, {"1 000 tokens", true, 2}, {"same input", false, 1.3}, {"1 000 tokens", false, 1.3},
}

func (d decisionCase) name() string {
	if d.Logged {
		return d.Inputs + ", decision log"
	}
	return d.Inputs + ", no log"
}

// decisionRun is one system's figures for one case in one run.
type decisionRun struct {
	System string  `json:"system"`
	Case   string  `json:"case"`
	Run    int     `json:"run"`
	CPU    float64 `json:"cpu_us_per_request"` // of the server
	Log    int64   `json:"log_bytes"`
	sample
}

type decisionReport struct {
	Machine machine        `json:"machine"`
	OPA     string         `json:"opa"`
	Runs    int            `json:"runs"`
	Span    string         `json:"duration"`
	Cases   []decisionCase `json:"cases"`
	Results []decisionRun  `json:"results"`
}

// decisions asks both the same questions, one system at a time.
func (s *settings) decisions(ctx context.Context, m *muster, o *opa) (*decisionReport, error) {
	module, err := askedPolicy()
	if err != nil {
		return nil, err
	}
	who, err := newIssuer()
	if err != nil {
		return nil, err
	}
	data, err := who.data()
	if err != nil {
		return nil, err
	}
	bodies := make([][]byte, manyTokens)
	for i := range bodies {
		token, err := who.token("caller-" + strconv.Itoa(i))
		if err != nil {
			return nil, err
		}
		bodies[i] = question(token)
	}
	rep := &decisionReport{Runs: s.runs, Span: s.span.String(), Cases: decisionCases, OPA: firstLine("opa", s.opa, "version")}
	m.nodesWanted = 1
	for n := range s.runs {
		for _, logged := range []bool{true, false} {
			systems := []func() error{
				func() error { return s.decideByMuster(ctx, m, module, data, bodies, logged, n+1, rep) },
				func() error { return s.decideByOPA(ctx, m, o, module, data, bodies, logged, n+1, rep) },
			}
			if n%2 == 1 {
				slices.Reverse(systems)
			}
			for _, measure := range systems {
				if err := measure(); err != nil {
					return nil, err
				}
			}
		}
	}
	return rep, nil
}

func (s *settings) decideByMuster(ctx context.Context, m *muster, module string, data map[string]any, bodies [][]byte, logged bool, n int, rep *decisionReport) error {
	say("run %d: muster, decision log %v", n, logged)
	defer m.stop()
	if err := m.start(ctx); err != nil {
		return err
	}
	if logged {
		if err := m.logDecisions(ctx); err != nil {
			return err
		}
	}
	body, err := json.Marshal(map[string]any{"note": "bench", "modules": map[string]string{"authz.rego": module}, "data": data})
	if err != nil {
		return err
	}
	c := m.client(0)
	defer c.close()
	if err := c.do(ctx, "POST", "/v1/policy/revisions?activate=true", body, http.StatusCreated, nil); err != nil {
		return err
	}
	where := m.policy
	log := filepath.Join(m.dir, "n1", "decisions.log")
	return s.ask(ctx, "muster", where, m, m.pids()[0], log, bodies, logged, n, rep)
}

func (s *settings) decideByOPA(ctx context.Context, m *muster, o *opa, module string, data map[string]any, bodies [][]byte, logged bool, n int, rep *decisionReport) error {
	say("run %d: opa, decision log %v", n, logged)
	o.cert, o.key = filepath.Join(m.dir, "n1", "node.crt"), filepath.Join(m.dir, "n1", "node.key")
	if m.tls == nil { // the certificates are muster's, which makes them at its first start
		if err := errors.Join(m.start(ctx)); err != nil {
			return err
		}
		m.stop()
	}
	defer o.stop()
	if err := o.start(ctx, module, data, logged); err != nil {
		return err
	}
	where := &url.URL{Scheme: "https", Host: "127.0.0.1:" + strconv.Itoa(o.port)}
	return s.ask(ctx, "opa", where, m, o.process.cmd.Process.Pid, o.dir+".log", bodies, logged, n, rep)
}

// ask measures both kinds of input on a server that runs.
func (s *settings) ask(ctx context.Context, system string, where *url.URL, m *muster, pid int, log string, bodies [][]byte, logged bool, n int, rep *decisionReport) error {
	for _, c := range decisionCases {
		if c.Logged != logged {
			continue
		}
		var requests [][]byte
		for _, body := range bodies {
			requests = append(requests, fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
				decisionPath, where.Host, m.cluster.Token, len(body), body))
		}
		if c.Inputs == "same input" {
			requests = requests[:1]
		}
		var ops []op
		for w := range deciders {
			conn, err := dialDecider(ctx, where.Host, m.tls)
			if err != nil {
				return err
			}
			defer conn.conn.Close()
			ops = append(ops, func(_ context.Context, seq int) error {
				return conn.decide(requests[(seq*deciders+w)%len(requests)])
			})
		}
		_ = run(ctx, ops, 0, s.warm)
		before := sizeOf(log)
		used, err := cpuOf(pid)
		if err != nil {
			return err
		}
		meter := newMeter([]int{pid})
		got := run(ctx, ops, 0, s.span)
		got.Others = meter.others()
		after, err := cpuOf(pid)
		if err != nil {
			return err
		}
		rep.Results = append(rep.Results, decisionRun{
			System: system, Case: c.name(), Run: n, sample: got, Log: sizeOf(log) - before,
			CPU: float64((after - used).Microseconds()) / float64(max(1, got.Ops)),
		})
		say("  %s: %.0f/s, p99 %s%s", c.name(), got.Rate, ms(got.P99), got.trouble())
	}
	return nil
}

func sizeOf(file string) int64 {
	info, err := os.Stat(file)
	if err != nil {
		return 0
	}
	return info.Size()
}

// decider is one connection that sends what is prepared and reads no more than
// it must: on one machine, what the generator uses the server lacks.
type decider struct {
	conn *tls.Conn
	in   *bufio.Reader
	body []byte
}

func dialDecider(ctx context.Context, host string, config *tls.Config) (*decider, error) {
	own := config.Clone()
	own.ServerName = "127.0.0.1"
	c, err := (&tls.Dialer{Config: own}).DialContext(ctx, "tcp", host)
	if err != nil {
		return nil, err
	}
	return &decider{conn: c.(*tls.Conn), in: bufio.NewReader(c)}, nil
}

var allowed = []byte(`"result":true`)

// decide sends a request and checks that the answer is a yes.
func (d *decider) decide(request []byte) error {
	if _, err := d.conn.Write(request); err != nil {
		return err
	}
	status, err := d.in.ReadSlice('\n')
	if err != nil {
		return err
	}
	ok := bytes.Contains(status, []byte(" 200 "))
	length := -1
	for {
		line, err := d.in.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(line) <= 2 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		if bytes.EqualFold(name, []byte("Content-Length")) {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return err
			}
		}
	}
	if length < 0 {
		return errors.New("the answer has no length")
	}
	d.body = slices.Grow(d.body[:0], length)[:length]
	if _, err := io.ReadFull(d.in, d.body); err != nil {
		return err
	}
	if !ok || !bytes.Contains(d.body, allowed) {
		return fmt.Errorf("answered %s", d.body[:min(len(d.body), 300)])
	}
	return nil
}

func (r *decisionReport) table() string {
	var out bytes.Buffer
	fmt.Fprintf(&out, "POST %s, median of %d runs of %s, one system at a time, %d connections.\n%s; OPA %s\n", decisionPath, r.Runs, r.Span, deciders, r.Machine, r.OPA)
	t := tabwriter.NewWriter(&out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "inputs\topa\tp50\tp99\tCPU\tmuster\tp50\tp99\tCPU\tmuster/opa\tgoal\t")
	var notes []string
	for _, c := range r.Cases {
		var rates []float64
		row := c.name()
		for _, system := range []string{"opa", "muster"} {
			f, cpu, logged := r.figure(system, c.name())
			rates = append(rates, f.Value)
			row += fmt.Sprintf("\t%s\t%.0fµs", f.cells("/s"), cpu)
			if f.Errors > 0 {
				notes = append(notes, fmt.Sprintf("! %s, %s: %d requests failed; the JSON names the first error", system, c.name(), f.Errors))
			}
			if f.Others > disturbed {
				notes = append(notes, fmt.Sprintf("! %s, %s: %.1f cores were busy with something else; repeat it on a quiet machine", system, c.name(), f.Others))
			}
			if c.Logged && logged == 0 {
				notes = append(notes, fmt.Sprintf("! %s, %s: the decision log did not grow", system, c.name()))
			}
		}
		fmt.Fprintf(t, "%s\t%.2f\t≥ %.1f\t\n", row, rates[1]/max(1, rates[0]), c.Goal)
	}
	_ = t.Flush()
	slices.Sort(notes)
	fmt.Fprint(&out, strings.Join(append(notes, decisionFootnote), "\n"))
	return out.String()
}

// figure gives a system's medians for a case.
func (r *decisionReport) figure(system, name string) (f *figure, cpu float64, logged int64) {
	f = &figure{}
	var rate, used []float64
	var p50, p99 []time.Duration
	for _, got := range r.Results {
		if got.System == system && got.Case == name {
			rate, used = append(rate, got.Rate), append(used, got.CPU)
			p50, p99 = append(p50, got.P50), append(p99, got.P99)
			f.Errors += got.Errors
			f.Others = max(f.Others, got.Others)
			logged += got.Log
		}
	}
	if len(rate) == 0 {
		return f, 0, 0
	}
	f.Value, f.P50, f.P99 = median(rate), median(p50), median(p99)
	return f, median(used), logged
}

const decisionFootnote = `Both: the policy of examples/policies/api-admin (an ES256 token is verified on every request), TLS 1.3, HTTP/1.1, the same certificate.
opa: opa run --server, nobody is authenticated; its decision log goes to a file by its console logger. muster: one node, a bearer
token on every request; its decision log goes to a file, all decisions. CPU is the server's own for one request.
`

// logDecisions starts the node again with a decision log of everything.
func (m *muster) logDecisions(ctx context.Context) error {
	m.stop()
	config := filepath.Join(m.dir, "n1", "muster.yaml")
	f, err := os.OpenFile(config, os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString("policy:\n  decision_log:\n    file: decisions.log\n    allowed_per_second: 0\n")
	if err := errors.Join(err, f.Close(), os.Remove(filepath.Join(m.dir, "cluster.json"))); err != nil {
		return err
	}
	return m.spawn(ctx)
}
