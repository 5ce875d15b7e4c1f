package fsm

import (
	"fmt"
	"maps"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
)

// headBucket holds where the nodes' audit trails have come to. It is no part of
// the state that has a hash and goes into snapshots: trails are not restored.
const headBucket = "heads"

// Head is where the audit trail of a node had come to when the node last said so.
type Head struct {
	Seq  uint64 `json:"seq"`  // number of a line that was on the node's disk
	Hash string `json:"hash"` // of that line, in hexadecimal
	Time int64  `json:"time"` // Unix nanoseconds, by the leader
}

// auditHead keeps a later head, or forgets one. A head that says otherwise than
// the one that is known changes nothing.
func (b *batch) auditHead(c *command.Command, h *command.AuditHead) (*command.Receipt, error) {
	old, known := b.heads[h.Node]
	if h.Seq == 0 {
		if !known {
			return nil, fault.New(fault.NotFound, "no head of an audit trail is known of node %s", h.Node)
		}
		b.setHead(h.Node, nil)
		return b.took(), nil
	}
	if old.Seq > h.Seq || old.Seq == h.Seq && old.Hash != h.Hash {
		return nil, fault.New(fault.Conflict, "the cluster knows line %d of the audit trail of node %s by another hash, or a later one than line %d", old.Seq, h.Node, h.Seq)
	}
	b.setHead(h.Node, &Head{Seq: h.Seq, Hash: h.Hash, Time: c.Time})
	return &command.Receipt{Revision: b.revision}, nil
}

// setHead replaces the map, which views share.
func (b *batch) setHead(node string, h *Head) {
	b.heads = maps.Clone(b.heads)
	if h == nil {
		delete(b.heads, node)
		b.delta.put(headBucket, node, nil)
		return
	}
	if b.heads == nil {
		b.heads = map[string]Head{}
	}
	b.heads[node] = *h
	raw, err := json.Marshal(h, json.Deterministic(true))
	if err != nil {
		panic(fmt.Sprintf("encode the head of a trail: %v", err))
	}
	b.delta.put(headBucket, node, raw)
}

func (l *loader) head(node string, value []byte) error {
	var h Head
	if err := json.Unmarshal(value, &h, json.RejectUnknownMembers(true)); err != nil {
		return fmt.Errorf("the stored head of the audit trail of %s cannot be read: %w", node, err)
	}
	if l.v.Heads == nil {
		l.v.Heads = map[string]Head{}
	}
	l.v.Heads[node] = h
	return nil
}
