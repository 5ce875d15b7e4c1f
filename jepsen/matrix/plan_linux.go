package matrix

import (
	"fmt"
	"hash/fnv"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/muster-registry/muster/jepsen/nemesis"
	"github.com/muster-registry/muster/jepsen/workload"
)

// Size says how much of the matrix is run.
type Size string

// The sizes.
const (
	Few   Size = "few"   // in every run of the tests
	Short Size = "short" // make jepsen
	Full  Size = "full"  // make jepsen-full
)

// Plan is the cells of a run.
type Plan struct {
	Length time.Duration
	Cells  []Cell
}

// plans name the cells of the smaller sizes with their nodes. The full one is
// all there are, on five.
var plans = map[Size]map[string]int{
	Few: {"register/isolated-leader": 3, "set/kill-all": 3, "decide/ring": 5, "revoke/minority": 3, "restore/kill-leader": 3},
	Short: {
		"register/one-way-in": 5, "register/flapping": 3, "register/delay": 3, "register/add-member": 3, "register/flip-log": 3,
		"set/behind": 3, "set/kill-leader": 5, "set/disk-full": 3, "set/power-cut-all": 3, "watch/kill-one": 3, "lease/pause-leader": 3,
		"decide/ring": 5, "decide/clock-leader": 3, "revoke/minority": 5, "revoke/clocks": 3, "lease/clocks": 5, "register/clock-leader": 3, "break-glass/clocks": 3, "session/bridge": 5, "restore/kill-all": 3, "quota/isolated-leader": 3,
	},
}

// Choose gives the cells of a size that match, all of the matrix where patterns
// are given. Nodes and seed replace those of the plan unless they are 0.
func Choose(size Size, patterns string, nodes int, seed uint64) (*Plan, error) {
	p := &Plan{Length: map[Size]time.Duration{Few: 6 * time.Second, Short: 8 * time.Second, Full: 45 * time.Second}[size]}
	if p.Length == 0 {
		return nil, fmt.Errorf("no matrix is called %q: few, short or full", size)
	}
	workloads := workload.All()
	for turn := range workloads {
		// Each turn has each fault once: what is cut short has a bit of all.
		for i, f := range nemesis.All() {
			w := workloads[(turn+i)%len(workloads)]
			c := Cell{Workload: w.Name, Fault: f.Name, Nodes: 5}
			chosen := plans[size][c.Name()]
			if chosen > 0 {
				c.Nodes = chosen
			}
			switch {
			case patterns != "":
				if !slices.ContainsFunc(strings.Split(patterns, ","), func(pattern string) bool {
					ok, err := path.Match(strings.TrimSpace(pattern), c.Name())
					return ok && err == nil
				}) {
					continue
				}
			case size != Full && chosen == 0:
				continue
			}
			if nodes > 0 {
				c.Nodes = nodes
			}
			h := fnv.New32a()
			_, _ = h.Write([]byte(c.Name())) // never fails
			if c.Seed = uint64(h.Sum32()); seed > 0 {
				c.Seed = seed
			}
			p.Cells = append(p.Cells, c)
		}
	}
	if len(p.Cells) == 0 {
		return nil, fmt.Errorf("no cell matches %q", patterns)
	}
	return p, nil
}

// Missing says why a cell cannot run here, nil where it can.
func Missing(c Cell) error {
	for _, f := range nemesis.All() {
		if f.Name == c.Fault && f.Missing != nil {
			return f.Missing()
		}
	}
	return nil
}
