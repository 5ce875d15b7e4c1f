package breakglass

import (
	"context"
	"log/slog"
	"time"

	"github.com/muster-registry/muster/setting"
)

const (
	// retry is how long the keeper waits after a removal that failed.
	retry = time.Second
	// look is how often it looks at the time of day while something is open:
	// clocks are set.
	look = time.Second
)

// Keeper ends openings: it has them removed when their time is over, by the
// clock of the node that leads. With the removal they end on every node at one
// position in the sequence of changes.
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
			due = time.After(min(wait, look))
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
		o := new(Opening)
		if r.Decode(o) == nil {
			if left := time.Until(o.Until); left > 0 {
				later(left)
				continue
			}
		}
		if err := k.remove(ctx, r.Namespace, r.Revision); err != nil {
			later(retry)
			if ctx.Err() == nil {
				k.logger.Warn("the end of break-glass could not be written yet; each node goes by its own clock after "+Grace.String(), "namespace", r.Namespace, "error", err)
			}
			continue
		}
		k.logger.Warn("break-glass has ended", "namespace", r.Namespace)
	}
	return wait, any
}
