package node

import (
	"cmp"
	"context"
	"log/slog"
	"time"
)

// RunWithout is [Run] with an engine that lacks built-ins of those that the
// others have, and another patience with other nodes where one is given.
func RunWithout(ctx context.Context, cfg *Config, version string, logger *slog.Logger, builtins []string, patience time.Duration) error {
	return run(ctx, cfg, version, logger, variant{without: builtins, everywhere: cmp.Or(patience, everywhere)})
}
