package health

import (
	"container/heap"
	"context"
	"math/rand/v2"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/registry"
)

// start begins the probes that are due, as far as there are free ones, and says
// when the next one is.
func (c *Checker) start(ctx context.Context, now time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer func() { c.opt.Metrics.hold(c.count, c.failing) }()
	for len(c.queue) > 0 && c.probing < c.opt.Probes {
		j := c.queue[0]
		if j.next.After(now) {
			return j.next.Sub(now)
		}
		heap.Pop(&c.queue)
		c.opt.Metrics.late.Observe(now.Sub(j.next).Seconds())
		c.probing++
		go c.probe(ctx, j, j.check, now)
	}
	return time.Hour // woken when a probe ends, or something changes
}

// probe runs one check once.
func (c *Checker) probe(ctx context.Context, j *job, check *registry.Check, began time.Time) {
	result := c.opt.Prober.Probe(ctx, check)
	c.opt.Metrics.probed(check.Type, result.Status, time.Since(began))
	connected := ctx.Err() == nil && c.opt.Connected()
	in, ok := c.opt.State.Registry().Instance(j.key.Namespace, j.key.Service, j.key.ID)
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.nudge()
	c.probing--
	if j.gone {
		return
	}
	interval := time.Duration(check.Interval)
	j.next = began.Add(interval - interval/20 + rand.N(interval/10+1))
	heap.Push(&c.queue, j)
	if !connected || !ok {
		j.fails, j.passes = 0, 0
		return
	}
	if _, state := in.Check(j.key.Check); state != nil {
		c.weigh(j, check, state, result)
	}
}

// weigh counts a result, and reports when enough in a row say something else
// than the state does. The caller holds the lock.
func (c *Checker) weigh(j *job, check *registry.Check, state *registry.CheckState, r Result) {
	failed := r.Status == registry.Critical
	if failed != j.failing {
		j.failing = failed
		if failed {
			c.failing++
		} else {
			c.failing--
		}
	}
	enough := false
	if failed {
		j.fails, j.passes = j.fails+1, 0
		enough = j.fails >= check.FailuresBeforeCritical
	} else {
		j.fails, j.passes = 0, j.passes+1
		enough = j.passes >= check.SuccessesBeforePassing
	}
	if !enough || r.Status == state.Status {
		delete(c.reports, j.key)
		return
	}
	c.reports[j.key] = change{r.Status, registry.ClipOutput(r.Output), state.Revision}
	select {
	case c.pending <- struct{}{}:
	default:
	}
}

const (
	// linger is how long the first change waits for others.
	linger = 50 * time.Millisecond
	// again is when changes are sent again that the leader did not take.
	again = time.Second
	// perCall bounds the changes in one call.
	perCall = 256

	callTimeout = 5 * time.Second
)

// report sends changes to the leader until the context ends.
func (c *Checker) report(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.pending:
		}
		pause := linger
		for {
			timer := time.NewTimer(pause)
			select {
			case <-ctx.Done():
				timer.Stop()
				return
			case <-timer.C:
			}
			msg, more := c.collect()
			if msg == nil {
				break
			}
			if err := c.send(ctx, msg); err != nil {
				c.opt.Logger.Warn("changes of checks did not reach the leader; they are sent again", "changes", len(msg.Changes), "error", err)
				pause = again
				continue
			}
			c.sent(msg)
			if !more {
				break
			}
			pause = 0
		}
	}
}

// collect gives the next changes to send, or nil, and whether there are others.
func (c *Checker) collect() (msg *command.HealthReport, more bool) {
	reg := c.opt.State.Registry()
	c.mu.Lock()
	defer c.mu.Unlock()
	msg = &command.HealthReport{Running: uint32(c.count), Failing: uint32(c.failing)}
	for key, ch := range c.reports {
		if len(msg.Changes) == perCall {
			return msg, true
		}
		in, ok := reg.Instance(key.Namespace, key.Service, key.ID)
		if !ok {
			delete(c.reports, key)
			continue
		}
		if _, state := in.Check(key.Check); state == nil || state.Revision != ch.observed || state.Status == ch.status {
			delete(c.reports, key)
			continue
		}
		msg.Changes = append(msg.Changes, &command.HealthChange{Check: key.message(),
			Status: ch.status, Output: ch.output, Observed: ch.observed})
	}
	if len(msg.Changes) == 0 {
		return nil, false
	}
	return msg, false
}

func (c *Checker) send(ctx context.Context, msg *command.HealthReport) error {
	payload, err := proto.Marshal(msg)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err = c.opt.Call(ctx, MethodReport, payload)
	return err
}

// sent forgets what the leader took: what it holds back is reported anew by the
// next probe.
func (c *Checker) sent(msg *command.HealthReport) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, ch := range msg.Changes {
		key := keyOf(ch.Check)
		if now, ok := c.reports[key]; ok && now.observed == ch.Observed && now.status == ch.Status {
			delete(c.reports, key)
		}
	}
}

// Serve answers the leader who wants checks looked at now, whosesoever they are.
func (c *Checker) Serve(ctx context.Context, payload []byte) ([]byte, error) {
	var msg command.HealthProbe
	if err := proto.Unmarshal(payload, &msg); err != nil {
		return nil, fault.Wrap(fault.BadRequest, err, "the checks to look at cannot be read")
	}
	if len(msg.Checks) > perCall {
		return nil, fault.New(fault.BadRequest, "one call may ask for %d checks at most", perCall)
	}
	reg := c.opt.State.Registry()
	reply := &command.HealthProbeReply{Status: make([]string, len(msg.Checks))}
	free := make(chan struct{}, confirmProbes)
	done := make(chan int)
	for i, m := range msg.Checks {
		go func() {
			defer func() { done <- i }()
			free <- struct{}{}
			defer func() { <-free }()
			in, ok := reg.Instance(m.Namespace, m.Service, m.Id)
			if !ok || ctx.Err() != nil {
				return
			}
			if check, _ := in.Check(m.Check); check != nil && check.Type != registry.CheckTTL {
				if r := c.opt.Prober.Probe(ctx, check); ctx.Err() == nil {
					reply.Status[i] = r.Status
				}
			}
		}()
	}
	for range msg.Checks {
		<-done
	}
	return proto.Marshal(reply)
}

// confirmProbes bounds the probes of one call of the leader at one time.
const confirmProbes = 64

func (k Key) message() *command.HealthCheck {
	return &command.HealthCheck{Namespace: k.Namespace, Service: k.Service, Id: k.ID, Check: k.Check}
}

func keyOf(m *command.HealthCheck) Key {
	return Key{m.GetNamespace(), m.GetService(), m.GetId(), m.GetCheck()}
}
