package jepsen_test

import (
	"cmp"
	"context"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/muster-registry/muster/jepsen"
	"github.com/muster-registry/muster/jepsen/matrix"
)

// How the matrix is run; see the README.
var (
	size   = flag.String("matrix", "", "few, short or full: which cells; few without it")
	cells  = flag.String("cells", "", "only these, as workload/fault with * for any, separated by commas")
	nodes  = flag.Int("nodes", 0, "of each cell; 0: as the plan says")
	seed   = flag.Uint64("seed", 0, "of each cell; 0: as the plan says")
	length = flag.Duration("length", 0, "for which callers call in each cell; 0: as the plan says")
	out    = flag.String("out", "", "folder in which each cell leaves its own; those that are done there are not run again")
)

// TestMatrix runs cells of workloads and faults; each is a test of its own.
func TestMatrix(t *testing.T) {
	jepsen.NeedWorld(t)
	plan, err := matrix.Choose(matrix.Size(cmp.Or(*size, string(matrix.Few))), *cells, *nodes, *seed)
	if err != nil {
		t.Fatal(err)
	}
	if *length > 0 {
		plan.Length = *length
	}
	dir, err := filepath.Abs(cmp.Or(*out, jepsen.Folder(t)))
	if err != nil {
		t.Fatal(err)
	}
	done, err := matrix.Results(dir)
	if err != nil {
		t.Fatal(err)
	}
	o := matrix.Options{Binary: os.Getenv(jepsen.BinaryEnv), Dir: dir, Length: plan.Length, Slack: jepsen.Slack}
	begun, ran := time.Now(), 0
	for _, c := range plan.Cells {
		t.Run(c.String(), func(t *testing.T) {
			if r, ok := done[c.String()]; ok {
				t.Logf("done before: %s", r.Verdict())
				if r.Violation != "" {
					t.Fail()
				}
				return
			}
			if why := matrix.Missing(c); why != nil {
				jepsen.LeftOut(t, why)
			}
			ran++
			r, err := matrix.Run(context.WithoutCancel(t.Context()), c, o)
			if err != nil {
				t.Fatal(err)
			}
			t.Log(r.Verdict())
			if r.Violation != "" {
				t.Fail()
			}
		})
	}
	t.Logf("%d cells ran in %s", ran, time.Since(begun).Round(time.Second))
	if done, err = matrix.Results(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "table.md"), []byte(matrix.Table(done)), 0o600); err != nil {
		t.Fatal(err)
	}
	if *out != "" {
		t.Logf("the table is %s", filepath.Join(dir, "table.md"))
	}
}
