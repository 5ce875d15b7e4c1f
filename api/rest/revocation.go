package rest

import (
	"net/http"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/identity"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
	"github.com/muster-registry/muster/setting"
)

const revocationBase = "/v1/revocations"

// revocationRoutes offer what ends credentials before their time.
func revocationRoutes() []Route {
	kind := string(setting.Revocation)
	missing := []fault.Code{fault.NotFound}
	own := settingRoute{kind: setting.Revocation}
	return []Route{
		{Method: http.MethodGet, Path: revocationBase, ID: "listRevocations", Summary: "List what is revoked",
			Action: policy.Read, Kind: kind, Status: 200, Reads: true, Pages: true, Answer: Revocation{}, handle: own.list},
		{Method: http.MethodPost, Path: revocationBase, ID: "revoke", Summary: "Refuse a credential from now on, on every node",
			Action: policy.Manage, Kind: kind, Status: 200, Writes: true, Query: inForceParams, Pending: Revoked{},
			Body: identity.Revocation{}, Answer: Revoked{}, handle: revoke},
		{Method: http.MethodGet, Path: revocationBase + "/{name}", ID: "getRevocation", Summary: "Get a revocation",
			Action: policy.Read, Kind: kind, Status: 200, Reads: true, Answer: Revocation{}, Refusals: missing, handle: own.get},
		{Method: http.MethodDelete, Path: revocationBase + "/{name}", ID: "deleteRevocation", Summary: "Accept the credential again",
			Action: policy.Manage, Kind: kind, Status: 204, Writes: true, Refusals: missing, handle: own.delete},
	}
}

// Revocation is one, as it is kept.
type Revocation struct {
	Name string `json:"name"` // made of its kind and value
	identity.Revocation
	Revision  uint64    `json:"revision"`
	CreatedAt time.Time `json:"created_at"`
	CreatedBy string    `json:"created_by"`
	UpdatedAt time.Time `json:"updated_at"`
	UpdatedBy string    `json:"updated_by"`
}

// Revoked answers who revokes: 200 when no node accepts the credential any
// more, 202 while one may.
type Revoked struct {
	Revocation
	Outstanding
}

// Outstanding says who may still accept what was revoked.
type Outstanding struct {
	Pending   []string  `json:"pending"`              // nodes that could not be reached: if they run, they may still accept it
	InForceAt time.Time `json:"in_force_at,omitzero"` // from when on those do not answer either, unless they have heard of it
}

// How long a call that revokes waits for nodes that do not answer: a node that
// lives answers in milliseconds.
const (
	waitInForce    = 3 * time.Second
	maxWaitInForce = 10 * time.Minute
)

var inForceParams = []Param{{Name: "wait", Type: "string", Description: "how long to wait for nodes that are cut off, before 202 names them; 3s, at most 10m"}}

func (c *call) waitInForce() (time.Duration, error) {
	q, err := c.query()
	if err != nil {
		return 0, err
	}
	return duration(q, "wait", waitInForce, maxWaitInForce)
}

// outstanding waits until a revocation is in force on every node, and says on
// which it is not.
func (c *call) outstanding(revision uint64, wait time.Duration) (status int, o Outstanding) {
	pending, until := c.api.backend.Everywhere(c.R.Context(), revision, wait)
	if len(pending) == 0 {
		return http.StatusOK, Outstanding{Pending: []string{}}
	}
	o.Pending = pending
	if !until.IsZero() {
		o.InForceAt = until.UTC().Truncate(time.Second).Add(time.Second)
		c.Header().Set("Retry-After", strconv.Itoa(int(time.Until(o.InForceAt)/time.Second)+1))
	}
	return http.StatusAccepted, o
}

func revoke(c *call) error {
	wait, err := c.waitInForce()
	if err != nil {
		return err
	}
	body, err := c.body(c.api.opt.MaxBody)
	if err != nil {
		return err
	}
	var rev identity.Revocation
	if err := registry.DecodeStrict(body, &rev); err != nil {
		return err
	}
	if err := rev.Canonical(); err != nil {
		return err
	}
	receipt, err := c.submit(&command.Command{Op: &command.Command_Put{Put: &command.Put{
		Kind: command.Kind_SETTING, Service: string(setting.Revocation), Name: rev.ID(), Spec: body,
	}}}, body, nil)
	if err != nil {
		return err
	}
	answer := Revoked{}
	if err := json.Unmarshal(receipt.Record, &answer.Revocation); err != nil {
		return fault.Wrap(fault.Internal, err, "the stored revocation cannot be read")
	}
	var status int
	status, answer.Outstanding = c.outstanding(receipt.Revision, wait)
	return c.json(status, answer)
}
