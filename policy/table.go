package policy

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"

	iradix "github.com/hashicorp/go-immutable-radix/v2"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/fault"
)

// The buckets and the keys that the table is stored under.
const (
	BucketRevisions = "policies" // key: the number, 20 digits; value: the record
	BucketActive    = "policy"   // key: KeyActive; value: {"revision":n}; key: KeySigned; value: {"number":n}
	KeyActive       = "active"
	KeySigned       = "signed"
)

// Kept is how many retired revisions, and how many staged ones, the history
// holds on to; older ones are forgotten.
const Kept = 100

// Emit receives every stored change, in order. A nil new value is a deletion,
// a nil old one a creation. The bytes must not be modified.
type Emit func(bucket, key string, old, new []byte)

// Table is the history of revisions at one moment. It is immutable, and
// changes by a [Txn].
type Table struct {
	revisions *iradix.Tree[*Revision]
	active    uint64
	shadow    uint64
	signed    uint64 // highest number accepted under a signature, outlives the revision
	retired   int    // how many revisions are
	staged    int
}

// shelf gives the count that is kept for a state; nil when none is.
func (t *Table) shelf(s State) *int {
	switch s {
	case Retired:
		return &t.retired
	case Staged:
		return &t.staged
	}
	return nil
}

// NewTable gives the empty history, with no policy active.
func NewTable() *Table { return &Table{revisions: iradix.New[*Revision]()} }

func treeKey(number uint64) []byte { return binary.BigEndian.AppendUint64(nil, number) }

func recordKey(number uint64) string { return fmt.Sprintf("%020d", number) }

// Active gives the active revision; nil when none is.
func (t *Table) Active() *Revision {
	r, _ := t.Get(t.active)
	return r
}

// Shadow gives the revision that is evaluated beside the active one; nil when
// none is.
func (t *Table) Shadow() *Revision {
	r, _ := t.Get(t.shadow)
	return r
}

// Get gives the revision of that number.
func (t *Table) Get(number uint64) (*Revision, bool) {
	return t.revisions.Get(treeKey(number))
}

// List gives at most limit revisions above the number after, in order, and the
// number to go on after; 0 when there are no more.
func (t *Table) List(after uint64, limit int) (items []*Revision, next uint64) {
	it := t.revisions.Root().Iterator()
	it.SeekLowerBound(treeKey(after + 1))
	for _, r, ok := it.Next(); ok; _, r, ok = it.Next() {
		if len(items) == limit {
			return items, items[limit-1].Number
		}
		items = append(items, r)
	}
	return items, 0
}

// Len is the number of revisions in the history.
func (t *Table) Len() int { return t.revisions.Len() }

// RollbackTarget gives the revision that a rollback activates: the one that
// the active revision replaced. The error is not_found or conflict.
func (t *Table) RollbackTarget() (*Revision, error) {
	active := t.Active()
	if active == nil {
		return nil, fault.New(fault.NotFound, "no policy is active, so there is nothing to roll back")
	}
	if active.Replaces == 0 {
		return nil, fault.New(fault.Conflict, "policy revision %d was the first; there is none before it to go back to", active.Number)
	}
	r, ok := t.Get(active.Replaces)
	if !ok {
		return nil, fault.New(fault.NotFound, "policy revision %d, which was active before, is no longer in the history; activate another by its number", active.Replaces)
	}
	return r, nil
}

// Txn changes a table. An operation that fails changes nothing, and the Txn
// stays usable. Not safe for concurrent use.
type Txn struct {
	table     Table // current values; revisions is replaced by tree on Commit
	revisions *iradix.Txn[*Revision]
	emit      Emit
}

// Txn starts a change. A nil emit is allowed.
func (t *Table) Txn(emit Emit) *Txn {
	if emit == nil {
		emit = func(string, string, []byte, []byte) {}
	}
	return &Txn{table: *t, revisions: t.revisions.Txn(), emit: emit}
}

// Commit gives the changed table. The Txn may go on being used.
func (x *Txn) Commit() *Table {
	t := x.table
	t.revisions = x.revisions.CommitOnly()
	return &t
}

// Active gives the number of the active revision, with the changes made so far; 0 when none is.
func (x *Txn) Active() uint64 { return x.table.active }

