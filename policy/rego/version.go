package rego

import "github.com/open-policy-agent/opa/v1/version"

// Version names the engine, as "opa 1.22.2". Nodes with equal versions decide
// alike.
func (e *Engine) Version() string { return "opa " + version.Version }
