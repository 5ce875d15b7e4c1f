package identity

import (
	"github.com/go-json-experiment/json"
	iradix "github.com/hashicorp/go-immutable-radix/v2"

	"github.com/muster-registry/muster/fault"
)

// Bucket is where the stored tokens are kept; the key is the token's id.
const Bucket = "tokens"

// Emit receives every stored change of a Txn, in order. A nil value means the
// record does not exist on that side. The bytes must not be modified.
type Emit func(bucket, key string, old, new []byte)

// Table is every token at one revision. It is immutable; [Table.Txn] leads to
// the next one.
type Table struct {
	tokens *iradix.Tree[*Token]
	access *Access // nil: no rules, nothing revoked
}

// With gives the same tokens, held to these rules and revocations.
func (t *Table) With(a *Access) *Table { return &Table{tokens: t.tokens, access: a} }

// Access gives the rules and revocations that the table is held to; nil: none.
func (t *Table) Access() *Access { return t.access }

// NewTable gives the empty table.
func NewTable() *Table { return &Table{tokens: iradix.New[*Token]()} }

// Get gives the token with the id.
func (t *Table) Get(id string) (*Token, bool) { return t.tokens.Get([]byte(id)) }

// Len is the number of tokens.
func (t *Table) Len() int { return t.tokens.Len() }

// List gives up to limit tokens in order of id, beginning behind after; next
// is the cursor of the following page, "" at the end.
func (t *Table) List(after string, limit int) (items []*Token, next string) {
	it := t.tokens.Root().Iterator()
	it.SeekLowerBound([]byte(after))
	for key, tok, ok := it.Next(); ok; key, tok, ok = it.Next() {
		if after != "" && string(key) == after {
			continue
		}
		if len(items) == limit {
			return items, items[limit-1].ID
		}
		items = append(items, tok)
	}
	return items, ""
}

// Txn changes a table. A failed operation changes nothing.
type Txn struct {
	base   *Table
	tokens *iradix.Txn[*Token]
	emit   Emit
}

// Txn begins a change; emit may be nil.
func (t *Table) Txn(emit Emit) *Txn {
	if emit == nil {
		emit = func(string, string, []byte, []byte) {}
	}
	return &Txn{base: t, tokens: t.tokens.Txn(), emit: emit}
}

// Commit gives the table with the changes in it, the same one when there are
// none.
func (x *Txn) Commit() *Table {
	if x.tokens.Root() != x.base.tokens.Root() {
		x.base = &Table{tokens: x.tokens.CommitOnly(), access: x.base.access}
	}
	return x.base
}

// Put stores a new token from the spec [Mint] made. A token never changes, so
// an id in use is a conflict.
func (x *Txn) Put(st Stamp, id string, spec []byte) (*Token, error) {
	if _, ok := x.tokens.Get([]byte(id)); ok {
		return nil, fault.New(fault.Conflict, "the token %s exists already; a token cannot be changed, only revoked", id)
	}
	var s Spec
	if err := json.Unmarshal(spec, &s, json.RejectUnknownMembers(true)); err != nil {
		return nil, fault.Wrap(fault.BadRequest, err, "the token's spec is not valid")
	}
	at := st.Time.UTC()
	tok, err := newToken(id, s, Meta{Revision: st.Revision, CreatedAt: at, UpdatedAt: at, CreatedBy: st.By})
	if err != nil {
		return nil, err
	}
	stored, err := tok.stored()
	if err != nil {
		return nil, err
	}
	x.tokens.Insert([]byte(id), tok)
	x.emit(Bucket, id, nil, stored)
	return tok, nil
}

// Delete revokes a token: from the next table on nobody can use it. An
// unknown id is not_found.
func (x *Txn) Delete(id string) error {
	tok, ok := x.tokens.Get([]byte(id))
	if !ok {
		return fault.New(fault.NotFound, "there is no token %q", id)
	}
	stored, err := tok.stored()
	if err != nil {
		return err
	}
	x.tokens.Delete([]byte(id))
	x.emit(Bucket, id, stored, nil)
	return nil
}

// Load puts back one stored token as it was emitted. It emits nothing.
func (x *Txn) Load(bucket, key string, value []byte) error {
	if bucket != Bucket {
		return fault.New(fault.Internal, "identity keeps no bucket %q", bucket)
	}
	var t Token
	if err := json.Unmarshal(value, &t, json.RejectUnknownMembers(true)); err != nil {
		return fault.Wrap(fault.Internal, err, "the stored token %q cannot be read", key)
	}
	if t.ID != key {
		return fault.New(fault.Internal, "the stored token %q says it is %q", key, t.ID)
	}
	tok, err := newToken(t.ID, t.Spec, t.Meta)
	if err != nil {
		return err
	}
	x.tokens.Insert([]byte(key), tok)
	return nil
}

// stored is the whole record, with the hash.
func (t *Token) stored() ([]byte, error) {
	data, err := json.Marshal(t)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "the token cannot be written as JSON")
	}
	return data, nil
}
