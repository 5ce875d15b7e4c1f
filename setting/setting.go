// Package setting owns the small administrative records of the cluster:
// trusted keys, webhooks, schemas, break-glass, the progress of the Git source,
// what policies must have, the rate limits, who gets which role, what is revoked.
// It keeps them by kind, namespace and name, each with the revision of its last
// change, and knows nothing of what stands in them: the leader's gate brings a
// spec into its canonical form before it gets here. It refuses a record whose
// kind it does not know. It is deterministic: time and identity come from its
// callers.
package setting

import (
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/muster-registry/muster/fault"
)

// Kind says what a setting is for.
type Kind string

// The kinds of setting.
const (
	Key        Kind = "key"         // a key that may sign policies
	Webhook    Kind = "webhook"     // an outside policy endpoint
	Schema     Kind = "schema"      // a JSON Schema that records must meet
	BreakGlass Kind = "break-glass" // a namespace in which refusals are lifted for a time
	Sync       Kind = "sync"        // how far the Git source of policies has come

	Requirement Kind = "requirement" // what a policy must have to be accepted
	Quota       Kind = "quota"       // the rate limits of services; there is one
	Role        Kind = "role"        // a rule that gives a role to credentials
	Revocation  Kind = "revocation"  // credentials that are no longer good
)

// Kinds lists the kinds of setting.
func Kinds() []Kind {
	return []Kind{Key, Webhook, Schema, BreakGlass, Sync, Requirement, Quota, Role, Revocation}
}

// Stamp is what the one sequence of changes gives to a change.
type Stamp struct {
	Revision uint64
	Time     time.Time
	By       string // id of the principal
}

// Record is one setting. It is immutable.
type Record struct {
	Kind      Kind           `json:"kind"`
	Namespace string         `json:"namespace"` // "": the cluster; "*": every namespace
	Name      string         `json:"name"`
	Spec      jsontext.Value `json:"spec"` // a JSON object, canonical
	Revision  uint64         `json:"revision"`
	CreatedAt time.Time      `json:"created_at"`
	CreatedBy string         `json:"created_by"`
	UpdatedAt time.Time      `json:"updated_at"`
	UpdatedBy string         `json:"updated_by"`

	JSON []byte `json:"-"` // as served: the members of the spec, and those of the record beside them
	raw  []byte // as stored
}

// Decode reads the spec into v, strictly. The error says that the record is
// not one that v's version of muster wrote.
func (r *Record) Decode(v any) error {
	if err := json.Unmarshal(r.Spec, v, json.RejectUnknownMembers(true)); err != nil {
		return fault.Wrap(fault.Internal, err, "the stored %s %s cannot be read", r.Kind, r.Name)
	}
	return nil
}

// seal fills in the forms that are derived from the fields.
func (r *Record) seal() error {
	raw, err := json.Marshal(r, json.Deterministic(true))
	if err != nil {
		return err
	}
	r.raw = raw
	own, err := json.Marshal(struct {
		Revision  uint64    `json:"revision"`
		CreatedAt time.Time `json:"created_at"`
		CreatedBy string    `json:"created_by"`
		UpdatedAt time.Time `json:"updated_at"`
		UpdatedBy string    `json:"updated_by"`
	}{r.Revision, r.CreatedAt, r.CreatedBy, r.UpdatedAt, r.UpdatedBy})
	if err != nil {
		return err
	}
	named, err := json.Marshal(struct {
		Namespace string `json:"namespace,omitzero"`
		Name      string `json:"name"`
	}{r.Namespace, r.Name})
	if err != nil {
		return err
	}
	r.JSON = named[:len(named)-1]
	if inner := r.Spec[1 : len(r.Spec)-1]; len(inner) > 0 {
		r.JSON = append(append(r.JSON, ','), inner...)
	}
	r.JSON = append(append(r.JSON, ','), own[1:]...)
	return nil
}

// path is the place of a setting in the table and in the store. Names hold no slash.
func path(kind Kind, namespace, name string) string {
	return string(kind) + "/" + namespace + "/" + name
}

func valid(kind Kind, namespace, name string) error {
	switch {
	case !slices.Contains(Kinds(), kind):
		return fault.New(fault.BadRequest, "there is no setting of the kind %q", string(kind))
	case name == "" || strings.Contains(name, "/") || strings.Contains(namespace, "/"):
		return fault.New(fault.BadRequest, "a %s needs a name without a slash", kind)
	}
	return nil
}
