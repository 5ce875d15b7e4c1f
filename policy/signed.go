package policy

import (
	"fmt"

	"github.com/muster-registry/muster/fault"
)

// ErrOvertaken is the result of staging a signed number that is not above the
// highest accepted; the leader, which had seen a lower one, admits it again.
var ErrOvertaken = fault.New(fault.Conflict, "another signed policy was accepted while this was decided")

// Signed gives the highest number that was ever accepted under a signature; 0
// for none. It only goes up, and outlives the revision that had it.
func (t *Table) Signed() uint64 { return t.signed }

// BySigned gives the revision that was accepted under that signed number, if
// the history still has it.
func (t *Table) BySigned(number uint64) (*Revision, bool) {
	it := t.revisions.Root().ReverseIterator()
	for _, r, ok := it.Previous(); ok; _, r, ok = it.Previous() {
		if r.Signature != nil && r.Signature.Number == number {
			return r, true
		}
	}
	return nil, false
}

// Signed gives the highest signed number with the changes made so far.
func (x *Txn) Signed() uint64 { return x.table.signed }

// KeepSigned raises the highest signed number to number, if it is lower. It is
// for who puts another table in the place of one that had seen more.
func (x *Txn) KeepSigned(number uint64) {
	if number <= x.table.signed {
		return
	}
	before := x.signedValue()
	x.table.signed = number
	x.emit(BucketActive, KeySigned, before, x.signedValue())
}

// countUp takes the number of a signature, where it has one.
func (x *Txn) countUp(s *Signature) error {
	if s == nil || s.Number == 0 {
		return nil
	}
	if s.Number <= x.table.signed {
		return ErrOvertaken
	}
	x.KeepSigned(s.Number)
	return nil
}

type signedRecord struct {
	Number uint64 `json:"number"`
}

// signedValue is what is stored about the highest signed number; nil for none.
func (x *Txn) signedValue() []byte {
	if x.table.signed == 0 {
		return nil
	}
	return fmt.Appendf(nil, `{"number":%d}`, x.table.signed)
}
