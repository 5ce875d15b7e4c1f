package node

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"time"
)

const (
	methodTickets = "tls.tickets" // shares the keys of session tickets

	ticketPeriod = 12 * time.Hour   // after which there is a new key
	ticketKeep   = 2 * ticketPeriod // after which a key opens nothing any more
	ticketDelay  = time.Minute      // between a key's making and its use, in which all nodes hear of it
	ticketEvery  = 10 * time.Second // between two looks at the leader's keys
	ticketMost   = 16
)

// tickets hold the keys that TLS session tickets are sealed with. They are the
// same on all nodes, so that a client which comes back to another node need
// not prove itself anew by a whole handshake.
//
// Whoever has such a key can make tickets that say any client certificate was
// shown. So they are kept in memory only, made at random by the leader, and
// shared over the peer connections, which take node certificates; nothing else
// that nodes have in common, such as the gossip key or a snapshot, leads to them.
type tickets struct {
	seal *tls.Config // its ticket keys: the one to seal with, then all that open

	mu     sync.Mutex // guards what follows
	own    ticketKey  // of this node alone, until it knows the others'
	shared []ticketKey
}

// ticketKey is one key and when it begins to be used.
type ticketKey struct {
	Key  [32]byte  `json:"key"`
	From time.Time `json:"from"`
}

func newTickets() *tickets {
	t := &tickets{seal: &tls.Config{}, own: newTicketKey(time.Now())}
	t.renew(time.Now(), false)
	return t
}

func newTicketKey(from time.Time) (k ticketKey) {
	rand.Read(k.Key[:]) // never fails: the runtime aborts instead
	k.From = from.UTC()
	return k
}

// share makes the sessions of a listener's configuration those of all nodes.
// Who a resumed session's client is comes out of the ticket; whether its
// certificate is still good is looked at in each request.
func (t *tickets) share(cfg *tls.Config) {
	cfg.WrapSession, cfg.UnwrapSession = t.seal.EncryptTicket, t.seal.DecryptTicket
}

// merge takes keys of another node's.
func (t *tickets) merge(keys []ticketKey, now time.Time) {
	t.mu.Lock()
	for _, k := range keys {
		if !slices.ContainsFunc(t.shared, func(have ticketKey) bool { return have.Key == k.Key }) && k.From.Before(now.Add(2*ticketDelay)) {
			t.shared = append(t.shared, k)
		}
	}
	t.mu.Unlock()
	t.renew(now, false)
}

// renew drops keys that are over, makes a new one on the leader when it is
// time, and puts them into use.
func (t *tickets) renew(now time.Time, leads bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.shared = slices.DeleteFunc(t.shared, func(k ticketKey) bool { return now.Sub(k.From) > ticketKeep })
	slices.SortFunc(t.shared, func(a, b ticketKey) int { return b.From.Compare(a.From) }) // newest first
	t.shared = t.shared[:min(len(t.shared), ticketMost)]
	if now.Sub(t.own.From) > ticketKeep {
		t.own = newTicketKey(now)
	}
	switch {
	case !leads:
	case len(t.shared) == 0:
		t.shared = []ticketKey{newTicketKey(now)}
	case now.Sub(t.shared[0].From) >= ticketPeriod:
		t.shared = slices.Insert(t.shared, 0, newTicketKey(now.Add(ticketDelay)))
	}
	var use, wait [][32]byte
	for _, k := range t.shared {
		if k.From.After(now) {
			wait = append(wait, k.Key)
		} else {
			use = append(use, k.Key)
		}
	}
	t.seal.SetSessionTicketKeys(append(append(use, t.own.Key), wait...))
}

func (t *tickets) encoded() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	b, _ := json.Marshal(t.shared) // arrays of bytes and times
	return b
}

// serveTickets answers another node, on the leader. What the caller brings is
// known from then on: a new leader learns the keys that are in use.
func (n *Node) serveTickets(_ context.Context, _ string, payload []byte) ([]byte, error) {
	var keys []ticketKey
	if err := json.Unmarshal(payload, &keys); err != nil || len(keys) > ticketMost {
		return nil, errors.New("these are no ticket keys")
	}
	n.tickets.merge(keys, time.Now())
	n.tickets.renew(time.Now(), true)
	return n.tickets.encoded(), nil
}

// followTickets keeps this node's keys those of the leader.
func (n *Node) followTickets(ctx context.Context) {
	for wait := time.Second; ; wait = ticketEvery {
		call, cancel := context.WithTimeout(ctx, 2*time.Second)
		answer, err := n.cluster.Call(call, methodTickets, n.tickets.encoded())
		cancel()
		var keys []ticketKey
		if err == nil && json.Unmarshal(answer, &keys) == nil {
			n.tickets.merge(keys, time.Now())
		} else {
			n.tickets.renew(time.Now(), false) // keys end without a leader, too
			wait = time.Second
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}
