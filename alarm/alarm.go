// Package alarm owns the one list of what is wrong with a node: which alarms
// there are, which are raised, since when and why. It keeps no figures of its
// own: each alarm is a condition that another room can already tell, looked at
// once a second. It refuses to act: whoever can mend something does so where the
// trouble is; this list is for people and for what wakes them.
package alarm

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Name is the stable name of an alarm: in the metric, the status, the log, and
// the heading of its runbook.
type Name string

// The alarms, those first that take a node or the cluster out of service.
const (
	QuorumLost          Name = "quorum_lost"          // no leader that a majority confirms is heard
	QuorumAtRisk        Name = "quorum_at_risk"       // one more loss would end changes; leader
	MemberAway          Name = "member_away"          // a member does not answer; leader
	FollowerBehind      Name = "follower_behind"      // a member does not keep up with the log; leader
	StateDiffers        Name = "state_differs"        // this node's state is not the cluster's
	StateSplit          Name = "state_split"          // states differ and no majority has one; leader
	PolicyUnavailable   Name = "policy_unavailable"   // the active policy does not compile here
	DiskStalled         Name = "disk_stalled"         // writes to the log take too long
	DiskFailed          Name = "disk_failed"          // the log cannot be written until a restart
	DiskFull            Name = "disk_full"            // less than the reserve is free
	DiskNearlyFull      Name = "disk_nearly_full"     // soon it will be
	ClockJumped         Name = "clock_jumped"         // the wall clock was set, or the machine stood still
	ClocksApart         Name = "clocks_apart"         // a member's clock differs from the leader's; leader
	CertificateExpiring Name = "certificate_expiring" // a certificate or an authority ends soon, or has ended
	SnapshotOverdue     Name = "snapshot_overdue"     // no scheduled snapshot in time; leader
	AuditDiffers        Name = "audit_differs"        // the trail is not the one that the cluster knows
	AuditFailing        Name = "audit_failing"        // the trail cannot be written
	AuditMirrorAway     Name = "audit_mirror_away"    // the sink of the mirror takes no lines
	ChecksNotRun        Name = "checks_not_run"       // active checks are not run in time
	RedisAway           Name = "redis_away"           // the Redis of the quotas does not answer
)

// Names lists all alarms.
func Names() []Name {
	return []Name{
		QuorumLost, QuorumAtRisk, MemberAway, FollowerBehind, StateDiffers, StateSplit, PolicyUnavailable,
		DiskStalled, DiskFailed, DiskFull, DiskNearlyFull, ClockJumped, ClocksApart,
		CertificateExpiring, SnapshotOverdue, AuditDiffers, AuditFailing, AuditMirrorAway, ChecksNotRun, RedisAway,
	}
}

// Alarm is one that is raised.
type Alarm struct {
	Name   Name      `json:"alarm"`
	Detail string    `json:"detail"` // one line: what was seen
	Since  time.Time `json:"since"`  // by this node's clock
}

// Condition tells what is wrong at present, in one line, or "" when nothing is.
// It must not wait for anything.
type Condition func() string

const (
	look = time.Second // how often the conditions are looked at
	// calm is how many good looks in a row end an alarm, so that one on the edge
	// does not flutter: what is tried every five seconds, and fails, stays raised.
	calm = 6
)

// Board is the list of one node. Its methods may be called from any goroutine,
// Watch only before Run.
type Board struct {
	log        *slog.Logger
	desc       *prometheus.Desc
	conditions map[Name]Condition

	mu     sync.Mutex // guards raised
	raised map[Name]*entry
}

type entry struct {
	Alarm
	well int // good looks since the last bad one
}

// New makes a board on which nothing is raised.
func New(log *slog.Logger) *Board {
	return &Board{
		log: log, conditions: map[Name]Condition{}, raised: map[Name]*entry{},
		desc: prometheus.NewDesc("muster_alarm", "1 while the alarm is raised on this node, else 0; docs/operations.md says what to do about each.", []string{"alarm"}, nil),
	}
}

// Watch has the condition looked at under the name.
func (b *Board) Watch(name Name, c Condition) {
	if _, twice := b.conditions[name]; twice || !slices.Contains(Names(), name) {
		panic("alarm: " + string(name) + " is watched twice or is no alarm")
	}
	b.conditions[name] = c
}

// Run looks at the conditions until the context ends.
func (b *Board) Run(ctx context.Context) {
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		b.Look(time.Now())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Look looks at all conditions once.
func (b *Board) Look(now time.Time) {
	for _, name := range Names() {
		if c := b.conditions[name]; c != nil {
			b.set(name, strings.Join(strings.Fields(c()), " "), now)
		}
	}
}

func (b *Board) set(name Name, detail string, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.raised[name]
	switch {
	case detail == "" && e == nil:
	case detail == "" && e.well+1 < calm:
		e.well++
	case detail == "":
		delete(b.raised, name)
		b.log.Info("an alarm is over", "alarm", string(name), "lasted", now.Sub(e.Since).Round(time.Second).String())
	case e == nil:
		b.raised[name] = &entry{Alarm: Alarm{Name: name, Detail: detail, Since: now.UTC()}}
		b.log.Error("an alarm is raised; docs/operations.md says what to do", "alarm", string(name), "detail", detail)
	default:
		e.Detail, e.well = detail, 0
	}
}

// Raised lists the alarms that are raised, in the order of Names.
func (b *Board) Raised() []Alarm {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []Alarm
	for _, name := range Names() {
		if e := b.raised[name]; e != nil {
			out = append(out, e.Alarm)
		}
	}
	return out
}

// Describe implements prometheus.Collector.
func (b *Board) Describe(to chan<- *prometheus.Desc) { to <- b.desc }

// Collect implements prometheus.Collector. Each alarm has a series, raised or
// not, so that alerts can be written before the first.
func (b *Board) Collect(to chan<- prometheus.Metric) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, name := range Names() {
		v := 0.0
		if b.raised[name] != nil {
			v = 1
		}
		to <- prometheus.MustNewConstMetric(b.desc, prometheus.GaugeValue, v, string(name))
	}
}
