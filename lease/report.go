package lease

import (
	"context"
	"time"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/registry"
)

// Report is what somebody says of a check of type ttl.
type Report struct {
	Key    Key    // with a check
	Status string // passing, warning, critical
	Output string // clipped to registry.MaxOutput
}

// Absence is what a report was about and is not there.
type Absence uint8

const (
	noInstance Absence = iota + 1
	noCheck            // none of this name, or none of type ttl
)

// Report renews the deadlines of checks, and gives by position what is not
// there. A status that is another than the check has is replicated before it
// returns; an output alone is not.
func (k *Keeper) Report(ctx context.Context, reports []Report) (absent map[int]Absence, err error) {
	reg := k.state.Registry()
	var items []*command.Leases_Item
	absent = map[int]Absence{}
	k.mu.Lock()
	now := k.clock(time.Now())
	for i, r := range reports {
		in, ok := reg.Instance(r.Key.Namespace, r.Key.Service, r.Key.ID)
		if !ok {
			absent[i] = noInstance
			continue
		}
		c, state := in.Check(r.Key.Check)
		if c == nil || c.Type != registry.CheckTTL {
			absent[i] = noCheck
			continue
		}
		if k.on && c.TTL > 0 && r.Status != registry.Critical {
			d := k.set(r.Key, now.Add(time.Duration(c.TTL)), false)
			d.renewed = in.Renewed()
			d.beat(now)
		}
		if state.Status != r.Status {
			items = append(items, result(in, r.Key.Check, r.Status, r.Output, 0))
		}
	}
	k.mu.Unlock()
	return absent, k.propose(ctx, items)
}

// silent says what happens to a check that nobody reported about for its TTL;
// nil: nothing.
func silent(in *registry.Instance, check string) (it *command.Leases_Item, ttl registry.Duration) {
	c, state := in.Check(check)
	if c == nil || c.Type != registry.CheckTTL || c.TTL == 0 || state.Status == registry.Critical {
		return nil, 0
	}
	return result(in, check, registry.Critical, "TTL expired: nobody reported for "+c.TTL.String(), state.Revision), c.TTL
}

func result(in *registry.Instance, check, status, output string, observed uint64) *command.Leases_Item {
	return &command.Leases_Item{
		Namespace: in.Namespace, Service: in.Service, Name: in.ID, Change: command.Leases_CHECK,
		Check: check, Status: status, Output: registry.ClipOutput(output), Observed: observed,
	}
}