// Draft is what staging stores: JSON as [Content.Encode], [Report.Encode] and
// [Origin.Encode] make it; the origin may be empty.
type Draft struct {
	Content, Report, Origin []byte
	Digest                  string
	Engine                  string
}

// Stage adds a revision with the next number. Errors are bad_request, a part of
// the draft cannot be read, and ErrOvertaken.
func (x *Txn) Stage(st Stamp, d Draft) (*Revision, error) {
	r := &Revision{
		Number: x.last() + 1, Digest: d.Digest, Engine: d.Engine,
		CreatedAt: st.Time.UTC(), CreatedBy: st.By,
	}
	if err := json.Unmarshal(d.Content, &r.Content); err != nil {
		return nil, fault.Wrap(fault.BadRequest, err, "the content of the policy revision cannot be read")
	}
	if err := json.Unmarshal(d.Report, &r.Report); err != nil {
		return nil, fault.Wrap(fault.BadRequest, err, "the report on the policy revision cannot be read")
	}
	if len(d.Origin) > 0 {
		if err := json.Unmarshal(d.Origin, &r.Origin); err != nil {
			return nil, fault.Wrap(fault.BadRequest, err, "the origin of the policy revision cannot be read")
		}
	}
	if err := x.countUp(r.Signature); err != nil {
		return nil, err
	}
	r.enter(Staged, st, "")
	x.put(nil, r)
	x.forget(Staged)
	return r, nil
}

// enter moves the revision, which must not be shared yet, into a state.
func (r *Revision) enter(s State, st Stamp, note string) {
	r.State, r.ChangedAt = s, st.Revision
	steps := r.Steps
	if len(steps) >= maxSteps {
		steps = steps[len(steps)-maxSteps+1:]
	}
	r.Steps = append(slices.Clone(steps), Step{Step: string(s), At: st.Time.UTC(), By: st.By, Note: note})
}

// maxSteps bounds the history of one revision: the newest are kept.
const maxSteps = 50

// Shadow makes a staged or retired revision the shadow, in the place of the
// one that was, which is staged again. Share is of the decisions, above 0 and
// up to 1. Errors are not_found, conflict and invalid_field.
func (x *Txn) Shadow(st Stamp, number uint64, share float64) (*Revision, error) {
	found, ok := x.revisions.Get(treeKey(number))
	switch {
	case !ok:
		return nil, fault.New(fault.NotFound, "there is no policy revision %d", number)
	case number == x.table.active:
		return nil, fault.New(fault.Conflict, "policy revision %d is active; only another one can be its shadow", number)
	case !(share > 0 && share <= 1):
		return nil, fault.Invalid("/share", "must be above 0 and at most 1")
	}
	if number != x.table.shadow {
		x.unshadow(st)
	}
	next := *found
	next.enter(Shadow, st, "")
	next.Share = share
	x.put(found, &next)
	x.table.shadow = number
	x.forget(Staged) // only now: the new shadow may have been the oldest that was staged
	return &next, nil
}

// Unshadow ends the shadow: it is staged again. The error is not_found.
func (x *Txn) Unshadow(st Stamp) (*Revision, error) {
	if r := x.unshadow(st); r != nil {
		x.forget(Staged)
		return r, nil
	}
	return nil, fault.New(fault.NotFound, "no policy revision is the shadow")
}

// unshadow leaves it to its caller to forget what is staged above the number kept.
func (x *Txn) unshadow(st Stamp) *Revision {
	old, ok := x.revisions.Get(treeKey(x.table.shadow))
	if !ok {
		return nil
	}
	next := *old
	next.enter(Staged, st, "no longer the shadow")
	next.Share = 0
	x.put(old, &next)
	x.table.shadow = 0
	return &next
}

