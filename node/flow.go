package node

import (
	"fmt"
	"math"
	"syscall"

	"github.com/muster-registry/muster/flow"
)

// openFlow makes the limits that all client ports share.
func (n *Node) openFlow() {
	l := n.cfg.Limits
	rate := func(perSecond float64, burst int64) flow.Rate {
		if perSecond == 0 {
			perSecond = -1 // none
		}
		return flow.Rate{PerSecond: perSecond, Burst: burst}
	}
	n.flow = flow.New(flow.Limits{
		Connections: l.Connections, ConnectionsPerAddress: l.ConnectionsPerAddress,
		InFlight: l.InFlight, InFlightPerCaller: l.InFlightPerCaller,
		Working: l.Working, Changes: l.Changes, QueueWait: l.QueueWait,
		Blocked: l.Blocked, BlockedPerCaller: l.BlockedPerCaller, Streams: n.cfg.Watch.Watchers, Bodies: int64(l.Bodies),
		Caller:  rate(l.CallerRate, l.CallerBurst),
		Address: rate(l.AddressRate, l.AddressBurst),
		Failed:  rate(l.FailureRate, l.FailureBurst),
	})
	n.metrics.reg.MustRegister(n.flow.Collectors()...)
}

// What of the process's open files the connections of each port may take, in
// sixteenths. Two are left, so that the node can always open its own files and
// reach its peers.
const (
	controlFiles = 9
	policyFiles  = 3
	metricsFiles = 1
	dnsFiles     = 1
)

// connections is how many a port may hold that may take so many sixteenths.
func (n *Node) connections(port string, sixteenths int) int {
	want := n.cfg.Limits.Connections
	var most syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &most); err != nil || most.Cur > math.MaxInt32 {
		return want
	}
	can := max(1, int(most.Cur)*sixteenths/16)
	if can >= want {
		return want
	}
	if sixteenths == controlFiles {
		n.logger.Warn("the process may open too few files for limits.connections, so it takes fewer connections; raise the limit on open files (LimitNOFILE in systemd)",
			"listener", port, "connections", can, "open_files", most.Cur)
	}
	return can
}

func (l *LimitSettings) validateFlow() (errs []error) {
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, v := range []struct {
		name  string
		value float64
	}{
		{"in_flight_per_caller", float64(l.InFlightPerCaller)}, {"working", float64(l.Working)},
		{"caller_rate", l.CallerRate}, {"caller_burst", float64(l.CallerBurst)},
		{"address_rate", l.AddressRate}, {"address_burst", float64(l.AddressBurst)},
		{"failure_rate", l.FailureRate}, {"failure_burst", float64(l.FailureBurst)},
	} {
		if !(v.value >= 0 && v.value <= math.MaxInt32) {
			wrong("limits.%s: %g is out of range; from 0, which is the default", v.name, v.value)
		}
	}
	if l.Bodies < l.Definition || l.Bodies < l.Body {
		wrong("limits.bodies: %s is less than one body may have; at least limits.definition, %s, and limits.body, %s", l.Bodies, l.Definition, l.Body)
	}
	return errs
}
