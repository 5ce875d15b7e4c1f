package workload

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/muster-registry/muster/jepsen"
)

// Patience bounds a request: longer than anything a node may take to refuse.
const Patience = 5 * time.Second

const namespace = "jepsen"

// Stage is what a workload acts on.
type Stage struct {
	*jepsen.Cluster
	History *jepsen.History
	Slack   time.Duration // multiplies every wait, and what is promised of time
	Folder  string        // for pages that show what is wrong
	Begun   time.Time     // when the callers began
	// Fresh tells that the faults leave nodes with new disks.
	Fresh bool
}

// Caller is one of those that call; it has no other to share with.
type Caller struct {
	Number int
	Node   *jepsen.Node // that it belongs to; it may call others
	Rand   *rand.Rand
	Count  int // of steps done
}

// Workload is what callers do, and what must hold of it.
type Workload interface {
	// Config is merged into the nodes' configuration, by top-level key.
	Config() map[string]any
	// Begin prepares a whole cluster.
	Begin(ctx context.Context, s *Stage) error
	// Step is one step of a caller, which records what it was told; it says
	// how long to pause. Called by many goroutines, for one caller by one.
	Step(ctx context.Context, s *Stage, c *Caller) time.Duration
	// Check judges, once all callers and faults have ended and all nodes agree.
	// It says what was seen in half a line; an error is a violation.
	Check(ctx context.Context, s *Stage) (seen string, err error)
}

// Kind makes a workload anew for each cell.
type Kind struct {
	Name    string
	PerNode int // callers
	Make    func() Workload
	// Least successful operations a second and node; fewer show nothing.
	Least float64
}

// All are the workloads there are, in the order of the tables.
func All() []Kind {
	return []Kind{
		{Name: "register", PerNode: 2, Make: func() Workload { return &register{} }, Least: 2},
		{Name: "set", PerNode: 2, Make: func() Workload { return &set{} }, Least: 2},
		{Name: "watch", PerNode: 2, Make: func() Workload { return &watch{} }, Least: 2},
		{Name: "lease", PerNode: 2, Make: func() Workload { return &lease{} }, Least: 2},
		{Name: "decide", PerNode: 3, Make: func() Workload { return &decide{} }, Least: 2},
		{Name: "break-glass", PerNode: 2, Make: func() Workload { return &breakGlass{} }, Least: 2},
		{Name: "revoke", PerNode: 2, Make: func() Workload { return &revoke{} }, Least: 2},
		{Name: "session", PerNode: 3, Make: func() Workload { return &session{} }, Least: 2},
		{Name: "restore", PerNode: 2, Make: func() Workload { return &restore{} }, Least: 1},
		{Name: "quota", PerNode: 2, Make: func() Workload { return &quota{} }, Least: 2},
	}
}

// settled waits for what must become true within the time.
func settled(ctx context.Context, s *Stage, within time.Duration, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, s.Slack*within)
	defer cancel()
	return jepsen.Until(ctx, try)
}

// must makes a change on any node until it is done.
func (s *Stage) must(ctx context.Context, method, path, body string, header ...string) (a *jepsen.Answer, err error) {
	i := 0
	err = settled(ctx, s, 30*time.Second, func() error {
		n := s.Nodes[i%len(s.Nodes)]
		i++
		var content []byte
		if body != "" {
			content = []byte(body)
		}
		call, cancel := context.WithTimeout(ctx, Patience)
		defer cancel()
		if a = n.Call(call, method, path, content, header...); a.Outcome != jepsen.OK {
			return fmt.Errorf("%s %s at %s: %s %.300s", method, path, n.ID, a, a.Body)
		}
		return nil
	})
	return a, err
}

// fewMistakes keeps the first ten of what may be thousands of the same.
type fewMistakes struct {
	first []error
	more  int
}

func (m *fewMistakes) err() error {
	if m.more > 0 {
		return errors.Join(append(m.first, fmt.Errorf("and %d more", m.more))...)
	}
	return errors.Join(m.first...)
}

func (m *fewMistakes) add(format string, args ...any) {
	if len(m.first) < 10 {
		m.first = append(m.first, fmt.Errorf(format, args...))
		return
	}
	m.more++
}

// between is so long, by chance.
func (c *Caller) between(least, most time.Duration) time.Duration {
	return least + time.Duration(c.Rand.Int64N(int64(most-least)+1))
}

// any is a node by chance.
func (c *Caller) any(s *Stage) *jepsen.Node { return s.Nodes[c.Rand.IntN(len(s.Nodes))] }
