package rest

import (
	"net/http"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/quota"
	"github.com/muster-registry/muster/registry"
	"github.com/muster-registry/muster/registry/definition"
	"github.com/muster-registry/muster/setting"
)

// QuotasName is the name of the one quotas document among the settings.
const QuotasName = "quotas"

func quotaRoutes() []Route {
	const path = "/v1/quotas"
	missing := []fault.Code{fault.NotFound}
	return []Route{
		{Method: http.MethodGet, Path: path, ID: "getQuotas", Summary: "Get the rate limits of services",
			Action: policy.Read, Kind: "quota", Status: 200, Reads: true, Answer: Quotas{}, Refusals: missing, handle: getQuotas},
		{Method: http.MethodPut, Path: path, ID: "putQuotas", Summary: "Set the rate limits of services, in YAML or JSON",
			Action: policy.Manage, Kind: "quota", Status: 200, Writes: true, Body: quota.Document{}, Answer: Quotas{},
			Refusals: []fault.Code{fault.InvalidDefinition}, handle: putQuotas},
		{Method: http.MethodDelete, Path: path, ID: "deleteQuotas", Summary: "Lift the rate limits of all services",
			Action: policy.Manage, Kind: "quota", Status: 204, Writes: true, Refusals: missing, handle: deleteQuotas},
		{Method: http.MethodPost, Path: "/v1/quota/check", ID: "checkQuota", Summary: "Count a call to a service against its quotas: 200, or 429 when it is one too many",
			Action: policy.Spend, Kind: "quota", Status: 200, Body: QuotaCheck{}, Answer: QuotaVerdict{}, Refusals: []fault.Code{fault.RateLimited}, handle: checkQuota},
	}
}

// Quotas is the quotas document, as it is answered.
type Quotas struct {
	Name string `json:"name"`
	quota.Document
	Revision  uint64    `json:"revision"`
	CreatedAt time.Time `json:"created_at"`
	CreatedBy string    `json:"created_by"`
	UpdatedAt time.Time `json:"updated_at"`
	UpdatedBy string    `json:"updated_by"`
}

// QuotaCheck is a call to a service, as it is to be counted.
type QuotaCheck struct {
	ServiceID string `json:"service_id"`
	Namespace string `json:"namespace,omitempty"` // of the service; default
	Principal string `json:"principal,omitempty"` // who calls the service
	Hits      *int64 `json:"hits,omitempty"`      // 1 unless given
}

// QuotaVerdict says that a call is within its quotas.
type QuotaVerdict struct {
	Allowed   bool   `json:"allowed"`
	Limit     string `json:"limit,omitempty"`    // kind of the limit that is nearest to its end; none: no limit concerns the call
	Remaining int64  `json:"remaining,omitzero"` // hits that it has left
}

func getQuotas(c *call) error {
	if err := c.view(nil); err != nil {
		return err
	}
	r, ok := c.State.Settings.Get(setting.Quota, "", QuotasName)
	if !ok {
		return fault.New(fault.NotFound, "no quotas are set")
	}
	return c.tagged(r.Revision, mediaJSON, r.JSON)
}

func putQuotas(c *call) error {
	body, err := c.yaml(c.api.opt.MaxBody)
	if err != nil {
		return err
	}
	receipt, err := c.submit(&command.Command{Op: &command.Command_Put{Put: &command.Put{
		Kind: command.Kind_SETTING, Service: string(setting.Quota), Name: QuotasName, Spec: body,
	}}}, body, nil)
	if err != nil {
		return err
	}
	c.stored(receipt)
	return nil
}

func deleteQuotas(c *call) error {
	return c.delete(&command.Delete{Kind: command.Kind_SETTING, Service: string(setting.Quota), Name: QuotasName})
}

// yaml reads a body in YAML or JSON, as JSON.
func (c *call) yaml(limit int64) ([]byte, error) {
	switch media := c.media(); media {
	case "application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml", "":
	default:
		return c.body(limit)
	}
	b, err := c.read(limit)
	if err != nil {
		return nil, err
	}
	b, err = definition.FromYAML(b)
	if err != nil || c.api.opt.MaxDepth >= registry.MaxDepth {
		return b, err
	}
	return b, registry.CheckDepth(b, c.api.opt.MaxDepth)
}

func checkQuota(c *call) error {
	body, err := c.body(c.api.opt.MaxBody)
	if err != nil {
		return err
	}
	var ask QuotaCheck
	if err := registry.DecodeStrict(body, &ask); err != nil {
		return err
	}
	count := quota.Call{ServiceID: ask.ServiceID, Namespace: ask.Namespace, Principal: ask.Principal, Hits: 1}
	if ask.Hits != nil {
		count.Hits = *ask.Hits
	}
	if err := count.Check(); err != nil {
		return err
	}
	if err := policy.Permit(c.Role, c.route.Action, c.route.Kind, count.Namespace); err != nil {
		return err
	}
	if err := c.Young(); err != nil {
		return err
	}
	res, err := c.api.backend.CheckQuota(c.R.Context(), count)
	if err != nil {
		return err
	}
	c.limited(res)
	if !res.Allowed {
		l := res.Limits[res.Tightest]
		f := fault.New(fault.RateLimited, "the call is over the limit of its %s, %g requests a second; try again after Retry-After", l.Key.Kind(), l.Rate.RequestsPerSecond)
		f.RetryAfter = res.RetryAfter
		return f
	}
	verdict := QuotaVerdict{Allowed: true}
	if len(res.Limits) > 0 {
		verdict.Limit, verdict.Remaining = string(res.Limits[res.Tightest].Key.Kind()), res.Remaining
	}
	out, err := json.Marshal(verdict)
	if err != nil {
		return err
	}
	c.send(http.StatusOK, mediaJSON, out)
	return nil
}

// limited sets the fields of draft-ietf-httpapi-ratelimit-headers-10.
func (c *call) limited(res *quota.Result) {
	if len(res.Limits) > 0 {
		h := c.Header()
		h.Set("RateLimit-Policy", res.PolicyField())
		h.Set("RateLimit", res.LimitField())
	}
}
