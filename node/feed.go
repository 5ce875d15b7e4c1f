package node

import (
	"context"
	"time"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/feed"
	"github.com/muster-registry/muster/fsm"
)

// WatchSettings bound what watchers may cost this node.
type WatchSettings struct {
	History      int  `yaml:"history"`       // changes that a watcher can resume from
	HistoryBytes Size `yaml:"history_bytes"` // of the records in them
	Watchers     int  `yaml:"watchers"`      // streams at one time
}

// tell hands on what a view changed to who watches.
func (n *Node) tell(v *fsm.View, ev fsm.Events) {
	if ev.Replaced {
		n.changes.Reset(v.Revision)
		return
	}
	if ev.Policies || ev.Tokens || len(ev.Settings) > 0 {
		defer n.changes.Check()
	}
	events := make([]*feed.Event, 0, len(ev.Records))
	for _, r := range ev.Records {
		if e := feed.Change(r.Bucket, r.Key, r.Revision, r.Old, r.New); e != nil {
			events = append(events, e)
		}
	}
	n.changes.Publish(v.Revision, events)
}

// progress tells watchers regularly how far they are.
func (n *Node) progress(ctx context.Context) {
	tick := time.NewTicker(door.Progress)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			n.changes.Tick()
		case <-ctx.Done():
			return
		}
	}
}
