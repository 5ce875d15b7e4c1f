package registry

import (
	"slices"
	"strconv"

	iradix "github.com/hashicorp/go-immutable-radix/v2"

	"github.com/muster-registry/muster/fault"
)

// Txn changes a snapshot, one stamped change at a time. A change checks before
// it acts: one that fails has changed and emitted nothing, and the Txn stays
// good. A Txn is for one goroutine.
//
// Every change says which revision of the record it was decided on, 0 when
// there was none; ErrStale when that is not so.
type Txn struct {
	tree    *iradix.Txn[*node]
	counts  Counts
	emit    Emit
	owner   *owner
	touched []Key
	seen    map[Key]struct{}
	loading *node  // the last that Load found, good while it is this Txn's own
	words   *words // that Load has read; nil: none
}

// Txn starts changes on top of s, which stays as it is. Emit may be nil.
func (s *Snapshot) Txn(emit Emit) *Txn {
	if emit == nil {
		emit = func(string, string, []byte, []byte) {}
	}
	return &Txn{tree: s.tree.Txn(), counts: s.counts, emit: emit, owner: new(owner)}
}

// Commit returns the snapshot with all changes so far. The Txn may go on.
func (t *Txn) Commit() *Snapshot {
	t.owner = new(owner) // what was ours is shared from now on
	return &Snapshot{tree: t.tree.CommitOnly(), counts: t.counts}
}

// Touched lists the services that this Txn changed in any way: the record, a
// version, an instance. They are in the order in which that first happened.
func (t *Txn) Touched() []Key { return t.touched }

func (t *Txn) touch(k Key) {
	if n := len(t.touched); n > 0 && t.touched[n-1] == k {
		return
	}
	if t.seen == nil {
		t.seen = make(map[Key]struct{})
	}
	if _, ok := t.seen[k]; !ok {
		t.seen[k] = struct{}{}
		t.touched = append(t.touched, k)
	}
}

func (t *Txn) node(k Key) *node {
	var buf [128]byte
	n, _ := t.tree.Get(k.path(buf[:0]))
	return n
}

// own returns the service's node as one that may be changed. n is what node
// gave for k.
func (t *Txn) own(k Key, n *node) *node {
	if n.owner == t.owner {
		return n
	}
	c := &node{service: n.service, versions: slices.Clone(n.versions), entry: n.entry, owner: t.owner}
	t.tree.Insert(k.path(nil), c)
	return c
}

// ownEntry returns the service's entry as one that may be changed, and notes
// that it is.
func (t *Txn) ownEntry(k Key, n *node) *Entry {
	n = t.own(k, n)
	if n.entryOwner != t.owner {
		n.entry, n.entryOwner = n.entry.fork(), t.owner
	}
	t.touch(k)
	return n.entry
}

// PutService stores a service. Spec is what CanonicalService gave.
func (t *Txn) PutService(st Stamp, ns, name string, spec []byte, observed uint64) (rec *Service, created bool, err error) {
	k := Key{ns, name}
	n := t.node(k)
	var prev *Service
	if n != nil {
		prev = n.service
	}
	if prev.revision() != observed {
		return nil, false, ErrStale
	}
	rec = &Service{Namespace: ns, Name: name, ServiceSpec: ServiceSpec{Protocol: "rest"}}
	if err := readSpec(spec, &rec.ServiceSpec); err != nil {
		return nil, false, err
	}
	if prev == nil {
		if err := validKey(k, name); err != nil {
			return nil, false, err
		}
		t.addService(st, k, rec, spec)
		return rec, true, nil
	}
	rec.Namespace, rec.Name, rec.Meta = prev.Namespace, prev.Name, st.stamp(&prev.Meta)
	rec.seal(spec)
	t.own(k, n).service = rec
	t.touch(k)
	t.emit(BucketServices, name2(ns, name), prev.JSON, rec.JSON)
	return rec, false, nil
}

func (s *Service) revision() uint64 {
	if s == nil {
		return 0
	}
	return s.Revision
}

// addService stores a service that does not exist yet.
func (t *Txn) addService(st Stamp, k Key, rec *Service, spec []byte) *node {
	rec.Namespace, rec.Name, rec.Meta = intern(k.Namespace), intern(k.Service), st.stamp(nil)
	rec.seal(spec)
	n := &node{service: rec, owner: t.owner, entryOwner: t.owner,
		entry: &Entry{namespace: rec.Namespace, service: rec.Name}}
	t.tree.Insert(k.path(nil), n)
	t.counts.Services++
	t.touch(k)
	t.emit(BucketServices, name2(k.Namespace, k.Service), nil, rec.JSON)
	t.setMark(k, n.entry, st.Revision)
	return n
}

// setMark records a change to an entry that no record will show.
func (t *Txn) setMark(k Key, e *Entry, revision uint64) {
	t.emit(BucketEntries, name2(k.Namespace, k.Service), markJSON(e.mark), markJSON(revision))
	e.mark, e.revision = revision, revision
}

func markJSON(revision uint64) []byte {
	if revision == 0 {
		return nil
	}
	return strconv.AppendUint(nil, revision, 10)
}