// Activate makes a revision the active one and retires the one that was. It
// is a compare-and-swap: expect is the number that the caller believes to be
// active, 0 for none. Activating what is active already changes nothing. A
// rollback keeps the line of what replaced what. Errors are not_found and conflict.
func (x *Txn) Activate(st Stamp, number, expect uint64, rollback bool) (*Revision, error) {
	if x.table.active != expect {
		return nil, fault.New(fault.Conflict, "policy revision %s is active, not %s: another change came first; look at it and try again",
			name(x.table.active), name(expect))
	}
	found, ok := x.revisions.Get(treeKey(number))
	if !ok {
		return nil, fault.New(fault.NotFound, "there is no policy revision %d", number)
	}
	if number == x.table.active {
		return found, nil
	}
	next := *found
	note := ""
	if rollback {
		note = "rolled back from " + name(x.table.active)
	} else {
		next.Replaces = x.table.active
	}
	next.enter(Active, st, note)
	next.ActivatedAt, next.ActivatedBy, next.Share = st.Time.UTC(), st.By, 0
	if number == x.table.shadow {
		x.table.shadow = 0
	}
	if old, ok := x.revisions.Get(treeKey(x.table.active)); ok {
		retired := *old
		retired.enter(Retired, st, "")
		x.put(old, &retired)
	}
	x.put(found, &next)
	before := x.activeValue()
	x.table.active = number
	x.emit(BucketActive, KeyActive, before, x.activeValue())
	x.forget(Retired)
	return &next, nil
}

// Load puts back one stored value, as it was emitted. The order does not
// matter. The error says that the store is damaged.
func (x *Txn) Load(bucket, key string, value []byte) error {
	switch {
	case bucket == BucketActive && key == KeyActive:
		var v activeRecord
		if err := json.Unmarshal(value, &v); err != nil {
			return fmt.Errorf("policy: the stored %s/%s cannot be read: %w", bucket, key, err)
		}
		x.table.active = v.Revision
		return nil
	case bucket == BucketActive && key == KeySigned:
		var v signedRecord
		if err := json.Unmarshal(value, &v); err != nil {
			return fmt.Errorf("policy: the stored %s/%s cannot be read: %w", bucket, key, err)
		}
		x.table.signed = v.Number
		return nil
	case bucket == BucketRevisions:
		r := &Revision{JSON: append([]byte(nil), value...)}
		if err := json.Unmarshal(r.JSON, r); err != nil {
			return fmt.Errorf("policy: the stored %s/%s cannot be read: %w", bucket, key, err)
		}
		if recordKey(r.Number) != key {
			return fmt.Errorf("policy: the stored %s/%s holds revision %d", bucket, key, r.Number)
		}
		if r.State == Shadow {
			x.table.shadow = r.Number
		}
		x.insert(r)
		return nil
	}
	return fmt.Errorf("policy: the stored %s/%s is unknown", bucket, key)
}

type activeRecord struct {
	Revision uint64 `json:"revision"`
}

// activeValue is what is stored about the active revision; nil for none.
func (x *Txn) activeValue() []byte {
	if x.table.active == 0 {
		return nil
	}
	return fmt.Appendf(nil, `{"revision":%d}`, x.table.active)
}

// put stores next in the place of old and tells.
func (x *Txn) put(old, next *Revision) {
	next.JSON = next.encode()
	var before []byte
	if old != nil {
		before = old.JSON
	}
	x.insert(next)
	x.emit(BucketRevisions, recordKey(next.Number), before, next.JSON)
}

func (x *Txn) insert(r *Revision) {
	old, had := x.revisions.Insert(treeKey(r.Number), r)
	if had {
		x.count(old.State, -1)
	}
	x.count(r.State, 1)
}

func (x *Txn) count(s State, by int) {
	if n := x.table.shelf(s); n != nil {
		*n += by
	}
}

// forget removes the lowest revisions of a state above the number kept.
func (x *Txn) forget(s State) {
	for *x.table.shelf(s) > Kept {
		it := x.revisions.Root().Iterator()
		_, r, ok := it.Next()
		for ok && r.State != s {
			_, r, ok = it.Next()
		}
		if !ok {
			return
		}
		x.revisions.Delete(treeKey(r.Number))
		x.count(s, -1)
		x.emit(BucketRevisions, recordKey(r.Number), r.JSON, nil)
	}
}

// last is the highest number in the history. It is never forgotten, so numbers
// are not used twice.
func (x *Txn) last() uint64 {
	_, r, ok := x.revisions.Root().Maximum()
	if !ok {
		return 0
	}
	return r.Number
}

func name(number uint64) string {
	if number == 0 {
		return "none"
	}
	return strconv.FormatUint(number, 10)
}
