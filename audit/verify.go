package audit

import (
	"fmt"
	"slices"
)

// Report is what a check of a trail found.
type Report struct {
	Lines uint64   `json:"lines"`
	First uint64   `json:"first"` // number of the first line
	Head  Head     `json:"head"`
	Notes []string `json:"notes"` // what is no fault of the chain, and good to know

	Faults []string `json:"faults,omitzero"` // all of them; see [Check]
}

// Check says how a trail is verified.
type Check struct {
	All bool // go on behind a fault, and list each in Faults

	// Heads are what the cluster knows of trails, by node; nil: only the files
	// are looked at.
	Heads map[string]Head
}

// Verify checks the files of one trail, in any order: each line is what it was
// when it was written, and none is missing between the first and the last. The
// error names the first that is not so. It cannot see that lines were cut off
// at the end: compare the head with what the node says.
func Verify(files ...string) (*Report, error) { return Check{}.Verify(files...) }

// Verify is as the function, with more than one fault where All says so: the
// error counts them then.
func (c Check) Verify(files ...string) (*Report, error) {
	files, err := ordered(files)
	if err != nil {
		return new(Report), err
	}
	v := verifier{Check: c, Report: Report{Notes: []string{}, Head: Head{Hash: zero}}}
	for i, file := range files {
		number, final := 0, i == len(files)-1
		if err := lines(file, func(line []byte, finished bool) error {
			number++
			if !finished && final {
				v.note("%s:%d: the last line is not finished: it is being written, or the node was killed", file, number)
				return nil
			}
			if err := v.line(line, file, number); err != nil {
				return v.fault(fmt.Errorf("%s:%d: %w", file, number, err))
			}
			return nil
		}); err != nil {
			return &v.Report, err
		}
	}
	if v.Lines == 0 {
		return &v.Report, fmt.Errorf("there is no line of a trail")
	}
	if err := v.known(); err != nil {
		if err := v.fault(err); err != nil {
			return &v.Report, err
		}
	}
	if n := len(v.Faults); n > 0 {
		return &v.Report, fmt.Errorf("the trail has %d faults; the first: %s", n, v.Faults[0])
	}
	return &v.Report, nil
}

// fault keeps a fault, or ends the check with it.
func (v *verifier) fault(err error) error {
	if !v.All {
		return err
	}
	const most = 1000
	if len(v.Faults) < most {
		v.Faults = append(v.Faults, err.Error())
	}
	return nil
}

// ordered sorts files by their first lines.
func ordered(files []string) ([]string, error) {
	type first struct {
		file string
		seq  uint64
	}
	var all []first
	for _, f := range files {
		begins := first{file: f}
		if err := lines(f, func(line []byte, _ bool) error {
			if begins.seq == 0 {
				if l, _ := read(line); l != nil {
					begins.seq = l.Seq
				}
			}
			return nil
		}); err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		all = append(all, begins)
	}
	slices.SortStableFunc(all, func(a, b first) int {
		switch {
		case a.seq < b.seq:
			return -1
		case a.seq > b.seq:
			return 1
		}
		return 0
	})
	sorted := make([]string, len(all))
	for i, f := range all {
		sorted[i] = f.file
	}
	return sorted, nil
}

type verifier struct {
	Check
	Report
	node string // whose trail it is
	held bool   // the line that the cluster knows is there
}

// known compares the trail with what the cluster knows of it.
func (v *verifier) known() error {
	if v.Heads == nil || v.held {
		return nil
	}
	h, ok := v.Heads[v.node]
	switch {
	case !ok:
		return fmt.Errorf("the cluster knows no line of the trail of node %s: it was forgotten, or the node has not told it yet, which it does within a minute", v.node)
	case h.Seq > v.Head.Seq:
		return fmt.Errorf("the trail of node %s ends with line %d, and the cluster knows its line %d: the lines after %d were cut off, or their files were not given", v.node, v.Head.Seq, h.Seq, v.Head.Seq)
	case h.Seq < v.First:
		v.note("the cluster knows line %d of the trail of node %s, which comes before the files that were given", h.Seq, v.node)
		return nil
	}
	return fmt.Errorf("line %d of the trail of node %s, which the cluster knows, is not there", h.Seq, v.node)
}

func (v *verifier) note(format string, args ...any) {
	v.Notes = append(v.Notes, fmt.Sprintf(format, args...))
}

// line checks one. A line behind a fault is checked against the faulty one, as
// far as that can be read.
func (v *verifier) line(line []byte, file string, number int) error {
	l, err := read(line)
	if l == nil {
		return err
	}
	if err == nil {
		err = v.follows(l, file)
	}
	v.Lines++
	v.Head.after(&l.Entry, l.Hash)
	v.node = l.Node
	if h, ok := v.Heads[l.Node]; ok && h.Seq == l.Seq {
		if v.held = true; err == nil && h.Hash != l.Hash {
			return fmt.Errorf("line %d of the trail of node %s is not the one that the cluster knows: it was altered with all lines after it, or this is another trail", l.Seq, l.Node)
		}
		v.note("line %d is the one that the cluster knows of node %s", l.Seq, l.Node)
	}
	if err == nil && l.Type == Alarmed {
		v.note("%s:%d: at this start of the node: %s", file, number, l.Reason)
	}
	if err != nil || l.Type != Gap {
		return err
	}
	if l.Cause == Missing {
		return fmt.Errorf("at its start the node missed %s", gone(&l.Entry))
	}
	v.note("%s:%d: %s: %s", file, number, gone(&l.Entry), causes[l.Cause])
	return nil
}

// follows checks the place of a line.
func (v *verifier) follows(l *linked, file string) error {
	if v.Lines == 0 {
		v.First = l.Seq
		if l.Seq == 1 && l.Prev != zero {
			return fmt.Errorf("line 1 of the trail was altered: nothing can come before it")
		}
		if l.Seq != 1 {
			v.note("%s begins with line %d of the trail; the lines before it are in files that were not given", file, l.Seq)
		}
		return nil
	}
	next := v.Head.Seq + 1
	switch {
	case l.Seq > next && l.Seq-next == 1:
		return fmt.Errorf("line %d of the trail is missing before it", next)
	case l.Seq > next:
		return fmt.Errorf("lines %d to %d of the trail are missing before it", next, l.Seq-1)
	case l.Seq < next:
		return fmt.Errorf("it is line %d of the trail and follows line %d: the lines are not in their order, or stand there twice", l.Seq, v.Head.Seq)
	case l.Prev != v.Head.Hash:
		return fmt.Errorf("the line before it, %d of the trail, was replaced: it is not the one that this line was written after", v.Head.Seq)
	}
	return nil
}

var causes = map[string]string{
	New:      "they were made before this trail began",
	Snapshot: "the node took over the state of another; the trail of another node has them",
	Lost:     "the trail could not be written; the trail of another node has the changes",
}

func gone(e *Entry) string {
	switch {
	case e.To == 0:
		return fmt.Sprintf("%d lines of the trail", e.Lines)
	case e.Lines == 0:
		return fmt.Sprintf("the changes of revisions %d to %d", e.From, e.To)
	}
	return fmt.Sprintf("the changes of revisions %d to %d, and %d lines", e.From, e.To, e.Lines)
}
