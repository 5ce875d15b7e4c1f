// Package registry owns services, versions and instances: what a legal record
// is, how it is written down, and the immutable snapshots that reads are
// answered from. It refuses to know who may do what, how changes are
// replicated or where they are stored: changes arrive one at a time through a
// [Txn], which hands every stored byte to its [Emit].
//
// Nothing here reads a clock, random numbers or the environment: the same
// changes in the same order give the same bytes on every node.
package registry

import (
	"errors"
	"time"

	"github.com/muster-registry/muster/registry/definition"
)

// The buckets records are stored in. A key is the record's names joined by
// "/"; a value loads again on its own, see [Txn.Load].
const (
	BucketServices  = "services"  // ns/service: the record
	BucketVersions  = "versions"  // ns/service/version: the record
	BucketInstances = "instances" // ns/service/id: the record
	// BucketEntries keeps, by ns/service, the decimal revision of the service's
	// creation or of the last removal of one of its instances: what no record
	// that still exists can tell about the revision of the discovery answer.
	BucketEntries = "entries"
	// BucketDocuments keeps definitions byte for byte, by
	// ns/service/version@revision. They are emitted but not held in memory.
	BucketDocuments = "documents"
)

// Buckets lists all buckets in the order in which [Txn.Load] wants them.
var Buckets = []string{BucketServices, BucketEntries, BucketVersions, BucketInstances, BucketDocuments}

// Emit receives every stored change of a Txn, in order. A nil new value means
// deleted, a nil old value created. The old value of a document is never
// given, since documents are not held in memory; their keys are never reused.
// The bytes must not be modified.
type Emit func(bucket, key string, old, new []byte)

// ErrStale says that a record's revision is not the one the change was decided
// on. Nothing was changed; the change must be decided anew.
var ErrStale = errors.New("registry: the record changed since the change was decided on")

// Stamp is what a change brings along: its revision, given by the state
// machine, the leader's time, and the principal's id.
type Stamp struct {
	Revision uint64
	Time     time.Time
	By       string
}

// Meta is what every record carries. Times are UTC.
type Meta struct {
	Revision  uint64    `json:"revision"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
	CreatedBy string    `json:"created_by"`
}

// Key names a service.
type Key struct{ Namespace, Service string }

// Service is one stored service. Records are immutable; JSON is the record as
// it is stored and served.
type Service struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	ServiceSpec
	Meta
	JSON []byte `json:"-"`
}

// ServiceSpec is what a caller says about a service.
type ServiceSpec struct {
	Protocol    string         `json:"protocol"` // rest, grpc, graphql, soap, websocket
	Owner       string         `json:"owner"`
	Description string         `json:"description"`
	Tags        []string       `json:"tags"`
	Metadata    map[string]any `json:"metadata"`
}

// Version is one stored API definition of a service, without the document.
type Version struct {
	Namespace string `json:"namespace"`
	Service   string `json:"service"`
	Version   string `json:"version"`
	VersionSpec
	Meta
	JSON []byte `json:"-"`
}

// VersionSpec is what a caller says about a version, and what was learned
// from its document when it was accepted.
type VersionSpec struct {
	Format      string    `json:"format"`       // openapi, asyncapi, graphql, wsdl, protobuf
	Lifecycle   string    `json:"lifecycle"`    // draft, published, deprecated, retired
	Digest      string    `json:"digest"`       // SHA-256 of the document, hexadecimal
	Size        int       `json:"size"`         // of the document, in bytes
	ContentType string    `json:"content_type"` // of the document
	Routes      []Route   `json:"routes"`
	Findings    []Finding `json:"findings"`
}

// Route is one operation that a version's definition offers.
type Route = definition.Route

// Finding is one remark on a version's definition.
type Finding = definition.Finding

// Instance is one stored instance of a service.
type Instance struct {
	Namespace string `json:"namespace"`
	Service   string `json:"service"`
	ID        string `json:"id"`
	InstanceSpec
	Status    string       `json:"status"`                // the worst of its own, see Own, and its checks'
	StatusBy  string       `json:"status_by,omitzero"`    // lease, caller, checks, or empty
	OwnStatus string       `json:"own_status,omitzero"`   // see Own
	States    []CheckState `json:"check_states,omitzero"` // of Checks, in their order
	Meta
	JSON []byte `json:"-"`

	renewed uint64
}

// InstanceSpec is what a caller says about an instance.
type InstanceSpec struct {
	Address         string            `json:"address"`
	Port            int               `json:"port"`
	Version         string            `json:"version"`
	Zone            string            `json:"zone"`
	Weight          int               `json:"weight"`
	Tags            []string          `json:"tags"`
	Metadata        map[string]string `json:"metadata"`
	TTL             Duration          `json:"ttl"`              // of the lease; 0: none, its checks alone say how it is
	DeregisterAfter Duration          `json:"deregister_after"` // since nobody keeps it alive; 0: never
	Checks          []Check           `json:"checks"`
}

// Renewed is the revision at which the instance last registered or was given a
// status, as far as this process has seen: checks do not move it. It is no part
// of the record.
func (i *Instance) Renewed() uint64 { return i.renewed }

// The statuses of an instance.
const (
	Passing     = "passing"
	Warning     = "warning"
	Critical    = "critical"
	Maintenance = "maintenance"
)

// Who set an instance's status.
const (
	ByLease  = "lease"
	ByCaller = "caller"
	ByChecks = "checks"
)

// The kinds of records, as [Txn.Delete] takes them.
const (
	KindService  = "service"
	KindVersion  = "version"
	KindInstance = "instance"
)

// LeaseChange is a change of state that a deadline or a heartbeat led to.
type LeaseChange uint8

const (
	// Expired turns passing and warning into critical.
	Expired LeaseChange = iota + 1
	// Back turns critical and warning into passing.
	Back
	// Deregister removes the instance, whatever its status.
	Deregister
)

// Counts is how many records a snapshot holds.
type Counts struct{ Services, Versions, Instances int }
