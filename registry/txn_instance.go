package registry

import (
	"slices"
	"time"

	"github.com/muster-registry/muster/fault"
)

const (
	defaultTTL        = Duration(30 * time.Second)
	defaultDeregister = Duration(time.Hour)
)

// emptyService is the spec of a service made for its first instance.
var emptyService = []byte(`{"protocol":"rest","owner":"","description":"","tags":[],"metadata":{}}`)

// PutInstance registers an instance or renews it; spec is what
// CanonicalInstance gave. It is passing afterwards, or as its checks are, or
// still in maintenance. An
// unknown service is service_not_found, or made when createService says so,
// under the same revision.
func (t *Txn) PutInstance(st Stamp, ns, svc, id string, spec []byte, observed uint64, createService bool) (rec *Instance, created bool, err error) {
	k := Key{ns, svc}
	n, prev, _ := t.instance(k, id)
	if prev.revision() != observed {
		return nil, false, ErrStale
	}
	if n == nil && !createService {
		return nil, false, noService(ns, svc)
	}
	rec = &Instance{ID: id, Status: Passing,
		InstanceSpec: InstanceSpec{Weight: 1, TTL: defaultTTL, DeregisterAfter: defaultDeregister}}
	if err := readInstance(spec, &rec.InstanceSpec); err != nil {
		return nil, false, err
	}
	if prev == nil {
		if err := validKey(k, id); err != nil {
			return nil, false, err
		}
	}
	rec.trim()
	if n == nil {
		n = t.addService(st, k, &Service{ServiceSpec: ServiceSpec{Protocol: "rest"}}, emptyService)
	}
	rec.Namespace, rec.Service, rec.renewed = n.entry.namespace, n.entry.service, st.Revision
	own, by := Passing, ""
	if prev == nil {
		rec.Meta = st.stamp(nil)
	} else {
		rec.ID, rec.Meta = prev.ID, st.stamp(&prev.Meta)
		if prev.Status == Maintenance {
			own, by = prev.Status, prev.StatusBy
		}
	}
	rec.begin(prev)
	rec.settle(own, by)
	t.store(k, n, rec)
	return rec, prev == nil, nil
}

// SetStatus sets the own status of a known instance, by says on whose account;
// where one of its checks is worse, that is its status.
// Warning, critical and passing last until a Back or the next put; maintenance
// until another SetStatus.
func (t *Txn) SetStatus(st Stamp, ns, svc, id, status, by string, observed uint64) (*Instance, error) {
	switch status {
	case Passing, Warning, Critical, Maintenance:
	default:
		return nil, fault.Invalid("/status", "must be passing, warning, critical or maintenance")
	}
	k := Key{ns, svc}
	n, prev, _ := t.instance(k, id)
	if prev.revision() != observed {
		return nil, ErrStale
	}
	if prev == nil {
		return nil, noInstance(k, id)
	}
	return t.restate(st, k, n, prev, status, by), nil
}

// Lease applies what a deadline or a heartbeat led to. It reports whether
// anything changed: the change is dropped when the instance is gone, has
// another revision than observed, or is in a status the change does not apply
// to. Maintenance outlives both Expired and Back.
func (t *Txn) Lease(st Stamp, ns, svc, id string, change LeaseChange, observed uint64) (changed bool) {
	k := Key{ns, svc}
	n, prev, at := t.instance(k, id)
	if prev == nil || prev.Revision != observed {
		return false
	}
	own, by := prev.Own()
	switch {
	case change == Expired && own != Maintenance && by != ByLease:
		t.restate(st, k, n, prev, Critical, ByLease)
	case change == Back && (own == Critical || own == Warning):
		t.restate(st, k, n, prev, Passing, "")
	case change == Deregister:
		t.remove(st, k, n, prev, at)
	default:
		return false
	}
	return true
}

func (t *Txn) deleteInstance(st Stamp, k Key, id string, observed uint64) error {
	n, prev, at := t.instance(k, id)
	if prev.revision() != observed {
		return ErrStale
	}
	if prev == nil {
		return noInstance(k, id)
	}
	t.remove(st, k, n, prev, at)
	return nil
}

// instance finds an instance and its place; n is nil when the service is
// unknown, i when the instance is.
func (t *Txn) instance(k Key, id string) (n *node, i *Instance, at int) {
	if n = t.node(k); n == nil {
		return nil, nil, 0
	}
	at, found := n.entry.find(id)
	if !found {
		return n, nil, at
	}
	return n, n.entry.instances[at], at
}

func (t *Txn) restate(st Stamp, k Key, n *node, prev *Instance, status, by string) *Instance {
	rec := *prev
	rec.Meta, rec.renewed = st.stamp(&prev.Meta), st.Revision
	rec.settle(status, by)
	t.store(k, n, &rec)
	return &rec
}

// store seals rec, puts it into its entry and emits it.
func (t *Txn) store(k Key, n *node, rec *Instance) {
	rec.seal()
	e := t.ownEntry(k, n)
	e.revision = rec.Revision
	at, found := e.find(rec.ID)
	var old []byte
	if found {
		prev := e.instances[at]
		old = prev.JSON
		e.count(prev, -1)
		e.instances[at] = rec
	} else {
		e.instances = slices.Insert(e.instances, at, rec)
		t.counts.Instances++
	}
	e.count(rec, 1)
	t.emit(BucketInstances, name3(k.Namespace, k.Service, rec.ID), old, rec.JSON)
}

func (t *Txn) remove(st Stamp, k Key, n *node, prev *Instance, at int) {
	e := t.ownEntry(k, n)
	e.instances = slices.Delete(e.instances, at, at+1)
	e.count(prev, -1)
	t.counts.Instances--
	t.emit(BucketInstances, name3(k.Namespace, k.Service, prev.ID), prev.JSON, nil)
	t.setMark(k, e, st.Revision)
}

func (e *Entry) count(i *Instance, by int) {
	if i.Status == Passing {
		e.passing += by
	}
}

func (i *Instance) revision() uint64 {
	if i == nil {
		return 0
	}
	return i.Revision
}

func noInstance(k Key, id string) error {
	return fault.New(fault.InstanceNotFound, "instance %s of service %s does not exist in namespace %s; register it again",
		id, k.Service, k.Namespace)
}
