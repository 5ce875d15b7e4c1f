package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// auditSink takes the lines of a mirrored trail. It answers when it has a body
// in memory, and looks into it when nobody measures: to unpack and read lines is
// the receiver's work, and would be taken from the processor that is measured.
type auditSink struct {
	mu     sync.Mutex // guards all below
	bodies []posted   // that were not looked at
	bytes  int64      // of all bodies
	nodes  map[string]*sunk
	failed error
}

type posted struct {
	body []byte
	zip  bool
}

// sunk is what came of one node's trail.
type sunk struct {
	last    uint64 // number of its last line
	lines   uint64
	lookups int
}

// sunkLine is what is read of a line.
type sunkLine struct {
	Seq  uint64 `json:"seq"`
	Node string `json:"node"`
	Type string `json:"type"`
}

// ServeHTTP takes a body over.
func (s *auditSink) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body := bytes.NewBuffer(make([]byte, 0, max(0, r.ContentLength)+bytes.MinRead))
	if _, err := body.ReadFrom(r.Body); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bytes += int64(body.Len())
	s.bodies = append(s.bodies, posted{body.Bytes(), r.Header.Get("Content-Encoding") == "gzip"})
}

// check reads what came. The error says that a line is missing between two
// others, or that something came that is no line.
func (s *auditSink) check() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.bodies {
		if s.failed == nil {
			s.failed = s.read(b)
		}
	}
	s.bodies = nil
	return s.failed
}

func (s *auditSink) read(p posted) error {
	in := io.Reader(bytes.NewReader(p.body))
	if p.zip {
		var err error
		if in, err = gzip.NewReader(in); err != nil {
			return err
		}
	}
	var lines []sunkLine
	if err := json.NewDecoder(in).Decode(&lines); err != nil {
		return err
	}
	for _, l := range lines {
		n := s.nodes[l.Node]
		switch {
		case l.Seq == 0 || l.Node == "":
			return errors.New("the sink got what is no line of a trail")
		case n == nil:
			n = new(sunk)
			s.nodes[l.Node] = n
		case l.Seq <= n.last: // again
			continue
		case l.Seq != n.last+1:
			return fmt.Errorf("the sink got line %d of node %s after its line %d", l.Seq, l.Node, n.last)
		}
		n.lines++
		if n.last = l.Seq; l.Type == "lookup" {
			n.lookups++
		}
	}
	return nil
}

// whole waits until a line has come for each of that many look-ups, ends the
// nodes, and holds what came to the last lines of their trails.
func (s *auditSink) whole(ctx context.Context, m *muster, lookups int) (lines uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		if err := s.check(); err != nil {
			return 0, err
		}
		missing := lookups
		for _, n := range s.nodes {
			missing -= n.lookups
		}
		if missing <= 0 {
			break
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("the sink got %d lines of look-ups too few", missing)
		case <-time.After(100 * time.Millisecond):
		}
	}
	m.stop()
	if err := s.check(); err != nil {
		return 0, err
	}
	for _, node := range m.cluster.Nodes {
		last, err := lastLine(filepath.Join(m.dir, node.ID, "audit.log"))
		if err != nil {
			return 0, err
		}
		n := s.nodes[node.ID]
		if n == nil || n.last != last {
			return 0, fmt.Errorf("the trail of node %s ends with line %d, and the sink did not get as far: %+v", node.ID, last, n)
		}
		lines += n.lines
	}
	return lines, nil
}

// lastLine is the number of the last line of a trail.
func lastLine(path string) (seq uint64, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	b = bytes.TrimSuffix(b, []byte("\n"))
	var l sunkLine
	err = json.Unmarshal(b[bytes.LastIndexByte(b, '\n')+1:], &l)
	return l.Seq, err
}
