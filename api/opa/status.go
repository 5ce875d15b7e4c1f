package opa

import (
	"net/http"
	"strconv"

	"github.com/open-policy-agent/opa/v1/server/types"
	"github.com/open-policy-agent/opa/v1/version"

	"github.com/muster-registry/muster/fault"
)

// getHealth says whether this node answers questions; with bundles or plugins,
// whether it has compiled the active revision, too. It asks for no credential.
func getHealth(c *call) error {
	p := c.params()
	if err := c.healthy(flag(p.values, types.ParamBundlesActivationV1) || flag(p.values, "bundle") || flag(p.values, types.ParamPluginsV1)); err != nil {
		return c.unhealthy(err)
	}
	return c.ok(types.HealthResponseV1{}, false)
}

func (c *call) healthy(withRevision bool) error {
	if err := c.api.backend.Ready(); err != nil {
		return err
	}
	if active := c.state.Policy.Active(); withRevision && active != nil && !c.api.engine.Prepared(active) {
		return fault.New(fault.PolicyUnavailable, "policy revision %d is not compiled on this node", active.Number)
	}
	return nil
}

func (c *call) unhealthy(err error) error {
	// OPA's health answer has this status, whatever is wrong.
	c.send(http.StatusInternalServerError, []byte(`{"error":`+strconv.Quote(fault.From(err).Detail)+"}\n"))
	return nil
}

func (c *call) labels() map[string]string {
	return map[string]string{"id": c.api.backend.NodeID(), "version": version.Version, "muster": c.api.opt.Version}
}

// getConfig answers what an OPA's configuration would say; there is none to
// hide or to show.
func getConfig(c *call) error {
	p := c.params()
	var config any = map[string]any{
		"labels":                         c.labels(),
		"default_decision":               "/system/main",
		"default_authorization_decision": "/system/authz/allow",
	}
	return c.ok(types.ConfigResponseV1{Result: &config}, p.pretty)
}

// getStatus names the active revision as an OPA names its bundle.
func getStatus(c *call) error {
	p := c.params()
	state := "OK"
	if c.healthy(true) != nil {
		state = "NOT_READY"
	}
	status := map[string]any{
		"labels":  c.labels(),
		"plugins": map[string]any{"bundle": map[string]string{"state": state}},
	}
	if active := c.state.Policy.Active(); active != nil {
		status["bundles"] = map[string]any{bundleName: map[string]any{
			"name":                       bundleName,
			"active_revision":            strconv.FormatUint(active.Number, 10),
			"last_successful_activation": active.ActivatedAt,
			"digest":                     active.Digest,
		}}
	}
	var answer any = status
	return c.ok(types.StatusResponseV1{Result: &answer}, p.pretty)
}

// getIndex says what this is.
func getIndex(c *call) error {
	c.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, err := c.Write([]byte("This is the policy port of muster: the REST API of Open Policy Agent " + version.Version + ", answered from the cluster's active policy revision.\n"))
	return err
}
