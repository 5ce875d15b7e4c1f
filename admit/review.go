package admit

import (
	"context"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
	"github.com/muster-registry/muster/registry/definition"
)

// Reviewer judges definitions, under the settings of a policy revision, which
// may be nil. It never fails: what it could not judge, its answer says.
type Reviewer interface {
	Review(ctx context.Context, rev *policy.Revision, format string, document []byte, c *definition.Context) *definition.Review
}

// Definitions registers who judges them; without, none are judged. To be
// called before the gate is used.
func (g *Gate) Definitions(r Reviewer) { g.reviewer = r }

// review judges the definition of a version: what is found becomes part of the
// record, and of what the policy decides on. Other kinds are left as they are.
func (g *Gate) review(ctx context.Context, st State, t target, spec, document []byte, res *policy.Resource) ([]byte, error) {
	if t.kind != command.Kind_VERSION || g.reviewer == nil {
		return spec, nil
	}
	format, about, err := st.Registry.VersionContext(t.namespace, t.service, t.name, spec)
	if err != nil {
		return nil, err
	}
	res.Findings, res.FindingCounts = nil, nil
	r := g.reviewer.Review(ctx, st.Policy.Active(), format, document, about)
	if spec, err = registry.Reviewed(spec, r.Findings); err == nil {
		res.Findings, err = json.Marshal(r.Findings)
	}
	if err == nil && r.Counts != nil {
		res.FindingCounts, err = json.Marshal(r.Counts, json.Deterministic(true))
	}
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "what was found in the definition cannot be written down")
	}
	return spec, nil
}
