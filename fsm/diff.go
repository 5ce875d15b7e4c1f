package fsm

import (
	"cmp"
	"crypto/sha256"
	"io"
	"slices"
	"strings"

	"github.com/muster-registry/muster/identity"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
	"github.com/muster-registry/muster/setting"
	"github.com/muster-registry/muster/snapshot"
)

// RecordChange is one record that two snapshots do not have alike. Kind is the
// record's kind as users know it: service, version, instance, policy, token,
// or the kind of a setting.
type RecordChange struct {
	Kind   string `json:"kind"`
	Name   string `json:"name"`
	Change string `json:"change"` // added, removed, changed
}

// Tally counts changes of one kind.
type Tally struct {
	Added   int `json:"added"`
	Removed int `json:"removed"`
	Changed int `json:"changed"`
}

// Difference is what lies between two snapshots. Changes are ordered by kind
// and name.
type Difference struct {
	From    snapshot.Header   `json:"from"`
	To      snapshot.Header   `json:"to"`
	Kinds   map[string]*Tally `json:"kinds"`
	Changes []RecordChange    `json:"changes"`
}

// What a change does.
const (
	Added   = "added"
	Removed = "removed"
	Changed = "changed"
)

// Diff reads two whole snapshots and says what leads from one to the other.
// Its memory grows with the number of records, not with their size. Errors are
// those of snapshot.Read.
func Diff(from, to io.Reader) (*Difference, error) {
	old := &census{of: map[recordName][sha256.Size]byte{}}
	if _, err := snapshot.Read(from, old); err != nil {
		return nil, err
	}
	now := &census{of: map[recordName][sha256.Size]byte{}}
	if _, err := snapshot.Read(to, now); err != nil {
		return nil, err
	}
	return old.compare(now), nil
}

// recordName is a record as users name it.
type recordName struct{ kind, name string }

// nameOf gives a record its name. What has none is covered by the record it
// belongs to: a definition by its version, the state of an entry by its service.
func nameOf(bucket, key string) (n recordName, ok bool) {
	switch bucket {
	case registry.BucketServices, registry.BucketVersions, registry.BucketInstances:
		return recordName{strings.TrimSuffix(bucket, "s"), key}, true
	case registry.BucketEntries, registry.BucketDocuments:
		return recordName{}, false
	case policy.BucketRevisions:
		return recordName{"policy", strings.TrimLeft(key, "0")}, true
	case policy.BucketActive:
		return recordName{"policy", key}, true
	case identity.Bucket:
		return recordName{"token", key}, true
	case setting.Bucket:
		kind, rest, _ := strings.Cut(key, "/")
		return recordName{kind, strings.Trim(rest, "/")}, true
	}
	return recordName{bucket, key}, true
}

// census keeps a digest of each record; it is a snapshot.Visitor.
type census struct {
	header snapshot.Header
	of     map[recordName][sha256.Size]byte
}

// Header implements snapshot.Visitor.
func (c *census) Header(h snapshot.Header) error { c.header = h; return nil }

// Record implements snapshot.Visitor.
func (c *census) Record(bucket, key string, value []byte) error {
	if n, ok := nameOf(bucket, key); ok {
		c.of[n] = sha256.Sum256(value)
	}
	return nil
}

func (c *census) compare(now *census) *Difference {
	d := &Difference{From: c.header, To: now.header, Kinds: map[string]*Tally{}, Changes: []RecordChange{}}
	for n, digest := range now.of {
		was, there := c.of[n]
		switch {
		case !there:
			d.add(n, Added)
		case was != digest:
			d.add(n, Changed)
		}
	}
	for n := range c.of {
		if _, there := now.of[n]; !there {
			d.add(n, Removed)
		}
	}
	slices.SortFunc(d.Changes, func(a, b RecordChange) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
	})
	return d
}

func (d *Difference) add(n recordName, what string) {
	d.Changes = append(d.Changes, RecordChange{Kind: n.kind, Name: n.name, Change: what})
	t, ok := d.Kinds[n.kind]
	if !ok {
		t = new(Tally)
		d.Kinds[n.kind] = t
	}
	switch what {
	case Added:
		t.Added++
	case Removed:
		t.Removed++
	case Changed:
		t.Changed++
	}
}
