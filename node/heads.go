package node

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/admit"
	"github.com/muster-registry/muster/api/rest"
	"github.com/muster-registry/muster/audit"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/fsm"
	"github.com/muster-registry/muster/policy"
)

// methodHead keeps where a node's audit trail has come to in the replicated
// state, or forgets it.
const methodHead = "audit.head"

// A node tells the cluster of its trail when it has caught up, after so many
// lines, of fewer after so long, and when it stops; where that fails, a second later
// once more.
const (
	headLines = 10_000
	headEvery = time.Minute
	headWait  = 2 * time.Second // for the leader
)

// heads is what a node makes of the head of its trail that the cluster knows.
type heads struct {
	turn sync.Mutex // one comparison at a time; is taken before mu

	mu    sync.Mutex // guards all below
	asked bool       // the trail was compared since the start, and is the one that was
	alarm string     // why it is not; "": nothing is known against it
	of    fsm.Head   // the head that the alarm is about
	told  time.Time  // when the cluster was last told
}

func (h *heads) state() (asked bool, alarm string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.asked, h.alarm
}

// due reports whether the cluster is to be told now, of so many new lines.
func (h *heads) due(news uint64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return news >= headLines || news > 0 && time.Since(h.told) >= headEvery
}

// sent notes how telling the cluster went. What the cluster may not know is due
// still.
func (h *heads) sent(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case fault.Is(err, fault.Conflict):
		h.asked = false // somebody else tells of this node's trail: compare
	case err != nil:
		return
	}
	h.told = time.Now()
}

// followHeads compares this node's trail with what the cluster knows of it, once
// the node has caught up, and tells the cluster of it from then on. While the
// two differ it tells nothing, so that the proof stays.
func (n *Node) followHeads(ctx context.Context) {
	if n.trail == nil {
		return
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		if asked, _ := n.heads.state(); !asked {
			n.compareHead(ctx)
		} else if n.heads.due(n.trail.News()) {
			n.tellHead(ctx)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// compareHead asks whether the trail holds the line that the cluster knows.
func (n *Node) compareHead(ctx context.Context) {
	h := &n.heads
	h.turn.Lock()
	defer h.turn.Unlock()
	wait, cancel := context.WithTimeout(ctx, headWait)
	defer cancel()
	if n.cluster.Ready() != nil || n.cluster.ReadIndex(wait) != nil {
		return // the local state may not know the newest head yet
	}
	known := n.machine.View().Heads[n.cfg.NodeID]
	if _, alarm := h.state(); alarm != "" && known == h.of {
		return
	}
	err := n.trail.Holds(audit.Head{Seq: known.Seq, Hash: known.Hash})
	differs, found := errors.AsType[*audit.Differs](err)
	if err != nil && !found {
		n.logger.Warn("the audit trail could not be compared with what the cluster knows of it", "error", err)
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil {
		if h.alarm != "" {
			n.logger.Info("the audit trail is accepted as it is from here on")
		}
		h.asked, h.alarm = true, ""
		return
	}
	h.alarm, h.of = differs.Why, known
	n.logger.Error("the audit trail of this node is not the one that the cluster knows; look into it, and then: muster audit accept "+n.cfg.NodeID, "reason", differs.Why)
	n.trail.Alarm(audit.Entry{Time: time.Now(), Principal: "node:" + n.cfg.NodeID, Reason: differs.Why})
}

// tellHead tells the cluster where the trail has come to. It is on disk before
// the cluster knows it: what a crash takes is never what a node is held to.
func (n *Node) tellHead(ctx context.Context) {
	head, err := n.trail.Anchor()
	if err != nil {
		return // the trail says so itself
	}
	wait, cancel := context.WithTimeout(ctx, headWait)
	defer cancel()
	err = n.sendHead(wait, headCall{Node: n.cfg.NodeID, Seq: head.Seq, Hash: head.Hash})
	n.heads.sent(err)
	if err != nil {
		n.logger.Debug("the cluster was not told of the audit trail", "error", err)
	}
}

// lastHead tells the cluster of what came since, before the node stops. One that
// stops soon after its start compares its trail first: what it wrote meanwhile
// could be cut off unnoticed otherwise.
func (n *Node) lastHead() {
	if n.trail == nil {
		return
	}
	if asked, _ := n.heads.state(); !asked {
		n.compareHead(context.Background())
	}
	if asked, _ := n.heads.state(); asked && n.trail.News() > 0 {
		n.tellHead(context.Background())
	}
}

// headCall is what a node sends to the leader. Seq 0 forgets.
type headCall struct {
	Node string `json:"node"`
	Seq  uint64 `json:"seq,omitzero"`
	Hash string `json:"hash,omitzero"`

	Principal string `json:"principal,omitzero"` // who has it forgotten
	RequestID string `json:"request_id,omitzero"`
	TraceID   string `json:"trace_id,omitzero"`
}

func (n *Node) sendHead(ctx context.Context, h headCall) error {
	payload, err := json.Marshal(h)
	if err != nil {
		return err
	}
	_, err = n.cluster.Call(ctx, methodHead, payload)
	return err
}

// serveHead proposes a head. A node tells of its own trail only.
func (n *Node) serveHead(ctx context.Context, from string, payload []byte) ([]byte, error) {
	var h headCall
	if err := json.Unmarshal(payload, &h, json.RejectUnknownMembers(true)); err != nil {
		return nil, fault.Wrap(fault.BadRequest, err, "the head of the audit trail cannot be read")
	}
	c := &command.Command{Time: time.Now().UnixNano(), Principal: h.Principal, RequestId: h.RequestID, TraceId: h.TraceID,
		Op: &command.Command_AuditHead{AuditHead: &command.AuditHead{Node: h.Node, Seq: h.Seq, Hash: h.Hash}}}
	if h.Seq > 0 {
		if h.Node != from || len(h.Hash) != 64 {
			return nil, fault.New(fault.BadRequest, "a node tells of its own audit trail, by the number and the hash of a line")
		}
		c.Principal = "node:" + from
	}
	_, err := n.cluster.Propose(ctx, c)
	return nil, err
}

// AuditHeads implements rest.Backend.
func (b backend) AuditHeads() []rest.AuditHead {
	all := []rest.AuditHead{}
	for node, h := range b.machine.View().Heads {
		all = append(all, rest.AuditHead{Node: node, Seq: h.Seq, Hash: h.Hash, At: time.Unix(0, h.Time).UTC()})
	}
	slices.SortFunc(all, func(a, b rest.AuditHead) int { return strings.Compare(a.Node, b.Node) })
	return all
}

// ForgetAuditHead implements rest.Backend.
func (b backend) ForgetAuditHead(ctx context.Context, in *command.Intent, node string) error {
	if err := admit.Permit(in, policy.Manage, "cluster", ""); err != nil {
		return err
	}
	if err := b.auditable(); err != nil {
		return err
	}
	return b.sendHead(ctx, headCall{Node: node, Principal: in.Principal.GetId(), RequestID: in.RequestId})
}

// auditHealth gives the lines about the trail for /readyz?verbose.
func (n *Node) auditHealth() []string {
	if n.trail == nil {
		return nil
	}
	return append(n.headHealth(), n.mirror.health()...)
}

func (n *Node) headHealth() []string {
	asked, alarm := n.heads.state()
	switch {
	case alarm != "":
		return []string{"[!] " + alarm}
	case !asked:
		return []string{"[+] the audit trail is not yet compared with what the cluster knows of it"}
	}
	return []string{"[+] the audit trail holds what the cluster knows of it"}
}