// PutVersion stores a version of a known service and emits its document under
// a key of its own, removing the one before. Spec and document are what
// CanonicalVersion gave.
func (t *Txn) PutVersion(st Stamp, ns, svc, v string, spec, document []byte, observed uint64) (rec *Version, created bool, err error) {
	k := Key{ns, svc}
	n, prev, at := t.version(k, v)
	if prev.revision() != observed {
		return nil, false, ErrStale
	}
	if n == nil {
		return nil, false, noService(ns, svc)
	}
	rec = &Version{Namespace: n.entry.namespace, Service: n.entry.service, Version: v}
	if err := readSpec(spec, &rec.VersionSpec); err != nil {
		return nil, false, err
	}
	if err := ValidVersion(v); err != nil {
		return nil, false, err
	}
	rec.trim()
	key := name3(ns, svc, v)
	n = t.own(k, n)
	t.touch(k)
	if prev != nil {
		rec.Meta = st.stamp(&prev.Meta)
		rec.seal(spec)
		n.versions[at] = rec
		t.emit(BucketDocuments, DocumentKey(ns, svc, v, prev.Revision), nil, nil)
		t.emit(BucketVersions, key, prev.JSON, rec.JSON)
	} else {
		rec.Meta = st.stamp(nil)
		rec.seal(spec)
		n.versions = slices.Insert(n.versions, at, rec)
		t.counts.Versions++
		t.emit(BucketVersions, key, nil, rec.JSON)
	}
	if document == nil {
		document = []byte{}
	}
	t.emit(BucketDocuments, DocumentKey(ns, svc, v, st.Revision), nil, document)
	return rec, prev == nil, nil
}

// version finds a version and its place; n is nil when the service is unknown,
// rec when the version is.
func (t *Txn) version(k Key, v string) (n *node, rec *Version, at int) {
	if n = t.node(k); n == nil {
		return nil, nil, 0
	}
	at, found := n.findVersion(v)
	if !found {
		return n, nil, at
	}
	return n, n.versions[at], at
}

func (v *Version) revision() uint64 {
	if v == nil {
		return 0
	}
	return v.Revision
}

// Delete removes a record. Name is empty for KindService, whose versions,
// documents and instances are removed with it, each emitted.
func (t *Txn) Delete(st Stamp, kind, ns, svc, name string, observed uint64) error {
	switch kind {
	case KindService:
		return t.deleteService(Key{ns, svc}, observed)
	case KindVersion:
		return t.deleteVersion(Key{ns, svc}, name, observed)
	case KindInstance:
		return t.deleteInstance(st, Key{ns, svc}, name, observed)
	}
	return fault.New(fault.BadRequest, "records of kind %q cannot be deleted here; use service, version or instance", kind)
}

func (t *Txn) deleteService(k Key, observed uint64) error {
	n := t.node(k)
	if n == nil {
		if observed != 0 {
			return ErrStale
		}
		return noService(k.Namespace, k.Service)
	}
	if n.service.Revision != observed {
		return ErrStale
	}
	ns, svc := k.Namespace, k.Service
	for _, i := range n.entry.instances {
		t.emit(BucketInstances, name3(ns, svc, i.ID), i.JSON, nil)
	}
	for _, v := range n.versions {
		t.emit(BucketVersions, name3(ns, svc, v.Version), v.JSON, nil)
		t.emit(BucketDocuments, DocumentKey(ns, svc, v.Version, v.Revision), nil, nil)
	}
	t.emit(BucketEntries, name2(ns, svc), markJSON(n.entry.mark), nil)
	t.emit(BucketServices, name2(ns, svc), n.service.JSON, nil)
	t.loading = nil
	t.counts.Services--
	t.counts.Versions -= len(n.versions)
	t.counts.Instances -= len(n.entry.instances)
	t.tree.Delete(k.path(nil))
	t.touch(k)
	return nil
}

func (t *Txn) deleteVersion(k Key, v string, observed uint64) error {
	n, prev, at := t.version(k, v)
	if prev.revision() != observed {
		return ErrStale
	}
	if prev == nil {
		return fault.New(fault.VersionNotFound, "version %s of service %s does not exist in namespace %s", v, k.Service, k.Namespace)
	}
	n = t.own(k, n)
	t.touch(k)
	n.versions = slices.Delete(n.versions, at, at+1)
	t.counts.Versions--
	t.emit(BucketVersions, name3(k.Namespace, k.Service, v), prev.JSON, nil)
	t.emit(BucketDocuments, DocumentKey(k.Namespace, k.Service, v, prev.Revision), nil, nil)
	return nil
}

func noService(ns, svc string) error {
	return fault.New(fault.ServiceNotFound, "service %s does not exist in namespace %s; register it first", svc, ns)
}

// validKey keeps what is no name out of the keys, should an edge let it pass.
func validKey(k Key, name string) error {
	var f fields
	f.name("/namespace", "", nameMistake(k.Namespace), nil)
	f.name("/service", "", nameMistake(k.Service), nil)
	f.name("/name", "", nameMistake(name), nil)
	return f.err()
}

// DocumentKey is where the document of a version at a revision is stored.
func DocumentKey(ns, svc, version string, revision uint64) string {
	return name3(ns, svc, version) + "@" + strconv.FormatUint(revision, 10)
}

func name2(ns, svc string) string       { return ns + "/" + svc }
func name3(ns, svc, name string) string { return ns + "/" + svc + "/" + name }
