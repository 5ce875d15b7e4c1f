package main

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/term"
)

// screen draws a table in place on a terminal, and marks what has changed.
type screen struct {
	file    *os.File
	colour  bool
	title   string
	table   table
	marks   map[string]mark // by the row's name
	problem string
	first   bool // nothing was shown yet
	lines   int  // that were drawn last
}

// mark says what became of a row, and when.
type mark struct {
	text string
	at   time.Time
	gone []string // the row as it was last; nil: it is there
}

func newScreen(f *os.File, colour bool) *screen {
	return &screen{file: f, colour: colour, marks: map[string]mark{}, first: true}
}

// show takes a newer table, and marks how it differs.
func (s *screen) show(title string, t table, now time.Time) {
	old := map[string][]string{}
	for i, n := range s.table.names {
		old[n] = s.table.rows[i]
	}
	for i, n := range t.names {
		was, known := old[n]
		delete(old, n)
		switch {
		case s.first:
		case !known:
			s.marks[n] = mark{text: "new", at: now}
		case !slices.Equal(was, t.rows[i]):
			s.marks[n] = mark{text: differs(t.head, was, t.rows[i]), at: now}
		}
	}
	for n, row := range old {
		s.marks[n] = mark{text: "gone", at: now, gone: row}
	}
	if len(t.head) == 0 {
		t.head = s.table.head
	}
	s.title, s.table, s.first = title, t, false
}

// differs names the last cell that is another, and what it was.
func differs(head, was, is []string) string {
	text := ""
	for i := range min(len(was), len(is)) {
		if was[i] != is[i] && head[i] != "REVISION" {
			text = strings.ToLower(head[i]) + " was " + was[i]
		}
	}
	if text == "" {
		return "changed"
	}
	return text
}

// fade takes marks away that are old enough, and says whether there were any.
func (s *screen) fade(now time.Time) (any bool) {
	for n, m := range s.marks {
		if now.Sub(m.at) > markFor {
			delete(s.marks, n)
			any = true
		}
	}
	return any
}

// text is what is to be seen: a title, and no more rows than the height has room
// for.
func (s *screen) text(now time.Time, width, height int) []string {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, strings.Join(append(slices.Clone(s.table.head), "CHANGE"), "\t"))
	type line struct {
		name  string
		cells []string
	}
	var all []line
	for i, n := range s.table.names {
		all = append(all, line{n, s.table.rows[i]})
	}
	for n, m := range s.marks {
		if m.gone != nil {
			all = append(all, line{n, m.gone})
		}
	}
	slices.SortFunc(all, func(a, b line) int { return strings.Compare(a.name, b.name) })
	marked := map[int]bool{}
	for i, l := range all {
		m := s.marks[l.name]
		marked[i+1] = m.text != ""
		fmt.Fprintln(w, strings.Join(clean(l.cells), "\t")+"\t"+clean([]string{m.text + " "})[0])
	}
	_ = w.Flush() // into memory
	out := []string{cut(s.title+"   "+now.Format(time.TimeOnly), width)}
	if s.problem != "" {
		out = append(out, cut("not up to date: "+clean([]string{s.problem})[0], width))
	}
	rows := strings.Split(strings.TrimRight(b.String(), "\n"), "\n")
	room := max(1, height-len(out)-2)
	for i, r := range rows {
		if i > room {
			return append(out, cut(fmt.Sprintf("… and %d more", len(rows)-i), width))
		}
		if r = cut(strings.TrimRight(r, " "), width); marked[i] && s.colour {
			r = "\x1b[1m" + r + "\x1b[0m"
		}
		out = append(out, r)
	}
	return out
}

// draw writes over what was drawn last.
func (s *screen) draw(now time.Time) {
	width, height, err := term.GetSize(int(s.file.Fd()))
	if err != nil || width <= 0 || height <= 0 {
		width, height = 80, 24
	}
	lines := s.text(now, width, height)
	var b bytes.Buffer
	if s.lines > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", s.lines)
	}
	b.WriteString("\r\x1b[J")
	for _, l := range lines {
		b.WriteString(l + "\r\n")
	}
	s.lines = len(lines)
	_, _ = s.file.Write(b.Bytes()) // the terminal has gone; so will the process
}

// cut keeps a line from wrapping, which would put the next drawing in the wrong
// place.
func cut(line string, width int) string {
	if r := []rune(line); len(r) >= width {
		return string(r[:max(0, width-1)])
	}
	return line
}
