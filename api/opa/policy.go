package opa

import (
	"maps"
	"net/http"
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	"github.com/open-policy-agent/opa/v1/server/types"
	"github.com/open-policy-agent/opa/v1/storage"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/rego"
)

// listPolicies gives all modules of the active revision, with their syntax.
func listPolicies(c *call) error {
	p := c.params()
	answer := types.PolicyListResponseV1{Result: []types.PolicyV1{}}
	if active := c.state.Policy.Active(); active != nil {
		modules, err := c.api.engine.Modules(c.r.Context(), active)
		if err != nil {
			return err
		}
		for _, id := range slices.Sorted(maps.Keys(active.Modules)) {
			answer.Result = append(answer.Result, types.PolicyV1{ID: id, Raw: active.Modules[id], AST: modules[id]})
		}
	}
	return c.ok(answer, p.pretty)
}

// getPolicy gives one module.
func getPolicy(c *call) error {
	p, id := c.params(), c.r.PathValue("path")
	active := c.state.Policy.Active()
	if active == nil || active.Modules[id] == "" {
		return noPolicy(id)
	}
	modules, err := c.api.engine.Modules(c.r.Context(), active)
	if err != nil {
		return err
	}
	return c.ok(types.PolicyGetResponseV1{Result: types.PolicyV1{ID: id, Raw: active.Modules[id], AST: modules[id]}}, p.pretty)
}

func noPolicy(id string) error {
	return &refusal{http.StatusNotFound, types.NewErrorV1(types.CodeResourceNotFound, "%s: policy id %q", storage.NotFoundErr, id)}
}

// putPolicy makes or replaces one module.
func putPolicy(c *call) error {
	p, id := c.params(), c.r.PathValue("path")
	m := metrics.New()
	m.Timer("server_read_bytes").Start()
	source, err := c.read(c.api.opt.MaxPolicy)
	if err != nil {
		return err
	}
	m.Timer("server_read_bytes").Stop()
	m.Timer(metrics.RegoModuleParse).Start()
	module, err := rego.ParseModule(id, string(source))
	m.Timer(metrics.RegoModuleParse).Stop()
	if err != nil {
		if errs, ok := err.(ast.Errors); ok { //nolint:errorlint // it is OPA's own, unwrapped
			return uncompiled(types.CodeInvalidParameter, types.MsgCompileModuleError, errs)
		}
		return invalid("%v", err)
	}
	if ofSystem(module) {
		return errSystem
	}
	m.Timer(metrics.RegoModuleCompile).Start()
	err = c.change(types.CodeInvalidParameter, func(content *policy.Content) error {
		if err := c.replaceable(content, id); err != nil {
			return err
		}
		content.Modules[id] = string(source)
		return nil
	})
	if err != nil {
		return err
	}
	m.Timer(metrics.RegoModuleCompile).Stop()
	var answer types.PolicyPutResponseV1
	if p.metrics {
		answer.Metrics = m.All()
	}
	return c.ok(answer, p.pretty)
}

// deletePolicy removes one module. A revision may be left with data alone, or
// with nothing: then no rule decides.
func deletePolicy(c *call) error {
	p, id := c.params(), c.r.PathValue("path")
	m := metrics.New()
	m.Timer(metrics.RegoModuleCompile).Start()
	err := c.change(types.CodeInvalidOperation, func(content *policy.Content) error {
		if _, ok := content.Modules[id]; !ok {
			return noPolicy(id)
		}
		if err := c.replaceable(content, id); err != nil {
			return err
		}
		delete(content.Modules, id)
		return nil
	})
	if err != nil {
		return err
	}
	m.Timer(metrics.RegoModuleCompile).Stop()
	var answer types.PolicyDeleteResponseV1
	if p.metrics {
		answer.Metrics = m.All()
	}
	return c.ok(answer, p.pretty)
}

// replaceable refuses to touch a module of the engine's own.
func (c *call) replaceable(content *policy.Content, id string) error {
	source, ok := content.Modules[id]
	if !ok {
		return nil
	}
	if module, err := rego.ParseModule(id, source); err == nil && ofSystem(module) {
		return errSystem
	}
	return nil
}

var errSystem = fault.New(fault.Forbidden, "data.system and packages in it belong to the engine; they cannot be changed here. Push a policy revision on the control port instead")

func ofSystem(m *ast.Module) bool {
	path := m.Package.Path
	return len(path) > 1 && path[1].Equal(ast.StringTerm("system"))
}
