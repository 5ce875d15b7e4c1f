package node

import (
	"context"
	"crypto/x509"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/admit"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/fsm"
	"github.com/muster-registry/muster/identity"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
	"github.com/muster-registry/muster/setting"
)

// access keeps what the state says of credentials in the form they are looked
// at: role rules and revocations, read once for each change of them.
type access struct {
	now atomic.Pointer[known]

	mu   sync.Mutex // one maker at a time
	read map[*setting.Record]any
}

// known is the table of one state.
type known struct {
	revision uint64
	tokens   *identity.Table // as the state has it
	settings *setting.Table
	table    *identity.Table // tokens, held to the settings
}

// credentials gives the table that callers are authenticated by in the view,
// or a newer one: what was revoked since must not come back.
func (n *Node) credentials(v *fsm.View) *identity.Table {
	if c := n.access.now.Load(); c != nil && c.tokens == v.Tokens && c.settings == v.Settings {
		return c.table
	}
	return n.followAccess(v)
}

func (n *Node) followAccess(v *fsm.View) *identity.Table {
	a := &n.access
	a.mu.Lock()
	defer a.mu.Unlock()
	old := a.now.Load()
	if old != nil && (old.revision > v.Revision || (old.tokens == v.Tokens && old.settings == v.Settings)) {
		return old.table
	}
	next := &known{revision: v.Revision, tokens: v.Tokens, settings: v.Settings}
	if old != nil && old.settings == v.Settings {
		next.table = v.Tokens.With(old.table.Access())
		a.now.Store(next)
		return next.table
	}
	made, changed := n.makeAccess(v.Settings)
	if old != nil && !changed {
		made = old.table.Access()
	}
	next.table = v.Tokens.With(made)
	a.now.Store(next)
	if old != nil && changed {
		old.table.Access().Supersede()
		if n.cluster != nil {
			n.cluster.Recheck()
		}
	}
	return next.table
}

// makeAccess reads the rules and the revocations; changed says whether they are
// not those that were read last. A record that this version cannot read is a
// rule that gives nothing; a revocation like that cannot be stored.
func (n *Node) makeAccess(settings *setting.Table) (made *identity.Access, changed bool) {
	var rules []*identity.Rule
	var revocations []*identity.Revocation
	read := map[*setting.Record]any{}
	take := func(r *setting.Record, fresh any) any {
		if known, ok := n.access.read[r]; ok {
			read[r] = known
			return known
		}
		changed = true
		if err := r.Decode(fresh); err != nil {
			n.logger.Error("a rule about credentials is left out", "kind", r.Kind, "name", r.Name, "error", err)
			fresh = nil
		}
		read[r] = fresh
		return fresh
	}
	for r := range settings.All(setting.Role) {
		if rule, ok := take(r, new(identity.Rule)).(*identity.Rule); ok {
			rules = append(rules, rule)
		}
	}
	for r := range settings.All(setting.Revocation) {
		if rev, ok := take(r, new(identity.Revocation)).(*identity.Revocation); ok {
			revocations = append(revocations, rev)
		}
	}
	changed = changed || len(read) != len(n.access.read)
	n.access.read = read
	return identity.NewAccess(rules, revocations), changed
}

// wireAccess has the gate take role rules and revocations.
func (n *Node) wireAccess() {
	n.gate.Setting(setting.Role, admit.Setting{Resource: string(setting.Role), Canonical: n.canonicalRole, Deletable: n.roleDeletable})
	n.gate.Setting(setting.Revocation, admit.Setting{Resource: string(setting.Revocation), Canonical: n.canonicalRevocation})
	n.machine.OnApply(func(v *fsm.View, ev fsm.Events) {
		if len(ev.Settings) > 0 || ev.Replaced {
			n.followAccess(v)
		}
	})
}

func (n *Node) canonicalRole(_ context.Context, st admit.State, in *command.Intent, _ *command.Command, p *command.Put) ([]byte, error) {
	rule := new(identity.Rule)
	if err := registry.DecodeStrict(p.Spec, rule); err != nil {
		return nil, err
	}
	if err := rule.Check(policy.Roles(), registry.ValidName); err != nil {
		return nil, err
	}
	if rule.Role != policy.Operator || len(rule.Namespaces) > 0 || rule.NamespacesClaim != "" {
		n.lastOperator(st, in, p.Name)
	}
	return json.Marshal(rule, json.Deterministic(true))
}

func (n *Node) roleDeletable(_ context.Context, st admit.State, in *command.Intent, d *command.Delete) error {
	n.lastOperator(st, in, d.Name)
	return nil
}

