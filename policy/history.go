package policy

import (
	"fmt"

	"github.com/go-json-experiment/json"
)

// Last gives the newest revision; nil when there is none.
func (t *Table) Last() *Revision {
	_, r, _ := t.revisions.Root().Maximum()
	return r
}

// DecodeRevision reads a record as it is stored and served.
func DecodeRevision(record []byte) (*Revision, error) {
	r := &Revision{JSON: record}
	if err := json.Unmarshal(record, r); err != nil {
		return nil, fmt.Errorf("policy: the record of a revision cannot be read: %w", err)
	}
	return r, nil
}

// FromSource gives the newest revision that was made of exactly that source,
// its commit included.
func (t *Table) FromSource(s Source) (*Revision, bool) {
	it := t.revisions.Root().ReverseIterator()
	for _, r, ok := it.Previous(); ok; _, r, ok = it.Previous() {
		if r.Source != nil && *r.Source == s {
			return r, true
		}
	}
	return nil, false
}
