package node

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/muster-registry/muster/alarm"
	"github.com/muster-registry/muster/cluster"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/setting"
)

// diskAlarms are those by which others know that a node should not lead.
var diskAlarms = []alarm.Name{alarm.DiskStalled, alarm.DiskFailed, alarm.DiskFull}

// raised reports whether the node has one of the alarms.
func (e *extra) raised(names ...alarm.Name) bool {
	return slices.ContainsFunc(e.Alarms, func(a alarm.Alarm) bool { return slices.Contains(names, a.Name) })
}

// roomFor refuses what would take up room on disks that have none. It is for the
// leader: one with a full disk goes on while somebody else has room, who is about
// to lead. What gives up records, takes credentials back or ends a restore goes
// on, out of the reserve.
func (n *Node) roomFor(c *command.Command) error {
	if !grows(c) {
		return nil
	}
	full := n.cluster.DiskHealth().Full
	well, ill, voters := n.lookout.rooms()
	if full {
		ill++
	}
	// A majority has to have room.
	if !(full && well == 0) && voters-ill > voters/2 || ill == 0 {
		return nil
	}
	e := fault.New(fault.DiskFull, "the disks of the nodes are full, so nothing was changed: make room where data_dir is, or delete records; muster cluster status names the nodes")
	e.RetryAfter = 5 * time.Second
	return e
}

func grows(c *command.Command) bool {
	switch op := c.GetOp().(type) {
	case *command.Command_Put:
		return op.Put.Kind != command.Kind_SETTING || op.Put.Service != string(setting.Revocation)
	case *command.Command_PolicyStage, *command.Command_RestoreBegin, *command.Command_RestoreChunk:
		return true
	}
	return false
}

func (n *Node) watchDisk() {
	b := n.alarms
	b.Watch(alarm.DiskStalled, func() string {
		h := n.cluster.DiskHealth()
		if h.Stalled == 0 {
			return ""
		}
		return fmt.Sprintf("a write to the Raft log took %s, and raft.disk_stall is %s: others are to lead", h.Stalled.Round(100*time.Millisecond), n.cfg.Raft.DiskStall)
	})
	b.Watch(alarm.DiskFailed, func() string { return detail(n.cluster.DiskHealth().Failed) })
	b.Watch(alarm.DiskFull, func() string {
		h := n.cluster.DiskHealth()
		if !h.Full {
			return ""
		}
		return fmt.Sprintf("%s are free where data_dir is, and the reserve is %s: this node should not lead, and takes no more than it must", mebibytes(h.Free), mebibytes(h.Reserve))
	})
	b.Watch(alarm.DiskNearlyFull, func() string {
		h := n.cluster.DiskHealth()
		if h.Full || !nearlyFull(h) {
			return ""
		}
		return fmt.Sprintf("%s of %s are free where data_dir is; below %s this node gives up leading, and then changes are refused", mebibytes(h.Free), mebibytes(h.Size), mebibytes(h.Reserve))
	})
}

func nearlyFull(h cluster.DiskHealth) bool {
	return h.Size != 0 && h.Free < min(10*h.Reserve, h.Size/10+h.Reserve)
}

// roomToCompact is how much a copy of the state file may take for a moment, and
// whether every free page counts.
func (n *Node) roomToCompact() (room uint64, scarce bool) {
	h := n.cluster.DiskHealth()
	if h.Size == 0 {
		return math.MaxUint64, false // nobody knows
	}
	return h.Free / 2, nearlyFull(h)
}

func mebibytes(b uint64) string { return fmt.Sprintf("%d MiB", b>>20) }
