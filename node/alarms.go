package node

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/muster-registry/muster/alarm"
	"github.com/muster-registry/muster/fault"
)

const (
	// lostAfter is how long a node is without a confirmed leader before that is
	// an alarm: an election fits in several times.
	lostAfter = 5 * time.Second
	// unrunAfter is how long checks may be late.
	unrunAfter = 15 * time.Second
	// jumpTold is how long a jump of the clock is told of.
	jumpTold = 5 * time.Minute
)

// openAlarms makes the board, on which nothing is raised yet.
func (n *Node) openAlarms() { n.alarms = alarm.New(n.logger) }

// watchAlarms puts the conditions of all rooms on the board.
func (n *Node) watchAlarms(reg prometheus.Registerer) {
	b, began := n.alarms, time.Now()
	b.Watch(alarm.QuorumLost, func() string { return n.quorumLost(began) })
	b.Watch(alarm.QuorumAtRisk, n.lookout.atRisk)
	b.Watch(alarm.MemberAway, n.lookout.away)
	b.Watch(alarm.FollowerBehind, n.lookout.behind)
	b.Watch(alarm.ClocksApart, n.lookout.apart)
	n.watchDisk()
	b.Watch(alarm.ClockJumped, func() string {
		by, ago := n.clock.Jump()
		if by == 0 || ago > jumpTold {
			return ""
		}
		return fmt.Sprintf("the wall clock of this node was moved by %s, %s ago", by.Round(100*time.Millisecond), ago.Round(time.Second))
	})
	b.Watch(alarm.StateDiffers, func() string { return detail(n.diverged.err()) })
	b.Watch(alarm.StateSplit, func() string {
		if !n.split.Load() {
			return ""
		}
		return "the nodes differ in their state, and no majority agrees"
	})
	b.Watch(alarm.PolicyUnavailable, func() string { return detail(n.broken()) })
	b.Watch(alarm.CertificateExpiring, func() string { return bad(n.certs.health()) })
	b.Watch(alarm.SnapshotOverdue, func() string { return bad(n.snapshotAlarm()) })
	b.Watch(alarm.AuditDiffers, func() string { _, why := n.heads.state(); return why })
	b.Watch(alarm.AuditFailing, func() string {
		if n.trail == nil || !n.trail.Failing() {
			return ""
		}
		return "the audit trail cannot be written; with audit.on_failure: refuse_writes this node takes no changes"
	})
	b.Watch(alarm.AuditMirrorAway, func() string { return bad(n.mirror.health()) })
	b.Watch(alarm.ChecksNotRun, n.checksNotRun)
	b.Watch(alarm.RedisAway, func() string {
		if n.quotas.Connected() {
			return ""
		}
		return "the Redis that the quotas name does not answer: each node grants its share of the limits"
	})
	reg.MustRegister(b)
}

// quorumLost is about a node that has caught up once, or had time to.
func (n *Node) quorumLost(began time.Time) string {
	age := n.cluster.Staleness()
	if age == math.MaxInt64 {
		age = time.Since(began)
		if _, known := n.cluster.Leader(); known || age < time.Minute {
			return ""
		}
	}
	if age < lostAfter || n.draining.Load() {
		return ""
	}
	return fmt.Sprintf("no leader that a majority of the voters confirms was heard for %s: either this node is cut off, or the majority is lost", age.Round(time.Second))
}

// checksNotRun is about checks of instances that are this node's to run.
func (n *Node) checksNotRun() string {
	if late := n.checker.Late(); late > unrunAfter {
		return fmt.Sprintf("checks wait for %s for their turn on this node; health.probes allows %d at one time", late.Round(time.Second), n.cfg.Health.Probes)
	}
	if idle := n.checker.Idle(); idle > unrunAfter {
		return fmt.Sprintf("this node has run no checks for %s, since it is not connected to a majority; nobody else runs them while gossip takes it for alive", idle.Round(time.Second))
	}
	return ""
}

// quorumLine says, for /readyz?verbose, whether another node may be taken away.
func (n *Node) quorumLine() []string {
	switch voters, there := n.cluster.Quorum(); {
	case voters == 0: // it is in no cluster yet
		return nil
	case voters == 1:
		return []string{"[+] of 1 voter 1 is there: without it there is no cluster"}
	case there-1 > voters/2:
		return []string{fmt.Sprintf("[+] of %d voters %d are there: %d may be taken away", voters, there, there-voters/2-1)}
	default:
		return []string{fmt.Sprintf("[!] of %d voters %d are there: whoever takes another one away takes the quorum", voters, there)}
	}
}

// alarmLines are for /readyz?verbose.
func (n *Node) alarmLines() (lines []string) {
	for _, a := range n.alarms.Raised() {
		lines = append(lines, fmt.Sprintf("[!] alarm %s since %s: %s", a.Name, a.Since.Format(time.RFC3339), a.Detail))
	}
	return lines
}

func detail(err error) string {
	if err == nil {
		return ""
	}
	return fault.From(err).Detail
}

// bad gives what health lines complain of.
func bad(lines []string) string {
	var all []string
	for _, l := range lines {
		if says, is := strings.CutPrefix(l, "[!] "); is {
			all = append(all, says)
		}
	}
	return strings.Join(all, "; ")
}
