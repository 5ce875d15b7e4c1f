package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"
)

const (
	failoverWriters = 6 // two at each node
	failoverGoal    = 0.6
)

// failoverReport is how long it took from SIGKILL of the leader until a write
// was acknowledged that began after it, on any node; a fresh cluster each time.
type failoverReport struct {
	Machine machine         `json:"machine"`
	Etcd    []time.Duration `json:"etcd_ns"`
	Muster  []time.Duration `json:"muster_ns"`
}

// leading is a system whose leader can be found.
type leading interface {
	system
	leader(ctx context.Context) (pid int, err error)
	writer(worker int) (op, func(), error)
}

func (m *muster) leader(ctx context.Context) (int, error) {
	req, err := http.NewRequestWithContext(ctx, "GET", m.nodes[0].String()+"/v1/cluster/status", nil)
	if err != nil {
		return 0, err
	}
	c := m.client(0)
	defer c.close()
	req.Header = c.header
	resp, err := c.http.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	var status struct {
		Leader string `json:"leader"`
	}
	if err := json.Unmarshal(b, &status); err != nil {
		return 0, err
	}
	for _, n := range m.cluster.Nodes {
		if n.ID == status.Leader {
			return n.PID, nil
		}
	}
	return 0, fmt.Errorf("no node leads: %s", b)
}

func (m *muster) writer(worker int) (op, func(), error) {
	c := m.client(worker)
	return func(ctx context.Context, seq int) error {
		return c.do(ctx, "PUT", fmt.Sprintf("/v1/namespaces/bench/services/w-%d", worker), serviceBody(seq), http.StatusOK, nil)
	}, c.close, nil
}

func (e *etcd) leader(ctx context.Context) (int, error) {
	c, err := e.dial(e.endpoints[0])
	if err != nil {
		return 0, err
	}
	defer c.Close()
	for i, endpoint := range e.endpoints {
		s, err := c.Status(ctx, endpoint)
		if err != nil {
			return 0, err
		}
		if s.Leader == s.Header.MemberId {
			return e.pids()[i], nil
		}
	}
	return 0, errors.New("no node leads")
}

func (e *etcd) writer(worker int) (op, func(), error) {
	c, err := e.dial(e.endpoints[worker%len(e.endpoints)])
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context, seq int) error {
		_, err := c.Put(ctx, etcdKey(worker, 0), string(serviceBody(seq)))
		return err
	}, func() { c.Close() }, nil
}

func (s *settings) failover(ctx context.Context, systems ...leading) (*failoverReport, error) {
	rep := &failoverReport{}
	for n := range 2*s.runs + 1 {
		for _, sys := range systems {
			took, err := killed(ctx, sys)
			sys.stop()
			sys.clear()
			if err != nil {
				return nil, fmt.Errorf("%s: %w", sys.name(), err)
			}
			say("kill %d: %s %s", n+1, sys.name(), took.Round(time.Millisecond))
			if sys.name() == "etcd" {
				rep.Etcd = append(rep.Etcd, took)
			} else {
				rep.Muster = append(rep.Muster, took)
			}
		}
		slices.Reverse(systems)
	}
	return rep, nil
}

func killed(ctx context.Context, sys leading) (time.Duration, error) {
	if err := sys.start(ctx); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	type done struct{ from, to time.Time }
	acknowledged := make(chan done, 1024)
	var writers sync.WaitGroup
	defer writers.Wait()
	defer cancel()
	for w := range failoverWriters {
		write, end, err := sys.writer(w)
		if err != nil {
			return 0, err
		}
		writers.Go(func() {
			defer end()
			for seq := 0; ctx.Err() == nil; seq++ {
				once, cancel := context.WithTimeout(ctx, 2*time.Second)
				from := time.Now()
				err := write(once, seq)
				cancel()
				if err == nil {
					select {
					case acknowledged <- done{from, time.Now()}:
					case <-ctx.Done():
					}
				}
				_ = pause(ctx, 5*time.Millisecond)
			}
		})
	}
	var kill time.Time
	steady := time.Now().Add(3 * time.Second)
	for {
		select {
		case <-ctx.Done():
			return 0, errors.New("no write was acknowledged after the kill")
		case d := <-acknowledged:
			switch {
			case kill.IsZero() && d.to.After(steady):
				pid, err := sys.leader(ctx)
				if err != nil {
					return 0, err
				}
				kill = time.Now()
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					return 0, err
				}
			case !kill.IsZero() && d.from.After(kill):
				return d.to.Sub(kill), nil
			}
		}
	}
}

func (r *failoverReport) table() string {
	var out bytes.Buffer
	fmt.Fprintf(&out, "SIGKILL of the leader of three to the next acknowledged write, %d writers at all nodes, defaults.\n%s\n", failoverWriters, r.Machine)
	t := tabwriter.NewWriter(&out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "system\tmedian\tquickest\tslowest\tkills\t")
	for _, l := range []struct {
		name string
		took []time.Duration
	}{{"etcd", r.Etcd}, {"muster", r.Muster}} {
		if len(l.took) > 0 {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t\n", l.name, ms(median(l.took)), ms(slices.Min(l.took)), ms(slices.Max(l.took)), len(l.took))
		}
	}
	_ = t.Flush()
	if len(r.Etcd) > 0 && len(r.Muster) > 0 {
		fmt.Fprintf(&out, "ratio %.2f, goal at most %.1f\n", float64(median(r.Muster))/float64(median(r.Etcd)), failoverGoal)
	}
	return out.String()
}
