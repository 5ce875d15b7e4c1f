package registry

import (
	"bytes"
	"slices"
	"strings"

	iradix "github.com/hashicorp/go-immutable-radix/v2"
)

// Snapshot is the registry at one revision. It is immutable and safe for
// concurrent use.
type Snapshot struct {
	tree   *iradix.Tree[*node] // by Key.path
	counts Counts
}

// node is everything known of one service. A Txn may change the nodes and
// entries it owns itself; all others are shared with snapshots.
type node struct {
	service    *Service
	versions   []*Version // in order of version
	entry      *Entry
	owner      *owner // of the node and versions
	entryOwner *owner
}

// owner marks what a Txn made since its last Commit. It has a size so that no
// two of them share an address.
type owner struct{ _ byte }

// New returns the empty snapshot.
func New() *Snapshot { return &Snapshot{tree: iradix.New[*node]()} }

// path is the key of a service in the tree. NUL sorts before all that a name
// may contain, which makes the order that of (namespace, service).
func (k Key) path(buf []byte) []byte {
	buf = append(buf, k.Namespace...)
	buf = append(buf, 0)
	return append(buf, k.Service...)
}

func (s *Snapshot) node(ns, svc string) (*node, bool) {
	var buf [128]byte
	return s.tree.Get(Key{ns, svc}.path(buf[:0]))
}

// Counts says how many records there are, at no cost.
func (s *Snapshot) Counts() Counts { return s.counts }

// Service returns one service.
func (s *Snapshot) Service(ns, name string) (*Service, bool) {
	n, ok := s.node(ns, name)
	if !ok {
		return nil, false
	}
	return n.service, true
}

// Version returns one version of a service.
func (s *Snapshot) Version(ns, svc, v string) (*Version, bool) {
	n, ok := s.node(ns, svc)
	if !ok {
		return nil, false
	}
	i, ok := n.findVersion(v)
	if !ok {
		return nil, false
	}
	return n.versions[i], true
}

func (n *node) findVersion(v string) (int, bool) {
	return slices.BinarySearchFunc(n.versions, v, func(r *Version, v string) int { return strings.Compare(r.Version, v) })
}

// Instance returns one instance of a service.
func (s *Snapshot) Instance(ns, svc, id string) (*Instance, bool) {
	n, ok := s.node(ns, svc)
	if !ok {
		return nil, false
	}
	i, ok := n.entry.find(id)
	if !ok {
		return nil, false
	}
	return n.entry.instances[i], true
}

// Discover returns the read model of one service; false when there is no such
// service.
func (s *Snapshot) Discover(ns, svc string) (*Entry, bool) {
	n, ok := s.node(ns, svc)
	if !ok {
		return nil, false
	}
	return n.entry, true
}

// Services lists services in order of namespace and name, all namespaces when
// ns is empty. It starts behind the cursor after; next is the cursor for the
// following page, empty at the end. A limit of 0 or less means no limit.
func (s *Snapshot) Services(ns, after string, limit int) (items []*Service, next string) {
	next = s.page(ns, after, limit, func(n *node) { items = append(items, n.service) })
	return items, next
}

// Entries lists the read models as Services lists the services.
func (s *Snapshot) Entries(ns, after string, limit int) (items []*Entry, next string) {
	next = s.page(ns, after, limit, func(n *node) { items = append(items, n.entry) })
	return items, next
}

func (s *Snapshot) page(ns, after string, limit int, take func(*node)) (next string) {
	var prefix []byte
	if ns != "" {
		prefix = append([]byte(ns), 0)
	}
	start := prefix
	var behind []byte
	if after != "" {
		behind = []byte(strings.Replace(after, "/", "\x00", 1))
		if bytes.Compare(behind, start) > 0 {
			start = behind
		}
	}
	it := s.tree.Root().Iterator()
	it.SeekLowerBound(start)
	last, taken := "", 0
	for k, n, ok := it.Next(); ok && bytes.HasPrefix(k, prefix); k, n, ok = it.Next() {
		if behind != nil && bytes.Equal(k, behind) {
			continue
		}
		if limit > 0 && taken == limit {
			return last
		}
		take(n)
		taken++
		last = n.entry.namespace + "/" + n.entry.service
	}
	return ""
}

// Versions lists the versions of a service in order of their names; see
// Services for after, limit and next. An unknown service has none.
func (s *Snapshot) Versions(ns, svc, after string, limit int) (items []*Version, next string) {
	n, ok := s.node(ns, svc)
	if !ok {
		return nil, ""
	}
	i, found := n.findVersion(after)
	if found {
		i++
	}
	return slice(n.versions[i:], limit, func(v *Version) string { return v.Version })
}

// Instances lists the instances of a service in order of their ids; see
// Services for after, limit and next. An unknown service has none.
func (s *Snapshot) Instances(ns, svc, after string, limit int) (items []*Instance, next string) {
	n, ok := s.node(ns, svc)
	if !ok {
		return nil, ""
	}
	i, found := n.entry.find(after)
	if found {
		i++
	}
	return slice(n.entry.instances[i:], limit, func(i *Instance) string { return i.ID })
}

func slice[T any](all []T, limit int, name func(T) string) ([]T, string) {
	if limit <= 0 || limit >= len(all) {
		return slices.Clip(all), ""
	}
	return all[:limit:limit], name(all[limit-1])
}

// EachInstance calls fn for every instance, in order of namespace, service and
// id, until fn returns false.
func (s *Snapshot) EachInstance(fn func(*Instance) bool) {
	it := s.tree.Root().Iterator()
	for _, n, ok := it.Next(); ok; _, n, ok = it.Next() {
		for _, i := range n.entry.instances {
			if !fn(i) {
				return
			}
		}
	}
}
