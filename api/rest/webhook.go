package rest

import (
	"time"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy/webhook"
	"github.com/muster-registry/muster/setting"
)

// webhookRoute offers the outside policy endpoints.
func webhookRoute() settingRoute {
	return settingRoute{kind: setting.Webhook, resource: "webhook", base: "/v1/webhooks", one: "Webhook", many: "Webhooks",
		body: webhook.Spec{}, answer: Webhook{}, show: webhook.Shown,
		refusals: []fault.Code{fault.ForbiddenAddress}}
}

// Webhook is an outside policy endpoint, as it is answered: of its secrets only
// that they are there.
type Webhook struct {
	Name string `json:"name"`
	webhook.Spec
	Revision  uint64    `json:"revision"`
	CreatedAt time.Time `json:"created_at"`
	CreatedBy string    `json:"created_by"`
	UpdatedAt time.Time `json:"updated_at"`
	UpdatedBy string    `json:"updated_by"`
}
