package node

import (
	"cmp"
	"context"
	"log/slog"
	"time"
)

// Unlike is what a node has that the others have not; the zero value: nothing.
type Unlike struct {
	Without     []string         // built-ins that its engine lacks
	Patience    time.Duration    // with other nodes around a change of the policies
	BeforeWrite func()           // called before each write of its Raft log
	Wall        func() time.Time // its wall clock
}

// RunUnlike is [Run] for such a node.
func RunUnlike(ctx context.Context, cfg *Config, version string, logger *slog.Logger, u Unlike) error {
	return run(ctx, cfg, version, logger, variant{without: u.Without, everywhere: cmp.Or(u.Patience, everywhere), beforeWrite: u.BeforeWrite, wall: u.Wall})
}
