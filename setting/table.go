package setting

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	iradix "github.com/hashicorp/go-immutable-radix/v2"

	"github.com/muster-registry/muster/fault"
)

// Bucket is where the settings are stored; the key is kind/namespace/name.
const Bucket = "settings"

// Emit receives every stored change of a Txn, in order. A nil value means the
// record does not exist on that side. The bytes must not be modified.
type Emit func(bucket, key string, old, new []byte)

// Table is every setting at one revision. It is immutable; [Table.Txn] leads
// to the next one.
type Table struct {
	records    *iradix.Tree[*Record]
	conditions []byte
}

// NewTable gives the empty table.
func NewTable() *Table {
	records := iradix.New[*Record]()
	return &Table{records: records, conditions: digest(records.Root())}
}

// Conditions is a digest of the settings that the leader's gate admits changes
// by: which there are, and each one's revision. It is the same on every node,
// and two tables with the same one lead to the same answer.
func (t *Table) Conditions() []byte { return t.conditions }

// conditions are the kinds that an admission depends on.
var conditions = []Kind{BreakGlass, Key, Requirement, Schema, Webhook}

func digest(records *iradix.Node[*Record]) []byte {
	h := sha256.New()
	for _, kind := range conditions {
		it := records.Iterator()
		it.SeekPrefix([]byte(string(kind) + "/"))
		for key, r, ok := it.Next(); ok; key, r, ok = it.Next() {
			h.Write(binary.BigEndian.AppendUint64(append(key[:len(key):len(key)], 0), r.Revision))
		}
	}
	return h.Sum(nil)[:16]
}

// Get gives one setting.
func (t *Table) Get(kind Kind, namespace, name string) (*Record, bool) {
	return t.records.Get([]byte(path(kind, namespace, name)))
}

// All goes through the settings of a kind in order of namespace and name.
func (t *Table) All(kind Kind) iter.Seq[*Record] {
	return func(yield func(*Record) bool) {
		it := t.records.Root().Iterator()
		it.SeekPrefix([]byte(string(kind) + "/"))
		for _, r, ok := it.Next(); ok && yield(r); _, r, ok = it.Next() {
		}
	}
}

// Len is the number of settings of a kind.
func (t *Table) Len(kind Kind) (n int) {
	for range t.All(kind) {
		n++
	}
	return n
}

// List gives up to limit settings of a kind in order of namespace and name,
// beginning behind the cursor after; next is the cursor of the following page,
// "" at the end.
func (t *Table) List(kind Kind, after string, limit int) (items []*Record, next string) {
	prefix := string(kind) + "/"
	it := t.records.Root().Iterator()
	it.SeekLowerBound([]byte(prefix + after))
	for key, r, ok := it.Next(); ok && strings.HasPrefix(string(key), prefix); key, r, ok = it.Next() {
		if string(key) == prefix+after {
			continue
		}
		if len(items) == limit {
			last := items[limit-1]
			return items, last.Namespace + "/" + last.Name
		}
		items = append(items, r)
	}
	return items, ""
}

// Txn changes a table. An operation that fails changes nothing, and the Txn
// stays usable. Not safe for concurrent use.
type Txn struct {
	base    *Table
	records *iradix.Txn[*Record]
	emit    Emit

	conditions []byte // of records; nil: to be made anew
}

// Txn begins a change; emit may be nil.
func (t *Table) Txn(emit Emit) *Txn {
	if emit == nil {
		emit = func(string, string, []byte, []byte) {}
	}
	return &Txn{base: t, records: t.records.Txn(), emit: emit, conditions: t.conditions}
}

// Conditions is what [Table.Conditions] is after the changes so far.
func (x *Txn) Conditions() []byte {
	if x.conditions == nil {
		x.conditions = digest(x.records.Root())
	}
	return x.conditions
}

// insert and remove are the only ways in which records change.
func (x *Txn) insert(key string, r *Record) {
	x.records.Insert([]byte(key), r)
	x.changed(r.Kind)
}

func (x *Txn) remove(key string, r *Record) {
	x.records.Delete([]byte(key))
	x.changed(r.Kind)
}

func (x *Txn) changed(kind Kind) {
	if slices.Contains(conditions, kind) {
		x.conditions = nil
	}
}

