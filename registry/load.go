package registry

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
)

// Load puts back one stored value on start, as it was emitted. The value is
// kept, and must not be changed. Buckets are loaded in the order of [Buckets], keys within one in any
// order (ascending is fastest); documents are accepted and not kept. Nothing
// is emitted and nothing is touched. An error means that the store is damaged
// or was written by something else.
func (t *Txn) Load(bucket, key string, value []byte) error {
	var err error
	switch bucket {
	case BucketServices:
		err = t.loadService(key, value)
	case BucketEntries:
		err = t.loadMark(key, value)
	case BucketVersions:
		err = t.loadVersion(key, value)
	case BucketInstances:
		err = t.loadInstance(key, value)
	case BucketDocuments:
	default:
		err = fmt.Errorf("no such bucket")
	}
	if err != nil {
		return fmt.Errorf("registry: loading %s %q: %w", bucket, key, err)
	}
	return nil
}

func (t *Txn) loadService(key string, value []byte) error {
	rec := &Service{JSON: value}
	if err := json.Unmarshal(value, rec); err != nil {
		return err
	}
	if key != name2(rec.Namespace, rec.Name) {
		return errKey
	}
	k := Key{rec.Namespace, rec.Name}
	if err := validKey(k, rec.Name); err != nil {
		return err
	}
	if t.node(k) != nil {
		return fmt.Errorf("the service is there already")
	}
	rec.Namespace, rec.CreatedBy = intern(rec.Namespace), intern(rec.CreatedBy)
	t.tree.Insert(k.path(nil), &node{service: rec, owner: t.owner, entryOwner: t.owner,
		entry: &Entry{namespace: rec.Namespace, service: rec.Name}})
	t.counts.Services++
	return nil
}

var errKey = fmt.Errorf("the key is not that of the record")

// home finds the service a loaded key belongs to. Keys that follow each other
// mostly have the same one.
func (t *Txn) home(key string) (Key, *node, error) {
	ns, rest, _ := strings.Cut(key, "/")
	svc, _, _ := strings.Cut(rest, "/")
	k := Key{ns, svc}
	if t.loading != nil && t.loading.owner == t.owner && t.loading.entry.namespace == ns && t.loading.entry.service == svc {
		return k, t.loading, nil
	}
	n := t.node(k)
	if n == nil {
		return k, nil, fmt.Errorf("its service is not loaded; services come first")
	}
	t.loading = n
	return k, n, nil
}

// readInstance reads a stored record. What records have in common is shared.
func (t *Txn) readInstance(of Key, value []byte) (*Instance, error) {
	if t.words == nil {
		t.words = newWords()
	}
	rec := &Instance{JSON: value}
	if s := (scanner{rest: value, words: t.words, of: of}); s.instance(rec) {
		return rec, nil
	}
	rec = &Instance{JSON: value}
	if err := json.Unmarshal(value, rec); err != nil {
		return nil, err
	}
	rec.CreatedBy, rec.Status, rec.StatusBy = intern(rec.CreatedBy), intern(rec.Status), intern(rec.StatusBy)
	rec.trim()
	return rec, nil
}

// place is find, at once for the id that comes last.
func (e *Entry) place(id string) (int, bool) {
	if n := len(e.instances); n == 0 || e.instances[n-1].ID < id {
		return n, false
	}
	return e.find(id)
}

// isName3 reports whether the key is name3 of these.
func isName3(key, ns, svc, name string) bool {
	return len(key) == len(ns)+len(svc)+len(name)+2 && key[:len(ns)] == ns && key[len(ns)] == '/' &&
		key[len(ns)+1:len(ns)+1+len(svc)] == svc && key[len(ns)+1+len(svc)] == '/' && key[len(ns)+len(svc)+2:] == name
}

func (t *Txn) loadMark(key string, value []byte) error {
	k, n, err := t.home(key)
	if err != nil {
		return err
	}
	mark, err := strconv.ParseUint(string(value), 10, 64)
	if err != nil {
		return err
	}
	n = t.own(k, n)
	if n.entryOwner != t.owner {
		n.entry, n.entryOwner = n.entry.fork(), t.owner
	}
	n.entry.mark, n.entry.revision = mark, max(n.entry.revision, mark)
	return nil
}

func (t *Txn) loadVersion(key string, value []byte) error {
	k, n, err := t.home(key)
	if err != nil {
		return err
	}
	rec := &Version{JSON: value}
	if err := json.Unmarshal(value, rec); err != nil {
		return err
	}
	at, found := n.findVersion(rec.Version)
	if found || key != name3(rec.Namespace, rec.Service, rec.Version) {
		return errKey
	}
	rec.Namespace, rec.Service, rec.CreatedBy = n.entry.namespace, n.entry.service, intern(rec.CreatedBy)
	rec.trim()
	n = t.own(k, n)
	n.versions = slices.Insert(n.versions, at, rec)
	t.counts.Versions++
	return nil
}

func (t *Txn) loadInstance(key string, value []byte) error {
	k, n, err := t.home(key)
	if err != nil {
		return err
	}
	rec, err := t.readInstance(k, value)
	if err != nil {
		return err
	}
	if err := ValidName(rec.ID); err != nil {
		return err
	}
	// The leases count with these: what no edge lets pass must not come in by
	// a snapshot either.
	if rec.TTL < 0 || rec.DeregisterAfter < 0 {
		return fmt.Errorf("its ttl or deregister_after is negative")
	}
	at, found := n.entry.place(rec.ID)
	if found || !isName3(key, rec.Namespace, rec.Service, rec.ID) {
		return errKey
	}
	rec.Namespace, rec.Service = n.entry.namespace, n.entry.service
	rec.renewed = rec.Revision
	rec.agree()
	n = t.own(k, n)
	if n.entryOwner != t.owner {
		n.entry, n.entryOwner = n.entry.fork(), t.owner
	}
	e := n.entry
	e.instances = slices.Insert(e.instances, at, rec)
	e.revision = max(e.revision, rec.Revision)
	e.count(rec, 1)
	t.counts.Instances++
	return nil
}
