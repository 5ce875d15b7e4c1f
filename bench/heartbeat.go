package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"
)

const (
	beatEvery   = 10 * time.Second
	beatWorkers = 48
)

// beats is what the heartbeat test found.
type beats struct {
	Machine   machine  `json:"machine"`
	Instances int      `json:"instances"`
	Every     string   `json:"every"`
	Loaded    string   `json:"loaded_in"`
	Beats     sample   `json:"heartbeats"`
	Nodes     []beaten `json:"nodes"`
	Passing   string   `json:"passing"` // of a sample, at the end
}

// beaten is one node's cost; CPU in per cent of one core.
type beaten struct {
	ID      string  `json:"id"`
	IdleCPU float64 `json:"idle_cpu"` // before any record
	BeatCPU float64 `json:"beat_cpu"` // with heartbeats, idle included
	Memory  memory  `json:"memory"`
}

// heartbeats loads the data set with the default time to live, renews every
// instance every 10 s, and measures what that costs each node.
func heartbeats(ctx context.Context, m *muster, span time.Duration) (*beats, error) {
	defer m.stop()
	if err := m.start(ctx); err != nil {
		return nil, err
	}
	idle, err := cpuOver(ctx, m.pids(), 5*time.Second)
	if err != nil {
		return nil, err
	}
	from := time.Now()
	if err := m.loadWith(ctx, 0, "30s", "1h"); err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	out := &beats{Instances: services * instances, Every: beatEvery.String(), Loaded: time.Since(from).Round(time.Millisecond).String()}

	ctx2, cancel := context.WithCancel(ctx)
	defer cancel()
	begin := time.Now().Add(beatEvery) // the first round is not counted
	var failed failures
	lat := make([][]time.Duration, beatWorkers)
	var wg sync.WaitGroup
	for w := range beatWorkers {
		wg.Go(func() { lat[w] = m.beat(ctx2, w, begin, begin.Add(span), &failed) })
	}
	if err := pause(ctx, time.Until(begin)); err != nil {
		return nil, err
	}
	meter := newMeter(m.pids())
	busy, err := cpuOver(ctx, m.pids(), span)
	if err != nil {
		return nil, err
	}
	others := meter.others()
	wg.Wait()
	var all []time.Duration
	for _, l := range lat {
		all = append(all, l...)
	}
	out.Beats = summarize(all, span, &failed)
	out.Beats.Others = others
	mem, err := memoryOfAll(m.pids())
	if err != nil {
		return nil, err
	}
	for i, n := range m.cluster.Nodes {
		out.Nodes = append(out.Nodes, beaten{n.ID, idle[i], busy[i], mem[i]})
	}
	out.Passing, err = m.passing(ctx)
	return out, err
}

// beat renews every beatWorkers-th instance at its own moment of each period,
// in the order in which they were loaded. It does not hurry to catch up more
// than what is due.
func (m *muster) beat(ctx context.Context, worker int, begin, end time.Time, failed *failures) []time.Duration {
	c := m.client(worker)
	defer c.close()
	var own []time.Duration
	start := begin.Add(-beatEvery)
	const n = services * instances
	for round := 0; ; round++ {
		for i := worker; i < n; i += beatWorkers {
			due := start.Add(time.Duration(round)*beatEvery + beatEvery*time.Duration(i)/n)
			if !due.Before(end) || pause(ctx, time.Until(due)) != nil {
				return own
			}
			from := time.Now()
			err := c.do(ctx, "POST", instancePath("svc-", i/instances, i%instances)+"/heartbeat", nil, http.StatusNoContent, nil)
			to := time.Now()
			if err != nil {
				failed.add(err)
			} else if !from.Before(begin) && !to.After(end) {
				own = append(own, to.Sub(from))
			}
		}
	}
}

// passing counts the passing instances of a sample of services on one node.
func (m *muster) passing(ctx context.Context) (string, error) {
	const sampled = 200
	got := 0
	c := m.client(0)
	defer c.close()
	for i := range sampled {
		req, err := http.NewRequestWithContext(ctx, "GET", c.node.String()+"/v1/discovery/bench/svc-"+strconv.Itoa(i*services/sampled), nil)
		if err != nil {
			return "", err
		}
		req.Header = c.header
		resp, err := c.http.RoundTrip(req)
		if err != nil {
			return "", err
		}
		var answer struct {
			Instances []json.RawMessage `json:"instances"`
		}
		err = json.NewDecoder(resp.Body).Decode(&answer)
		resp.Body.Close()
		if err != nil {
			return "", err
		}
		got += len(answer.Instances)
	}
	return fmt.Sprintf("%d of %d", got, sampled*instances), nil
}

// cpuOver measures each process's use of the processor over the next d, in per
// cent of one core.
func cpuOver(ctx context.Context, pids []int, d time.Duration) ([]float64, error) {
	read := func() (used []time.Duration, at time.Time, err error) {
		for _, pid := range pids {
			c, err := cpuOf(pid)
			if err != nil {
				return nil, at, err
			}
			used = append(used, c)
		}
		return used, time.Now(), nil
	}
	before, from, err := read()
	if err != nil {
		return nil, err
	}
	if err := pause(ctx, d); err != nil {
		return nil, err
	}
	after, to, err := read()
	if err != nil {
		return nil, err
	}
	var out []float64
	for i := range pids {
		out = append(out, 100*float64(after[i]-before[i])/float64(to.Sub(from)))
	}
	return out, nil
}

// pause waits for d, or returns the context's error.
func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
