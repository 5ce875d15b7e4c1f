package client

import (
	"context"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/fault"
)

// How long an instance has to leave after its context has ended.
const leaveTime = 5 * time.Second

// Keep registers an instance, renews its lease three times in each TTL, and
// registers it again where the cluster does not know it any more, until ctx
// ends; then it takes the instance out. spec is the instance as the API takes
// it, and w the condition of the first registration.
//
// tell, which may be nil, gets every error that is tried again, and nil when the
// instance is registered or renewed after one. Keep returns an error where the
// first registration was definitely refused, or the instance could not be taken
// out: it then ends with its lease.
func (c *Client) Keep(ctx context.Context, r Ref, spec []byte, w Write, tell func(error)) error {
	k := keeper{client: c, ref: r, spec: spec, write: w, tell: tell}
	if err := k.run(ctx); err != nil {
		return err
	}
	leave, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTime)
	defer cancel()
	err := c.Delete(leave, r, Write{})
	if fault.Is(err, fault.InstanceNotFound) || fault.Is(err, fault.ServiceNotFound) {
		return nil
	}
	return err
}

type keeper struct {
	client *Client
	ref    Ref
	spec   []byte
	write  Write
	tell   func(error)

	registered bool
	failing    bool
	ttl        time.Duration // 0: the instance has no lease
}

func (k *keeper) run(ctx context.Context) error {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 100*time.Millisecond, 5*time.Second
	for first := true; ; {
		err := k.step(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && first && definite(err) {
			return err
		}
		wait := k.ttl / 3
		if err != nil {
			wait = pause.NextBackOff()
		} else {
			pause.Reset()
			first = false
		}
		k.report(err)
		var next <-chan time.Time
		if wait > 0 {
			next = time.After(wait)
		}
		select {
		case <-next:
		case <-ctx.Done():
			return nil
		}
	}
}

func (k *keeper) report(err error) {
	if k.tell != nil && (err != nil || k.failing) {
		k.tell(err)
	}
	k.failing = err != nil
}

// step registers the instance where it is not, and renews its lease where it is.
func (k *keeper) step(ctx context.Context) error {
	if k.registered {
		err := k.client.Heartbeat(ctx, k.ref)
		if !fault.Is(err, fault.InstanceNotFound) && !fault.Is(err, fault.ServiceNotFound) {
			return err
		}
		k.registered = false
	}
	record, err := k.client.Put(ctx, k.ref, k.spec, k.write)
	if err != nil {
		return err
	}
	var lease struct {
		TTL string `json:"ttl"`
	}
	if err := json.Unmarshal(record.JSON, &lease); err != nil {
		return unreadable(err)
	}
	k.registered = true
	k.write = Write{CreateService: k.write.CreateService} // what it was before is of no matter any more
	k.ttl, err = time.ParseDuration(lease.TTL)
	return err
}
