package node

import (
	"context"
	"log/slog"

	"github.com/muster-registry/muster/policy/rego"
	"github.com/muster-registry/muster/registry/definition"
)

// RunWithout is [Run] with an engine that lacks built-ins of those that the
// others have.
func RunWithout(ctx context.Context, cfg *Config, version string, logger *slog.Logger, builtins []string) error {
	return run(ctx, cfg, version, logger, rego.Options{Limit: cfg.Limits.Evaluation, ValidSchema: definition.Valid, Without: builtins})
}