// Commit gives the table with the changes in it, the same one when there are
// none. The Txn may go on being used.
func (x *Txn) Commit() *Table {
	if x.records.Root() != x.base.records.Root() {
		x.base = &Table{conditions: x.Conditions(), records: x.records.CommitOnly()}
	}
	return x.base
}

// ErrStale is the result of a change whose record has changed since it was
// decided on; the leader admits it again.
var ErrStale = fault.New(fault.Conflict, "the setting changed while this was decided")

// Put stores a setting. Observed is the revision of the record that the change
// was decided on; 0: it did not exist. Errors are ErrStale and bad_request.
func (x *Txn) Put(st Stamp, kind Kind, namespace, name string, spec []byte, observed uint64) (r *Record, created bool, err error) {
	if err := valid(kind, namespace, name); err != nil {
		return nil, false, err
	}
	key := path(kind, namespace, name)
	old, had := x.records.Get([]byte(key))
	if (had && old.Revision != observed) || (!had && observed != 0) {
		return nil, false, ErrStale
	}
	at := st.Time.UTC()
	r = &Record{Kind: kind, Namespace: namespace, Name: name, Spec: bytes.Clone(spec),
		Revision: st.Revision, CreatedAt: at, CreatedBy: st.By, UpdatedAt: at, UpdatedBy: st.By}
	if had {
		r.CreatedAt, r.CreatedBy = old.CreatedAt, old.CreatedBy
	}
	if r.Spec.Kind() != '{' || !r.Spec.IsValid() {
		return nil, false, fault.New(fault.BadRequest, "the spec of a %s must be an object", kind)
	}
	if err := r.Spec.Compact(); err != nil {
		return nil, false, fault.Wrap(fault.BadRequest, err, "the spec of the %s cannot be read", kind)
	}
	if err := r.seal(); err != nil {
		return nil, false, fault.Wrap(fault.BadRequest, err, "the spec of the %s cannot be read", kind)
	}
	var before []byte
	if had {
		before = old.raw
	}
	x.insert(key, r)
	x.emit(Bucket, key, before, r.raw)
	return r, !had, nil
}

// Revision is that of the record's last change; 0: there is none.
func (x *Txn) Revision(kind Kind, namespace, name string) uint64 {
	if r, had := x.records.Get([]byte(path(kind, namespace, name))); had {
		return r.Revision
	}
	return 0
}

// Keep stores a record of another table as it is, unless there is one of its
// name.
func (x *Txn) Keep(r *Record) {
	key := path(r.Kind, r.Namespace, r.Name)
	if _, had := x.records.Get([]byte(key)); had {
		return
	}
	x.insert(key, r)
	x.emit(Bucket, key, nil, r.raw)
}

// Delete removes a setting that still has the revision observed. Errors are
// ErrStale and not_found.
func (x *Txn) Delete(kind Kind, namespace, name string, observed uint64) error {
	key := path(kind, namespace, name)
	old, had := x.records.Get([]byte(key))
	if !had {
		return fault.New(fault.NotFound, "there is no %s %q", kind, name)
	}
	if old.Revision != observed {
		return ErrStale
	}
	x.remove(key, old)
	x.emit(Bucket, key, old.raw, nil)
	return nil
}

// Load puts back one stored setting as it was emitted. It emits nothing. The
// error says that the store is damaged, or written by a newer version.
func (x *Txn) Load(bucket, key string, value []byte) error {
	if bucket != Bucket {
		return fmt.Errorf("setting: the bucket %s is unknown", bucket)
	}
	r := new(Record)
	if err := json.Unmarshal(value, r, json.RejectUnknownMembers(true)); err != nil {
		return fmt.Errorf("setting: the stored %s cannot be read: %w", key, err)
	}
	if err := valid(r.Kind, r.Namespace, r.Name); err != nil {
		return fmt.Errorf("setting: the stored %s is not one of this version: %w", key, err)
	}
	if path(r.Kind, r.Namespace, r.Name) != key {
		return fmt.Errorf("setting: the stored %s says it is %s", key, path(r.Kind, r.Namespace, r.Name))
	}
	if r.Spec.Kind() != '{' {
		return fmt.Errorf("setting: the stored %s has no spec", key)
	}
	if err := r.seal(); err != nil {
		return fmt.Errorf("setting: the stored %s cannot be read: %w", key, err)
	}
	x.insert(key, r)
	return nil
}
