package registry

import (
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
)

// Entry is what discovery knows of one service: its instances and the revision
// of the last change to them. It is immutable once its snapshot is committed
// and safe for concurrent use.
type Entry struct {
	namespace, service string
	mark               uint64 // see BucketEntries
	revision           uint64
	passing            int
	instances          []*Instance // in order of id
	answer             atomic.Pointer[[]byte]
}

// Namespace of the service.
func (e *Entry) Namespace() string { return e.namespace }

// Service is the service's name.
func (e *Entry) Service() string { return e.service }

// Revision of the last change that affected the discovery answer: the
// service's creation, or an instance put, changed in status, or removed.
func (e *Entry) Revision() uint64 { return e.revision }

// Instances of the service in order of id, whatever their status. The slice
// must not be modified.
func (e *Entry) Instances() []*Instance { return e.instances }

// Passing is how many instances are passing.
func (e *Entry) Passing() int { return e.passing }

// Query narrows what discovery answers. The zero Query asks for all passing
// instances.
type Query struct {
	AnyStatus bool     // not only passing ones
	Version   string   // only this version
	Tags      []string // only those that carry all of them; an empty one is none
	FoldTags  bool     // tags are the same whatever the case of their letters
	Zone      string   // those of this zone first
	Share     float64  // of a zone's instances that must pass for it to have enough; 0: one
}

func (q *Query) plain() bool {
	return !q.AnyStatus && q.Version == "" && len(q.Tags) == 0 && q.Zone == ""
}

func (q *Query) takes(i *Instance) bool {
	if !q.AnyStatus && i.Status != Passing {
		return false
	}
	if q.Version != "" && i.Version != q.Version {
		return false
	}
	for _, t := range q.Tags {
		if t != "" && !slices.Contains(i.Tags, t) && !(q.FoldTags && slices.ContainsFunc(i.Tags, func(have string) bool { return strings.EqualFold(have, t) })) {
			return false
		}
	}
	return true
}

// Select returns the instances q asks for, in order of id; those of q.Zone
// come first. The slice must not be modified.
func (e *Entry) Select(q Query) []*Instance {
	if q.plain() && e.passing == len(e.instances) {
		return e.instances
	}
	var first, rest []*Instance
	for _, i := range e.instances {
		switch {
		case !q.takes(i):
		case q.Zone != "" && i.Zone == q.Zone:
			first = append(first, i)
		default:
			rest = append(rest, i)
		}
	}
	return append(first, rest...)
}

// Locality says what an answer prefers. Its instances of the zone stand first.
type Locality struct {
	Zone      string `json:"zone"`
	Instances int    `json:"instances"`  // of the answer that are in the zone
	SpillOver bool   `json:"spill_over"` // the zone has too few that pass: the others are to be used as well
}

// Locality tells whether q.Zone has enough instances: one that passes, and of
// those that q asks for, whatever their status but maintenance, the share that
// q.Share wants.
func (e *Entry) Locality(q Query) Locality {
	l := Locality{Zone: q.Zone}
	any := q
	any.AnyStatus = true
	passing, all := 0, 0
	for _, i := range e.instances {
		if i.Zone != q.Zone || !any.takes(i) {
			continue
		}
		if q.AnyStatus || i.Status == Passing {
			l.Instances++
		}
		if i.Status == Passing {
			passing++
		}
		if i.Status != Maintenance {
			all++
		}
	}
	l.SpillOver = passing == 0 || float64(passing) < q.Share*float64(all)
	return l
}

// Answer gives the discovery JSON for q. The answer to the zero Query is
// encoded once, by whoever asks first, and shared; it must not be modified.
func (e *Entry) Answer(q Query) []byte {
	if !q.plain() {
		return e.encode(q)
	}
	if b := e.answer.Load(); b != nil {
		return *b
	}
	b := e.encode(q)
	if !e.answer.CompareAndSwap(nil, &b) {
		return *e.answer.Load()
	}
	return b
}

func (e *Entry) encode(q Query) []byte {
	items := e.Select(q)
	size := 128
	for _, i := range items {
		size += len(i.JSON)
	}
	b := make([]byte, 0, size)
	b = append(b, `{"namespace":`...)
	b = appendString(b, e.namespace)
	b = append(b, `,"service":`...)
	b = appendString(b, e.service)
	b = append(b, `,"revision":`...)
	b = strconv.AppendUint(b, e.revision, 10)
	b = append(b, `,"instances":[`...)
	for n, i := range items {
		if n > 0 {
			b = append(b, ',')
		}
		b = i.appendPublic(append(b, '{'))
		b = append(b, '}')
	}
	b = append(b, ']')
	if q.Zone != "" {
		b = e.Locality(q).append(append(b, `,"locality":`...))
	}
	return slices.Clone(append(b, '}'))
}

func (l Locality) append(b []byte) []byte {
	b = appendString(append(b, `{"zone":`...), l.Zone)
	b = strconv.AppendInt(append(b, `,"instances":`...), int64(l.Instances), 10)
	b = strconv.AppendBool(append(b, `,"spill_over":`...), l.SpillOver)
	return append(b, '}')
}

// find gives the place of id among the instances, and whether it is there.
func (e *Entry) find(id string) (int, bool) {
	return slices.BinarySearchFunc(e.instances, id, func(i *Instance, id string) int { return strings.Compare(i.ID, id) })
}

// fork gives a copy that may be changed.
func (e *Entry) fork() *Entry {
	return &Entry{namespace: e.namespace, service: e.service, mark: e.mark, revision: e.revision,
		passing: e.passing, instances: slices.Clone(e.instances)}
}
