package matrix

import (
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"os"
	"slices"
	"time"

	"github.com/muster-registry/muster/jepsen"
)

//go:embed timeline.html
var page string

var timeline = template.Must(template.New("timeline").Parse(page))

const (
	width  = 1600.0 // of the picture
	margin = 60.0
	lane   = 60.0 // height of a node's lane
	top    = 90.0
	bars   = 400 // of the time, in each of which a node's operations are one bar
)

type box struct {
	X, Y, W, H   float64
	Class, Title string
}

type label struct {
	X, Y float64
	Text string
}

// drawing is what the page shows.
type drawing struct {
	*Result
	Verdict       string
	Width, Height float64
	Boxes         []box
	Labels        []label
	Marks         []mark
}

type mark struct {
	Seconds string
	What    string
}

// drawer turns moments into places.
type drawer struct {
	drawing
	length float64 // ns
	row    map[string]float64
}

func (d *drawer) x(ns int64) float64 {
	return margin + (width-margin)*min(max(float64(ns)/d.length, 0), 1)
}

// writeTimeline draws operations, faults and the leader over time.
func writeTimeline(path string, res *Result, h *jepsen.History, events []jepsen.Event) error {
	ops := h.Ops(nil)
	d := &drawer{drawing: drawing{Result: res, Verdict: res.Verdict(), Width: width}, length: 1, row: map[string]float64{}}
	var nodes []string
	for _, op := range ops {
		d.length = max(d.length, float64(op.Return))
		if op.Node != "" && !slices.Contains(nodes, op.Node) {
			nodes = append(nodes, op.Node)
		}
	}
	slices.Sort(nodes)
	for i, n := range nodes {
		d.row[n] = top + float64(i)*lane
		d.Labels = append(d.Labels, label{8, d.row[n] + lane/2, n})
	}
	d.Height = top + float64(len(nodes))*lane + 30
	for s := 0.0; s <= d.length/1e9; s += max(1, float64(int(d.length/1e9/20))) {
		d.Labels = append(d.Labels, label{d.x(int64(s * 1e9)), d.Height - 8, fmt.Sprintf("%.0f s", s)})
	}
	d.leaders(h, events)
	d.operations(ops)
	d.faults(ops)
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(timeline.Execute(f, d.drawing), f.Close())
}

// leaders draws who led, from what the nodes logged.
func (d *drawer) leaders(h *jepsen.History, events []jepsen.Event) {
	for i, e := range events {
		row, drawn := d.row[e.Node]
		if e.What != jepsen.Led || !drawn {
			continue
		}
		to := int64(d.length)
		for _, later := range events[i+1:] {
			if later.Node == e.Node && (later.What == jepsen.Followed || later.What == jepsen.Began) {
				to = h.Since(later.At)
				break
			}
		}
		x := d.x(h.Since(e.At))
		d.Boxes = append(d.Boxes, box{x, row + 2, max(d.x(to)-x, 1), lane - 4, "leader", fmt.Sprintf("%s leads in term %d", e.Node, e.Term)})
	}
	for _, e := range events {
		if row, drawn := d.row[e.Node]; drawn && e.What == jepsen.Installed {
			d.Boxes = append(d.Boxes, box{d.x(h.Since(e.At)), row + 2, 3, lane - 4, "install", e.Node + " took over a Raft snapshot"})
		}
	}
}

// operations draws, for each node and slice of the time, a bar: how many
// succeeded, were refused and have no known outcome.
func (d *drawer) operations(ops []jepsen.Op) {
	type place struct {
		node string
		at   int
	}
	counts, most := map[place]*[3]int{}, 1
	for _, op := range ops {
		if op.Kind == jepsen.Fault || op.Node == "" {
			continue
		}
		p := place{op.Node, int(float64(op.Return) / d.length * (bars - 1))}
		if counts[p] == nil {
			counts[p] = new([3]int)
		}
		switch op.Outcome {
		case jepsen.OK:
			counts[p][0]++
		case jepsen.Failed:
			counts[p][1]++
		default:
			counts[p][2]++
		}
		most = max(most, counts[p][0]+counts[p][1]+counts[p][2])
	}
	for p, c := range counts {
		base := d.row[p.node] + lane - 4
		for i, class := range []string{"ok", "failed", "unknown"} {
			if c[i] == 0 {
				continue
			}
			height := max(1.5, float64(c[i])/float64(most)*(lane-10))
			base -= height
			d.Boxes = append(d.Boxes, box{margin + float64(p.at)*(width-margin)/bars, base, (width - margin) / bars, height, class,
				fmt.Sprintf("%s: %d ok, %d refused, %d unknown", p.node, c[0], c[1], c[2])})
		}
	}
}

// faults draws a line at each mark, from one to the next that ends it.
func (d *drawer) faults(ops []jepsen.Op) {
	level := 0
	for _, op := range ops {
		if op.Kind != jepsen.Fault {
			continue
		}
		what := op.Detail
		if op.Node != "" {
			what = op.Node + " " + what
		}
		d.Marks = append(d.Marks, mark{fmt.Sprintf("%.3f", time.Duration(op.Invoke).Seconds()), what})
		x, y, h := d.x(op.Invoke), top, d.Height-top-30
		if row, drawn := d.row[op.Node]; drawn {
			y, h = row, lane
		}
		d.Boxes = append(d.Boxes, box{x, y, 1.5, h, "fault", what})
		if len(what) > 24 {
			what = what[:24] + "…"
		}
		d.Labels = append(d.Labels, label{x, 20 + float64(level%6)*11, what})
		level++
	}
}
