package node

import (
	"context"
	"time"

	"github.com/muster-registry/muster/admit"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy/breakglass"
	"github.com/muster-registry/muster/setting"
)

// openBreakGlass makes what lifts refusals; decisions go through it.
func (n *Node) openBreakGlass() {
	settings := func() *setting.Table { return n.machine.View().Settings }
	n.override = breakglass.New(settings, n.clock.Now, n.logger)
	n.metrics.reg.MustRegister(n.override.Collectors()...)
	n.openings = breakglass.NewKeeper(settings, func(ctx context.Context, namespace string, revision uint64) error {
		_, err := n.cluster.Propose(ctx, &command.Command{Principal: "muster", Time: time.Now().UnixNano(), Op: &command.Command_Delete{Delete: &command.Delete{
			Kind: command.Kind_SETTING, Service: string(setting.BreakGlass), Namespace: namespace, Name: namespace, Observed: revision,
		}}})
		if fault.Is(err, fault.NotFound) {
			return nil // somebody else has ended it
		}
		return err
	}, n.logger)
}

// wireBreakGlass has the gate take openings, at the time that it stamps.
func (n *Node) wireBreakGlass() {
	n.gate.Setting(setting.BreakGlass, admit.Setting{
		Resource: string(setting.BreakGlass),
		Canonical: func(_ context.Context, _ admit.State, _ *command.Intent, cmd *command.Command, p *command.Put) ([]byte, error) {
			spec, err := breakglass.Canonical(p.Namespace, p.Spec, time.Unix(0, cmd.Time))
			if err == nil {
				n.logger.Warn("break-glass is opened", "namespace", p.Namespace, "principal", cmd.Principal, "opening", string(spec))
			}
			return spec, err
		},
	})
}

// emergencies says in which namespaces refusals are lifted.
func (n *Node) emergencies() (lines []string) {
	for o := range breakglass.All(n.machine.View().Settings, time.Now()) {
		lines = append(lines, o.String())
	}
	return lines
}
