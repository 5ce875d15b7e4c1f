package feed

import (
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/muster-registry/muster/registry"
)

// What an event says of its record.
const (
	Put    = "put"    // it was made or changed
	Delete = "delete" // it is gone; the event carries it as it was last
)

// Event is one change of one record. It is shared by all who are told of it,
// and never modified.
type Event struct {
	Type      string // Put, Delete
	Kind      string // service, version, instance
	Namespace string
	Service   string
	ID        string // of a version or an instance; of a service its name
	Revision  uint64 // several events share one when one change removed several records
	Record    []byte // JSON

	// Last says that no other event of the revision follows: whoever has seen
	// it has seen the whole change, and may resume behind it.
	Last bool

	text atomic.Pointer[[]byte]
}

// Change makes the event of a stored change of the registry, as [registry.Emit]
// tells of it; nil where it is not one of a record.
func Change(bucket, key string, revision uint64, old, now []byte) *Event {
	kind, ok := kinds[bucket]
	if !ok {
		return nil
	}
	e := &Event{Type: Put, Kind: kind, Revision: revision, Record: now}
	if now == nil {
		e.Type, e.Record = Delete, old
	}
	var rest string
	e.Namespace, rest, _ = strings.Cut(key, "/")
	if e.Service, e.ID, ok = strings.Cut(rest, "/"); !ok {
		e.ID = e.Service
	}
	return e
}

var kinds = map[string]string{
	registry.BucketServices: registry.KindService, registry.BucketVersions: registry.KindVersion, registry.BucketInstances: registry.KindInstance,
}

// JSON is the event as watchers get it. It is encoded once, by whoever asks
// first, and must not be modified.
func (e *Event) JSON() []byte {
	if b := e.text.Load(); b != nil {
		return *b
	}
	b := e.With(e.Record)
	e.text.CompareAndSwap(nil, &b)
	return *e.text.Load()
}

// With is JSON with another record in the place of the event's own.
func (e *Event) With(record []byte) []byte {
	b := make([]byte, 0, len(record)+len(e.Namespace)+len(e.Service)+len(e.ID)+128)
	b = append(b, `{"type":`...)
	b = quote(b, e.Type)
	b = append(b, `,"kind":`...)
	b = quote(b, e.Kind)
	b = append(b, `,"namespace":`...)
	b = quote(b, e.Namespace)
	b = append(b, `,"service":`...)
	b = quote(b, e.Service)
	b = append(b, `,"id":`...)
	b = quote(b, e.ID)
	b = append(b, `,"revision":`...)
	b = strconv.AppendUint(b, e.Revision, 10)
	b = append(b, `,"record":`...)
	if len(record) == 0 {
		record = []byte("null")
	}
	b = append(b, record...)
	return append(b, '}')
}

// size is what the event takes of the history's bytes.
func (e *Event) size() int64 { return int64(len(e.Record)) + 256 }

func quote(b []byte, s string) []byte {
	b, _ = jsontext.AppendQuote(b, s) // names are valid UTF-8
	return b
}
