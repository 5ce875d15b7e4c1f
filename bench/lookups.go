package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"text/tabwriter"
)

// lookupGoal is the least share of a bare server's rate.
const lookupGoal = 0.5

// lookupReport compares local look-ups on one node, with a policy that decides
// each, with answers of the same size by net/http alone, both over TLS.
type lookupReport struct {
	Machine machine  `json:"machine"`
	Bytes   int      `json:"bytes"`
	Clients int      `json:"clients"`
	Muster  []sample `json:"muster"`
	Bare    []sample `json:"bare"`
}

func (s *settings) lookups(ctx context.Context, m *muster) (*lookupReport, error) {
	rep := &lookupReport{Bytes: len(bareAnswer()), Clients: 64}
	measure := func() sample {
		var ops []op
		for range rep.Clients {
			c := m.client(0)
			defer c.close()
			ops = append(ops, func(ctx context.Context, _ int) error {
				return c.do(ctx, "GET", "/v1/discovery/bench/one-0", nil, http.StatusOK, func(n int) bool { return n > rep.Bytes-200 && n < rep.Bytes+200 })
			})
		}
		return run(ctx, ops, s.warm, s.span)
	}
	for n := range s.runs {
		err := func() error {
			defer m.clear()
			defer m.stop()
			if err := m.start(ctx); err != nil {
				return err
			}
			c := m.client(0)
			defer c.close()
			if err := c.do(ctx, "PUT", "/v1/namespaces/bench/services/one-0", serviceBody(0), http.StatusOK, nil); err != nil {
				return err
			}
			if err := c.do(ctx, "PUT", instancePath("one-", 0, 0), instanceBody(0, "24h", "24h"), http.StatusOK, nil); err != nil {
				return err
			}
			rep.Muster = append(rep.Muster, measure())
			m.stop()
			p, err := m.startBare(ctx)
			if err != nil {
				return err
			}
			defer p.stop()
			rep.Bare = append(rep.Bare, measure())
			return nil
		}()
		if err != nil {
			return nil, err
		}
		say("run %d: muster %.0f/s, net/http alone %.0f/s", n+1, rep.Muster[n].Rate, rep.Bare[n].Rate)
	}
	return rep, nil
}

func (r *lookupReport) table() string {
	var out bytes.Buffer
	fmt.Fprintf(&out, "Look-ups on one node of three over HTTPS, %d clients, answers of %d bytes, medians of %d runs.\n%s\n", r.Clients, r.Bytes, len(r.Muster), r.Machine)
	t := tabwriter.NewWriter(&out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\trate\tp50\tp99\t")
	of := func(all []sample) (rate float64) {
		var rates []float64
		for _, s := range all {
			rates = append(rates, s.Rate)
		}
		return median(rates)
	}
	for _, l := range []struct {
		name string
		all  []sample
	}{{"muster, policy on", r.Muster}, {"net/http alone", r.Bare}} {
		var p50, p99 []float64
		for _, s := range l.all {
			p50, p99 = append(p50, float64(s.P50)/1e6), append(p99, float64(s.P99)/1e6)
			if s.Errors > 0 {
				fmt.Fprintf(&out, "! %s%s\n", l.name, s.trouble())
			}
		}
		fmt.Fprintf(t, "%s\t%.0f/s\t%.2fms\t%.2fms\t\n", l.name, of(l.all), median(p50), median(p99))
	}
	_ = t.Flush()
	fmt.Fprintf(&out, "ratio %.2f, goal at least %.1f\n", of(r.Muster)/of(r.Bare), lookupGoal)
	return out.String()
}