// lastOperator warns when a rule ceases to make operators and no other does.
// It is no error: the operator token of the configuration remains, and so does
// its reset.
func (n *Node) lastOperator(st admit.State, in *command.Intent, name string) {
	makes := func(r *setting.Record) bool {
		rule := new(identity.Rule)
		return r.Decode(rule) == nil && rule.Role == policy.Operator && len(rule.Namespaces) == 0 && rule.NamespacesClaim == ""
	}
	if r, ok := st.Settings.Get(setting.Role, "", name); !ok || !makes(r) {
		return
	}
	for r := range st.Settings.All(setting.Role) {
		if r.Name != name && makes(r) {
			return
		}
	}
	n.logger.Warn("no role rule makes anybody an operator any more; what remains are operator tokens, operator certificates and muster cluster reset-operator",
		"role_rule", name, "principal", in.GetPrincipal().GetId())
}

// maxRevocations bounds what every node holds in memory. Revocations with an
// end leave by themselves.
const maxRevocations = 100_000

func (n *Node) canonicalRevocation(_ context.Context, st admit.State, _ *command.Intent, cmd *command.Command, p *command.Put) ([]byte, error) {
	rev := new(identity.Revocation)
	if err := registry.DecodeStrict(p.Spec, rev); err != nil {
		return nil, err
	}
	if err := rev.Canonical(); err != nil {
		return nil, err
	}
	if rev.ID() != p.Name {
		return nil, fault.New(fault.BadRequest, "a revocation has its name from what it revokes, and this one's is %s", rev.ID())
	}
	if !rev.ExpiresAt.IsZero() && !rev.ExpiresAt.After(time.Unix(0, cmd.Time)) {
		return nil, fault.Invalid("/expires_at", "lies in the past: give the time at which the credential itself has ended, or leave it out")
	}
	if own, _ := n.certs.peer(); own.Leaf != nil && identity.NewAccess(nil, []*identity.Revocation{rev}).RevokedCertificate(own.Leaf) {
		return nil, fault.New(fault.Conflict, "this revokes the certificate of %s, which leads: nobody would hear of it, nor of anything after it; hand over the leadership first", n.cfg.NodeID)
	}
	if _, known := st.Settings.Get(setting.Revocation, "", p.Name); !known && st.Settings.Len(setting.Revocation) >= maxRevocations {
		return nil, fault.New(fault.Conflict, "there are %d revocations already; delete those of credentials that have ended", maxRevocations)
	}
	return json.Marshal(rev, json.Deterministic(true))
}

// sweepEvery is how often the leader forgets revocations that have ended.
const sweepEvery = time.Minute

// sweepRevocations runs while this node leads.
func (n *Node) sweepRevocations(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			n.sweep(ctx, now)
		}
	}
}

func (n *Node) sweep(ctx context.Context, now time.Time) {
	for r := range n.machine.View().Settings.All(setting.Revocation) {
		rev := new(identity.Revocation)
		if r.Decode(rev) != nil || rev.ExpiresAt.IsZero() || now.Before(rev.ExpiresAt) {
			continue
		}
		_, err := n.cluster.Propose(ctx, &command.Command{Principal: "muster", Time: now.UnixNano(), Op: &command.Command_Delete{Delete: &command.Delete{
			Kind: command.Kind_SETTING, Service: string(setting.Revocation), Name: r.Name, Observed: r.Revision,
		}}})
		if err != nil && !fault.Is(err, fault.NotFound) {
			n.logger.Warn("a revocation that has ended was not forgotten", "revocation", r.Name, "error", err)
			return
		}
	}
}

// unmapped is told of callers that no role rule is about. Claim names are
// shown, never what they say.
func (n *Node) unmapped(p *identity.Principal, first bool) {
	provider := p.Credential.Provider
	switch {
	case provider != "":
	case p.Credential.Certificate != nil:
		provider = "certificate"
	default:
		provider = "token"
	}
	n.metrics.unmapped.WithLabelValues(provider).Inc()
	if !first {
		return
	}
	names := make([]string, 0, len(p.Claims))
	for name := range p.Claims {
		if len(names) < 50 {
			names = append(names, short(name))
		}
	}
	n.metrics.unmappedTold.Do(func() { // a certificate is new with each connection
		n.logger.Warn("a caller has proved who it is and no role rule is about it", "provider", provider, "kind", p.Kind, "claims", names)
	})
}

// revokedNode says whether the cluster has revoked a node's certificate.
func (n *Node) revokedNode(cert *x509.Certificate) bool {
	a := n.credentials(n.machine.View()).Access()
	return a != nil && a.RevokedCertificate(cert)
}
