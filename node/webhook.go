package node

import (
	"context"

	"github.com/muster-registry/muster/admit"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/egress"
	"github.com/muster-registry/muster/policy/rego"
	"github.com/muster-registry/muster/policy/webhook"
	"github.com/muster-registry/muster/setting"
)

// wireWebhooks connects the outside policy endpoints.
func (n *Node) wireWebhooks() error {
	allow, err := egress.Prefixes(n.cfg.Webhook.Allow)
	if err != nil {
		return err
	}
	dialer := &egress.Dialer{Allow: allow}
	hooks := webhook.New(webhook.Options{Dialer: dialer, Agent: "muster/" + n.version, Logger: n.logger})
	n.gate.Webhooks(n.override.Webhooks(hooks), rego.NewID, n.log)
	n.gate.Setting(setting.Webhook, admit.Setting{
		Resource: "webhook",
		Canonical: func(_ context.Context, _ admit.State, _ *command.Intent, _ *command.Command, p *command.Put) ([]byte, error) {
			return webhook.Canonical(p.Name, p.Spec, dialer)
		},
	})
	n.metrics.reg.MustRegister(hooks.Collectors()...)
	return nil
}
