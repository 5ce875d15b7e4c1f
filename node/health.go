package node

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/muster-registry/muster/egress"
	"github.com/muster-registry/muster/health"
)

// HealthSettings shape the active checks of instances. They should be the same
// on all nodes.
type HealthSettings struct {
	Allow           []string `yaml:"allow"`             // addresses and ranges that are not public and that checks may connect to
	AllowSkipVerify bool     `yaml:"allow_skip_verify"` // checks may say that certificates are not to be verified
	Probes          int      `yaml:"probes"`            // of this node at one time
	PanicThreshold  float64  `yaml:"panic_threshold"`   // the share of a service's instances that is not given up at once; 0: none
}

func healthDefaults() HealthSettings { return HealthSettings{Probes: 256, PanicThreshold: 0.5} }

func (s *HealthSettings) validate() error {
	var errs []error
	if _, err := egress.Prefixes(s.Allow); err != nil {
		errs = append(errs, fmt.Errorf("health.allow: %w", err))
	}
	if s.Probes < 1 || s.Probes > 10_000 {
		errs = append(errs, fmt.Errorf("health.probes: %d is out of range; from 1 to 10000", s.Probes))
	}
	if t := s.PanicThreshold; math.IsNaN(t) || t < 0 || t > 1 {
		errs = append(errs, fmt.Errorf("health.panic_threshold: %g is out of range; it is a share, from 0 to 1", t))
	}
	return errors.Join(errs...)
}

// wireHealth connects the active checks of instances.
func (n *Node) wireHealth(reg prometheus.Registerer) error {
	allow, err := egress.Prefixes(n.cfg.Health.Allow)
	if err != nil {
		return err
	}
	m := health.NewMetrics(reg)
	n.checker = health.New(health.Options{
		Node: n.cfg.NodeID, State: log{n}, Members: n.connected, Call: n.cluster.Call,
		Connected: func() bool { return !n.draining.Load() && n.cluster.Connected() },
		Prober: &health.Prober{Dialer: &egress.Dialer{Allow: allow}, SkipVerify: n.cfg.Health.AllowSkipVerify,
			Agent: "muster/" + n.version + " (health check by " + n.cfg.NodeID + ")"},
		Probes: n.cfg.Health.Probes, Metrics: m, Logger: n.logger,
	})
	n.judge = health.NewJudge(health.JudgeOptions{
		State: log{n}, Members: n.connected, Ask: n.cluster.CallNode, Propose: n.cluster.Propose,
		Threshold: n.cfg.Health.PanicThreshold, Metrics: m, Logger: n.logger,
	})
	n.cluster.Handle(health.MethodReport, true, n.judge.Serve)
	n.cluster.Handle(health.MethodProbe, false, func(ctx context.Context, _ string, p []byte) ([]byte, error) { return n.checker.Serve(ctx, p) })
	return nil
}

// connected are the members that this node knows to be alive and in contact
// with the quorum.
func (n *Node) connected() (ids []string) {
	for _, m := range n.cluster.Members() {
		if m.Alive && !m.Apart {
			ids = append(ids, m.ID)
		}
	}
	return ids
}
