package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
)

// steadyWriters is the load under which nobody may lose the leadership.
const steadyWriters = 256

// steadyReport tells whether a cluster without a fault kept its leader under
// full load. Gap is the longest time in which no write of anybody was acknowledged.
type steadyReport struct {
	Machine   machine       `json:"machine"`
	Span      time.Duration `json:"span_ns"`
	Elections uint64        `json:"elections"` // terms that began meanwhile
	Leaders   []string      `json:"leaders"`   // in turn
	Gap       time.Duration `json:"gap_ns"`
	sample
}

// status asks one node who leads, and in which term.
func (m *muster) status(ctx context.Context, node int) (leader string, term uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c := m.client(node)
	defer c.close()
	req, err := http.NewRequestWithContext(ctx, "GET", m.nodes[node].String()+"/v1/cluster/status", nil)
	if err != nil {
		return "", 0, err
	}
	req.Header = c.header
	resp, err := c.http.RoundTrip(req)
	if err != nil {
		return "", 0, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", 0, err
	}
	var s struct {
		Leader string `json:"leader"`
		Term   uint64 `json:"term"`
	}
	return s.Leader, s.Term, json.Unmarshal(b, &s)
}

// pace notes the longest silence between acknowledged writes.
type pace struct{ last, longest atomic.Int64 }

func (p *pace) beat() {
	now := time.Now().UnixNano()
	gap := now - p.last.Swap(now)
	for {
		longest := p.longest.Load()
		if gap <= longest || p.longest.CompareAndSwap(longest, gap) {
			return
		}
	}
}

// steady writes for the span, and asks all nodes every second who leads. It
// fails when a term began.
func (s *settings) steady(ctx context.Context, m *muster) (*steadyReport, error) {
	defer m.stop()
	if err := m.start(ctx); err != nil {
		return nil, err
	}
	var ops []op
	for w := range steadyWriters {
		do, done, err := m.writer(w)
		if err != nil {
			return nil, err
		}
		defer done()
		ops = append(ops, do)
	}
	rep, p := &steadyReport{Span: s.span}, &pace{}
	p.last.Store(time.Now().UnixNano())
	var acknowledged atomic.Int64
	for i, do := range ops {
		ops[i] = func(ctx context.Context, seq int) error {
			err := do(ctx, seq)
			if err == nil {
				acknowledged.Add(1)
				p.beat()
			}
			return err
		}
	}
	_, first, err := m.status(ctx, 0)
	if err != nil {
		return nil, err
	}
	watching, stop := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for n := 0; ; n++ {
			leader, term, err := m.status(watching, n%len(m.nodes))
			if err == nil && leader != "" && (len(rep.Leaders) == 0 || rep.Leaders[len(rep.Leaders)-1] != leader) {
				rep.Leaders = append(rep.Leaders, leader)
			}
			if err == nil && term > first {
				rep.Elections = max(rep.Elections, term-first)
			}
			if n%60 == 59 {
				say("%d writes, %d elections, slowest gap %s", acknowledged.Load(), rep.Elections, time.Duration(p.longest.Load()).Round(time.Millisecond))
			}
			select {
			case <-tick.C:
			case <-watching.Done():
				return
			}
		}
	}()
	rep.sample = run(ctx, ops, 0, s.span)
	stop()
	<-watched
	if _, term, err := m.status(ctx, 0); err == nil {
		rep.Elections = max(rep.Elections, term-first)
	}
	rep.Gap = time.Duration(p.longest.Load())
	return rep, ctx.Err()
}

func (r *steadyReport) table() string {
	return fmt.Sprintf("%s\n%s of writes by %d clients: %d acknowledged, %.0f a second, p50 %s, p99 %s, %d failed%s\nelections: %d (leaders: %s)\nslowest gap between two acknowledged writes: %s\n",
		r.Machine, r.Span, steadyWriters, r.Ops, r.Rate, ms(r.P50), ms(r.P99), r.Errors, r.trouble(), r.Elections, strings.Join(r.Leaders, ", "), r.Gap.Round(time.Millisecond))
}
