package fsm

import (
	"encoding/hex"
	"fmt"
	"sort"
	"sync"
	"time"

	json "github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
)

const repeatBucket = "repeats"

// Repeats are kept for a day of replicated time, and no more than this many and
// this much.
const (
	repeatAge   = 24 * time.Hour
	repeatCount = 65536
	// A record can take megabytes, and each answer is held in memory.
	repeatBytes = 64 << 20
)

// repeat is the first answer to an Idempotency-Key, for those who ask again.
type repeat struct {
	Key      string `json:"key"` // principal, NUL, the caller's key
	Digest   string `json:"digest"`
	Time     int64  `json:"time"`
	Revision uint64 `json:"revision"`
	Created  bool   `json:"created"`
	Record   []byte `json:"record"`
	Decision string `json:"decision_id"`
	Policy   uint64 `json:"policy_revision"`
	Filtered bool   `json:"filtered,omitempty"`
}

// repeatTable is replicated state: the same commands leave the same repeats on
// every node. The applying goroutine changes it; anybody may look.
type repeatTable struct {
	mu    sync.RWMutex // guards byKey and order
	byKey map[string]*repeat
	order []*repeat // by revision: the oldest first
	bytes int       // of those in byKey, so that it is the same after a restart
}

func (r *repeat) size() int { return len(r.Key) + len(r.Record) + 256 }

// set makes r the answer to its key.
func (t *repeatTable) set(r *repeat) {
	t.unset(r.Key)
	t.byKey[r.Key] = r
	t.bytes += r.size()
	t.order = append(t.order, r)
}

func (t *repeatTable) unset(key string) {
	if old, ok := t.byKey[key]; ok {
		t.bytes -= old.size()
		delete(t.byKey, key)
	}
}

func newRepeats() *repeatTable { return &repeatTable{byKey: map[string]*repeat{}} }

func repeatKey(c *command.Command) string { return c.Principal + "\x00" + c.IdempotencyKey }

// find gives the first answer to the same request, or refuses another request
// under the same key.
func (t *repeatTable) find(c *command.Command) (*command.Receipt, error) {
	t.mu.RLock()
	r, ok := t.byKey[repeatKey(c)]
	t.mu.RUnlock()
	if !ok || c.Time-r.Time > int64(repeatAge) {
		return nil, nil
	}
	if r.Digest != hex.EncodeToString(c.RequestDigest) {
		return nil, fault.New(fault.Conflict, "this Idempotency-Key was used for another request; use a new key for a new request")
	}
	return &command.Receipt{
		Revision: r.Revision, Created: r.Created, Record: r.Record,
		DecisionId: r.Decision, PolicyRevision: r.Policy, Filtered: r.Filtered, Repeated: true,
	}, nil
}

// keep remembers the answer and forgets what is too old or too much. The
// changes go to put, a nil value for what is forgotten.
func (t *repeatTable) keep(c *command.Command, receipt *command.Receipt, put func(bucket, key string, value []byte)) {
	r := &repeat{
		Key: repeatKey(c), Digest: hex.EncodeToString(c.RequestDigest), Time: c.Time,
		Revision: receipt.Revision, Created: receipt.Created, Record: receipt.Record,
		Decision: receipt.DecisionId, Policy: receipt.PolicyRevision, Filtered: receipt.Filtered,
	}
	value, err := json.Marshal(r)
	if err != nil {
		panic(fmt.Sprintf("encode repeat: %v", err))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.order) > 0 && (len(t.byKey) >= repeatCount || t.bytes+r.size() > repeatBytes || c.Time-t.order[0].Time > int64(repeatAge)) {
		oldest := t.order[0]
		t.order[0], t.order = nil, t.order[1:]
		// The key may have been used again since, after its time.
		if t.byKey[oldest.Key] == oldest {
			t.unset(oldest.Key)
			put(repeatBucket, oldest.Key, nil)
		}
	}
	t.set(r)
	put(repeatBucket, r.Key, value)
}

func (t *repeatTable) load(key string, value []byte) error {
	r := new(repeat)
	if err := json.Unmarshal(value, r); err != nil {
		return fmt.Errorf("repeat %q: %w", key, err)
	}
	t.set(r)
	return nil
}

func (t *repeatTable) sort() {
	sort.Slice(t.order, func(i, j int) bool { return t.order[i].Revision < t.order[j].Revision })
}
