package nemesis

import (
	"context"
	"os"
	"time"
)

// nextEnv names another muster, to which nodes are changed and back.
const nextEnv = "MUSTER_BIN_NEXT"

// rolling stops one node after the other with SIGTERM and starts it again, as
// the other program where there is one: an upgrade, and the next time the way back.
var rolling = Fault{Name: "rolling", Hold: short, Strike: func(ctx context.Context, s *Scene) (End, error) {
	next, what := os.Getenv(nextEnv), "each node stopped and started"
	for _, n := range s.Nodes {
		if next != "" && s.Round%2 == 0 {
			n.Use(next)
			what = "each node upgraded to " + nextEnv
		} else if next != "" {
			n.Use(s.Binary())
			what = "each node taken back from " + nextEnv
		}
		s.History.Mark(n.ID, "SIGTERM")
		if err := n.Terminate(s.Slack * 15 * time.Second); err != nil {
			return nil, err
		}
		if err := s.start(ctx, n); err != nil {
			return nil, err
		}
	}
	return func(context.Context) (string, error) { return what, nil }, nil
}}
