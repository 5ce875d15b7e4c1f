package node

import (
	"context"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// notify tells the service manager, if one asked to be told (sd_notify(3)).
func (n *Node) notify(lines ...string) {
	if _, err := daemon.SdNotify(false, strings.Join(lines, "\n")); err != nil {
		n.logger.Warn("the service manager could not be told", "error", err)
	}
}

// follow keeps the service manager informed, and reads again at each SIGHUP
// what can be exchanged while the node runs, until the context ends.
func (n *Node) follow(ctx context.Context, certs *certificates) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	var beat <-chan time.Time
	if every, err := daemon.SdWatchdogEnabled(false); err == nil && every > 0 {
		tick := time.NewTicker(every / 3)
		defer tick.Stop()
		beat = tick.C
	}
	n.notify(daemon.SdNotifyReady)
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
			n.notify(daemon.SdNotifyReloading, "MONOTONIC_USEC="+monotonic())
			n.reopenAudit()
			_ = certs.reload() // it has been logged
			n.notify(daemon.SdNotifyReady)
		case <-beat:
			// A node whose state or whose cluster is stuck does not get here.
			_, _ = n.machine.View(), n.cluster.IsLeader()
			n.notify(daemon.SdNotifyWatchdog)
		}
	}
}

// monotonic is the time by which the manager tells that a reload began after
// it asked for one.
func monotonic() string {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) // fails for unknown clocks only
	return strconv.FormatInt(t.Nano()/1000, 10)
}
