package quota

import (
	"context"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/fault"
)

// Method is the peer call by which nodes draw credit from the leader.
const Method = "quota.draw"

// drawTimeout bounds one draw: without an answer the node is on its own.
const drawTimeout = 500 * time.Millisecond

// maxDraws bounds the limits that one peer call is about.
const maxDraws = 10_000

// round is one peer call: what it asks for, and when it has been answered.
type round struct {
	draws map[Key]*draw
	done  chan struct{}
}

// draw asks for hits of one limit.
type draw struct {
	Key   Key   `json:"key"`
	Least int64 `json:"least"` // less is of no use
	Want  int64 `json:"want"`

	rate    Rate
	waiting int64 // hits that somebody waits for
}

// grant answers one draw.
type grant struct {
	Hits int64   `json:"hits"`
	Left float64 `json:"left"` // in the bucket
}

// ask joins the next round. The caller holds the lock.
func (k *Keeper) ask(limits []Limit, counts []*count, hits int64, now time.Time) *round {
	if k.next == nil {
		k.next = &round{draws: map[Key]*draw{}, done: make(chan struct{})}
	}
	r := k.next
	for i, l := range limits {
		c := counts[i]
		if c.credit >= hits && now.Before(c.expires) {
			continue
		}
		d := r.draws[l.Key]
		if d == nil {
			if len(r.draws) >= maxDraws {
				break // the next attempt has its own round
			}
			d = &draw{Key: l.Key, Least: hits, rate: l.Rate}
			r.draws[l.Key] = d
		}
		d.Least = min(d.Least, hits)
		d.waiting += hits
		// What was asked for in the last tenth of a second will be asked for
		// in the next, but nobody takes more than comes in meanwhile.
		ahead := min(max(c.last, c.demand), int64(l.Rate.RequestsPerSecond*demandSpan.Seconds()))
		d.Want = min(max(d.waiting, ahead), l.Rate.BurstCapacity)
	}
	select {
	case k.wake <- struct{}{}:
	default:
	}
	return r
}

// draw makes one peer call and books what it brings.
func (k *Keeper) draw(ctx context.Context, r *round) {
	defer close(r.done)
	list := make([]*draw, 0, len(r.draws))
	for _, d := range r.draws {
		list = append(list, d)
	}
	grants, err := k.call(ctx, list)
	now := time.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil {
		k.away = now.Add(leaveAlone)
		if k.alone.IsZero() {
			if k.alone = now.Add(-headStart); k.alone.Before(k.contact) {
				k.alone = k.contact
			}
		}
		k.metrics.draws.WithLabelValues("failed").Inc()
		k.opt.Logger.Debug("the leader could not be asked for a share of the quotas; this node grants its own", "error", err)
		return
	}
	k.metrics.draws.WithLabelValues("answered").Inc()
	k.contact, k.alone = now, time.Time{}
	for i, d := range list {
		c := k.of(d.Key, now)
		if c == nil {
			continue
		}
		if !now.Before(c.expires) {
			c.credit = 0
		}
		g := grants[i]
		c.credit += g.Hits
		c.expires, c.left = now.Add(creditLife), g.Left
		if g.Hits < d.Want {
			pause := min(maxPause, d.rate.refill(float64(d.rate.BurstCapacity)/2))
			c.barred = now.Add(max(pause, d.rate.refill(float64(d.Least)-g.Left)))
		}
	}
}

func (k *Keeper) call(ctx context.Context, list []*draw) ([]grant, error) {
	payload, err := json.Marshal(list)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, drawTimeout)
	defer cancel()
	raw, err := k.opt.Call(ctx, Method, payload)
	if err != nil {
		return nil, err
	}
	var grants []grant
	if err := json.Unmarshal(raw, &grants); err != nil {
		return nil, err
	}
	if len(grants) != len(list) {
		return nil, fault.New(fault.Internal, "the leader answered %d draws of %d", len(grants), len(list))
	}
	return grants, nil
}

// Serve answers a peer call on the leader, by the quotas that it has itself.
func (k *Keeper) Serve(_ context.Context, _ string, payload []byte) ([]byte, error) {
	var list []draw
	if err := json.Unmarshal(payload, &list); err != nil || len(list) > maxDraws {
		return nil, fault.New(fault.BadRequest, "the draws cannot be read")
	}
	spec, err := k.spec()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	grants := make([]grant, len(list))
	for i, d := range list {
		if d.Want < 0 || d.Least < 0 {
			return nil, fault.New(fault.BadRequest, "a draw is negative")
		}
		var rate Rate
		limited := false
		if spec != nil {
			rate, limited = spec.rate(d.Key)
		}
		if !limited { // it was taken away; the node that asks will know presently
			grants[i] = grant{Hits: d.Want, Left: float64(d.Want)}
			continue
		}
		grants[i].Hits, grants[i].Left = k.bank.draw(now, Limit{d.Key, rate}, d.Least, d.Want)
	}
	return json.Marshal(grants)
}

// unsettled says that nobody waited for the count.
func unsettled(err error) error {
	return fault.Wrap(fault.RateLimited, err, "the quota could not be counted in time, so the call is refused")
}

func tooMany(hits int64, l Limit) error {
	return fault.Invalid("/hits", "%d are more than the burst_capacity of its %s, %d, ever allows", hits, l.Key.Kind(), l.Rate.BurstCapacity)
}
