package node

import (
	"context"

	"github.com/muster-registry/muster/admit"
	"github.com/muster-registry/muster/api/rest"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/quota"
	"github.com/muster-registry/muster/setting"
)

// wireQuotas connects the rate limits of services.
func (n *Node) wireQuotas() {
	opt := quota.Options{
		Document: func() ([]byte, uint64) {
			r, ok := n.machine.View().Settings.Get(setting.Quota, "", rest.QuotasName)
			if !ok {
				return nil, 0
			}
			return r.Spec, r.Revision
		},
		Call:     n.cluster.Call,
		Nodes:    func() int { return len(n.cluster.Members()) },
		Password: n.cfg.Secrets.RedisPassword,
		Logger:   n.logger,
	}
	if q := n.cfg.Quota; q.RequestsPerSecond > 0 {
		opt.Static = &quota.Rate{RequestsPerSecond: q.RequestsPerSecond, BurstCapacity: q.BurstCapacity}
	}
	n.quotas = quota.New(opt)
	n.metrics.reg.MustRegister(n.quotas.Collectors()...)
	n.cluster.Handle(quota.Method, true, n.quotas.Serve)
	n.gate.Setting(setting.Quota, admit.Setting{
		Resource: "quota",
		Canonical: func(_ context.Context, _ admit.State, _ *command.Intent, _ *command.Command, p *command.Put) ([]byte, error) {
			if p.Name != rest.QuotasName || p.Namespace != "" {
				return nil, fault.New(fault.BadRequest, "there is one quotas document, by the name of %s", rest.QuotasName)
			}
			return quota.Canonical(p.Spec)
		},
	})
}

// CheckQuota implements rest.Backend.
func (b backend) CheckQuota(ctx context.Context, c quota.Call) (*quota.Result, error) {
	return b.quotas.Check(ctx, c)
}
