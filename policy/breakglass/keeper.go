package breakglass

import (
	"context"
	"log/slog"
	"time"

	"github.com/muster-registry/muster/setting"
)

// retry is how long the keeper waits after a removal that failed.
const retry = time.Second

// Keeper has openings removed when their time is over. Decisions do not need
// it, since they look at the time themselves; it is for nodes whose clock is
// behind, and so that what is over is seen to be.
type Keeper struct {
	settings func() *setting.Table
	remove   func(ctx context.Context, namespace string, revision uint64) error
	logger   *slog.Logger
	changed  chan struct{}
}

// NewKeeper makes a keeper. Remove proposes the removal of the opening that has
// the revision.
func NewKeeper(settings func() *setting.Table, remove func(ctx context.Context, namespace string, revision uint64) error, logger *slog.Logger) *Keeper {
	return &Keeper{settings: settings, remove: remove, logger: logger, changed: make(chan struct{}, 1)}
}

// Changed tells that settings have changed. It does not wait.
func (k *Keeper) Changed() {
	select {
	case k.changed <- struct{}{}:
	default:
	}
}

// Run works until the context ends: while the node leads.
func (k *Keeper) Run(ctx context.Context) {
	for {
		var due <-chan time.Time
		if wait, any := k.sweep(ctx); any {
			due = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return
		case <-k.changed:
		case <-due:
		}
	}
}

// sweep removes what is over and gives how long it is to the next; any is false
// when nothing is open.
func (k *Keeper) sweep(ctx context.Context) (wait time.Duration, any bool) {
	later := func(d time.Duration) {
		if d = max(d, 0); !any || d < wait {
			wait, any = d, true
		}
	}
	for r := range k.settings().All(setting.BreakGlass) {
		o, err := read(r)
		if err == nil {
			if left := time.Until(o.Until); left > 0 {
				later(left)
				continue
			}
		}
		if err := k.remove(ctx, r.Namespace, r.Revision); err != nil {
			later(retry)
			if ctx.Err() == nil {
				k.logger.Warn("the end of break-glass could not be written yet; decisions keep to it all the same", "namespace", r.Namespace, "error", err)
			}
			continue
		}
		k.logger.Warn("break-glass has ended", "namespace", r.Namespace)
	}
	return wait, any
}
