package flow

import (
	"hash/maphash"
	"net/netip"
)

// Meter holds addresses to a rate each, for an edge whose callers prove nothing.
// It takes a fixed half a megabyte, however many addresses there are; those of
// IPv6 count by their network of 64 bits. It is for many goroutines.
type Meter struct{ meter *meter }

// NewMeter makes a meter; with the zero Rate it lets everything through.
func NewMeter(name string, r Rate) *Meter { return &Meter{newMeter(name, maphash.MakeSeed(), r)} }

// Allow takes a request from an address into account, and says whether it is
// within the rate.
func (m *Meter) Allow(from netip.Addr) bool {
	if m.meter == nil {
		return true
	}
	a, b := at(m.meter, network(from))
	now := m.meter.now()
	if m.meter.over(a, b, now) > 0 {
		return false
	}
	m.meter.add(a, now)
	m.meter.add(b, now)
	return true
}
