package flow

import (
	"context"
	"io"
	"net/netip"
)

// Visit is one request on its way through the limits. An edge calls Arrive
// first and Leave last, whatever happens in between. Its zero value, before
// Arrive, holds nothing; it is not for use by several goroutines.
type Visit struct {
	flow   *Flow
	from   netip.Addr
	who    Caller
	kind   Kind
	known  bool
	paused bool
	place  part
	turn   part
	memory part
}

// Arrive takes in a request from an address, host:port, whose sender is not
// known yet. Every other method does nothing on a visit that did not arrive.
func (v *Visit) Arrive(f *Flow, remote string) error {
	v.flow = f
	if f.arriving.Add(1) > int64(f.limits.InFlight) {
		f.metrics.refused(f.inFlight.name)
		return f.inFlight.full(false)
	}
	if f.addresses == nil && f.failed == nil {
		return nil
	}
	v.from = address(remote)
	if f.failed != nil {
		a, b := at(f.failed, v.from)
		if err := f.failed.room(a, b, f.failed.now()); err != nil {
			f.metrics.refused(f.failed.name)
			return err
		}
	}
	if f.addresses != nil {
		if err := count(f.addresses, v.from); err != nil {
			f.metrics.refused(f.addresses.name)
			return err
		}
	}
	return nil
}

// Failed says that the sender did not prove who it is. Who goes on like that
// is refused before anything is proven.
func (v *Visit) Failed() {
	if v.flow == nil || v.flow.failed == nil {
		return
	}
	a, b := at(v.flow.failed, v.from)
	now := v.flow.failed.now()
	v.flow.failed.add(a, now)
	v.flow.failed.add(b, now)
}

// Enter gives the request, whose sender is now known, a place among those in
// flight. A second call, by the same sender, does nothing.
func (v *Visit) Enter(who Caller) error {
	if v.flow == nil || v.known {
		return nil
	}
	v.flow.arriving.Add(-1)
	v.known, v.who = true, who
	if v.flow.callers != nil && !who.Operator {
		if err := count(v.flow.callers, who.ID); err != nil {
			v.flow.metrics.refused(v.flow.callers.name)
			return err
		}
	}
	var err error
	v.place, err = v.flow.inFlight.take(context.Background(), who, 1)
	return err
}

// Begin waits for the request's turn to be answered. The turn lasts until
// Pause or Leave. A request must not hold it while it waits for its own sender:
// neither for the body to come, nor for the answer to be taken.
func (v *Visit) Begin(ctx context.Context, kind Kind) (err error) {
	if v.flow == nil || v.turn.pool != nil {
		return nil
	}
	v.kind = kind
	v.turn, err = v.flow.turns[kind].take(ctx, v.who, 1)
	return err
}

// Pause gives the turn back, if there is one, until Resume.
func (v *Visit) Pause() {
	v.paused = v.Busy()
	v.turn.release()
}

// Busy reports whether the request has its turn.
func (v *Visit) Busy() bool { return v.turn.pool != nil }

// Resume waits for a turn of the same kind as before Pause or Block, if there
// was one.
func (v *Visit) Resume(ctx context.Context) error {
	if !v.paused {
		return nil
	}
	return v.Begin(ctx, v.kind)
}

// small is the size of bodies that are not counted: of as many as there are
// places in flight they take no more memory than the requests themselves.
const (
	small = 16 << 10
	first = 512 // what a body gets whose length is not known
)

// Read reads a body to its end. Memory is set aside for it as it grows, and
// waited for where there is none; a length that is only announced (else -1)
// buys no more than what has come of it warrants. It is held until Leave. The
// caller bounds what is read. Errors of the reader pass.
func (v *Visit) Read(ctx context.Context, from io.Reader, announced int64) ([]byte, error) {
	size := int64(first)
	if announced >= 0 && announced < small {
		size = announced
	}
	b := make([]byte, 0, size+1) // the last byte has room for the end to be noticed
	for {
		if len(b) == cap(b) {
			size = int64(len(b)) * 8
			if announced >= int64(len(b)) {
				size = min(size, announced)
			}
			if err := v.remember(ctx, size+1); err != nil {
				return nil, err
			}
			b = append(make([]byte, 0, size+1), b...)
		}
		n, err := from.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if err == io.EOF { //nolint:errorlint // as io.ReadAll has it
			return b, nil
		}
		if err != nil {
			return b, err
		}
	}
}

// remember waits for memory for n bytes in all.
func (v *Visit) remember(ctx context.Context, n int64) (err error) {
	if v.flow == nil || n <= small || n <= v.memory.n {
		return nil
	}
	// To hold one piece and wait for another would let many wait for each other.
	v.memory.release()
	v.memory, err = v.flow.bodies.take(ctx, v.who, n)
	return err
}

// Block makes the request one of those that wait for a change: it gives its
// turn and its place among those in flight back. It stays one until Leave.
func (v *Visit) Block() error {
	if v.flow == nil {
		return nil
	}
	return v.become(v.flow.blocked)
}

// Follow makes the request a stream in the same way.
func (v *Visit) Follow() error {
	if v.flow == nil {
		return nil
	}
	return v.become(v.flow.streams)
}

func (v *Visit) become(one *pool) error {
	if v.place.pool == one {
		return nil
	}
	place, err := one.take(context.Background(), v.who, 1)
	if err != nil {
		return err
	}
	v.place.release()
	v.place = place
	v.Pause()
	return nil
}

// Leave gives everything back.
func (v *Visit) Leave() {
	if v.flow == nil {
		return
	}
	v.turn.release()
	v.memory.release()
	v.place.release()
	if !v.known {
		v.flow.arriving.Add(-1)
	}
	*v = Visit{}
}

// address is what a sender is known by before anything is proven: its address,
// of which IPv6 gives every host as many as there are in a network of 64 bits.
func address(remote string) netip.Addr {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{} // all of them together
	}
	return network(ap.Addr())
}

func network(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}
