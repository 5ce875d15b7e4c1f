package rest

import (
	"net/http"
	"time"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/breakglass"
	"github.com/muster-registry/muster/setting"
)

const breakGlassBase = "/v1/break-glass"

// breakGlassRoutes offer the emergency in which refusals of the policy are
// lifted in one namespace.
func breakGlassRoutes() []Route {
	kind := string(setting.BreakGlass)
	return []Route{
		{Method: http.MethodGet, Path: breakGlassBase, ID: "listBreakGlass", Summary: "List the namespaces in which break-glass is open",
			Action: policy.Read, Kind: kind, Status: 200, Reads: true, Pages: true, Answer: BreakGlass{}, handle: listBreakGlass},
		{Method: http.MethodPost, Path: breakGlassBase, ID: "openBreakGlass", Summary: "Lift the policy's refusals in one namespace for a time",
			Action: policy.Manage, Kind: kind, Status: 201, Writes: true, Body: breakglass.Body{}, Answer: BreakGlass{}, handle: openBreakGlass},
		{Method: http.MethodDelete, Path: breakGlassBase + "/{namespace}", ID: "endBreakGlass", Summary: "End break-glass in a namespace",
			Action: policy.Manage, Kind: kind, Status: 204, Writes: true, Refusals: []fault.Code{fault.NotFound}, handle: endBreakGlass},
	}
}

// BreakGlass is a namespace in which the policy's refusals are lifted.
type BreakGlass struct {
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"` // the same
	TTL       string    `json:"ttl"`
	Reason    string    `json:"reason"`
	Until     time.Time `json:"until"`
	Revision  uint64    `json:"revision"`
	CreatedAt time.Time `json:"created_at"`
	CreatedBy string    `json:"created_by"`
	UpdatedAt time.Time `json:"updated_at"`
	UpdatedBy string    `json:"updated_by"`
}

func listBreakGlass(c *call) error {
	after, limit, err := c.page()
	if err != nil {
		return err
	}
	if err := c.view(nil); err != nil {
		return err
	}
	page, next, err := items(after, limit, func(after string, n int) ([]*setting.Record, string) {
		return c.State.Settings.List(setting.BreakGlass, after, n)
	}, func(r *setting.Record) ([]byte, error) {
		if _, open := breakglass.Open(c.State.Settings, r.Namespace, time.Now()); !open || !c.Role.Sees(r.Namespace) {
			return nil, nil
		}
		return r.JSON, nil
	})
	if err != nil {
		return err
	}
	c.list(page, next)
	return nil
}

func openBreakGlass(c *call) error {
	sent, err := c.body(c.api.opt.MaxBody)
	if err != nil {
		return err
	}
	body, err := breakglass.ReadBody(sent)
	if err != nil {
		return err
	}
	if err := policy.Permit(c.Role, c.route.Action, c.route.Kind, body.Namespace); err != nil {
		return err
	}
	receipt, err := c.submit(&command.Command{Op: &command.Command_Put{Put: &command.Put{
		Kind: command.Kind_SETTING, Service: string(setting.BreakGlass), Namespace: body.Namespace, Name: body.Namespace, Spec: sent,
	}}}, sent, nil)
	if err != nil {
		return err
	}
	status := http.StatusOK
	if receipt.Created {
		status = http.StatusCreated
	}
	c.Header().Set("ETag", entityTag(receipt.Revision))
	c.send(status, mediaJSON, receipt.Record)
	return nil
}

func endBreakGlass(c *call) error {
	return c.delete(&command.Delete{Kind: command.Kind_SETTING, Service: string(setting.BreakGlass), Namespace: c.namespace, Name: c.namespace})
}
