package workload

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/jepsen"
)

// watch follows a service's changes as server-sent events, one follower for
// each node: when a stream breaks it goes on at the next node, from the last
// event. In the end each was told of each acknowledged change, once and in order.
type watch struct {
	set
	end       context.CancelFunc
	following sync.WaitGroup
	followers []*follower
}

// follower is one that watches, and what it was told.
type follower struct {
	number int

	mu       sync.Mutex        // guards what follows
	told     map[string]uint64 // revisions by id
	newest   uint64
	anew     int // it had missed too much, and read the whole
	streams  int
	mistakes fewMistakes
}

func (w *watch) Begin(ctx context.Context, s *Stage) error {
	if err := w.set.Begin(ctx, s); err != nil {
		return err
	}
	a, err := s.must(ctx, http.MethodPut, "/v1/namespaces/"+namespace+"/services/"+w.Service, `{}`)
	if err != nil {
		return err
	}
	following, end := context.WithCancel(context.WithoutCancel(ctx))
	w.end = end
	for i := range s.Nodes {
		f := &follower{number: i, told: map[string]uint64{}, newest: a.Revision()}
		w.followers = append(w.followers, f)
		w.following.Go(func() { f.run(following, s, w) })
	}
	return nil
}

func (f *follower) run(ctx context.Context, s *Stage, w *watch) {
	for at := f.number; ctx.Err() == nil; at++ {
		n := s.Nodes[at%len(s.Nodes)]
		f.mu.Lock()
		last := f.newest
		f.mu.Unlock()
		f.stream(ctx, n, w, last)
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// silence is how long a stream may say nothing before it is taken for dead: a
// cable that was cut says nothing for ever.
const silence = 3 * time.Second

func (f *follower) stream(ctx context.Context, n *jepsen.Node, w *watch, last uint64) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	quiet := time.AfterFunc(silence, cancel)
	defer quiet.Stop()
	body, status, err := n.Stream(ctx, "/v1/watch?namespace="+namespace+"&service="+w.Service, "Last-Event-ID", fmt.Sprint(last))
	if err != nil {
		return
	}
	defer body.Close()
	if status == http.StatusGone {
		f.again(ctx, n, w)
		return
	}
	if status != http.StatusOK {
		return
	}
	f.mu.Lock()
	f.streams++
	f.mu.Unlock()
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, 1<<20)
	event := ""
	for lines.Scan() {
		quiet.Reset(silence)
		switch name, value, _ := strings.Cut(lines.Text(), ": "); name {
		case "event":
			event = value
		case "data":
			if f.hear(n, event, value) == anew {
				f.again(ctx, n, w)
				return
			}
		}
	}
}

type heard int

const (
	known heard = iota
	anew        // the stream says to read the whole again
)

// hear takes one event in.
func (f *follower) hear(n *jepsen.Node, event, data string) heard {
	if event == "reset" {
		return anew
	}
	if event != "put" && event != "delete" { // an error: go on elsewhere
		return known
	}
	var e struct {
		Kind     string `json:"kind"`
		ID       string `json:"id"`
		Revision uint64 `json:"revision"`
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := json.Unmarshal([]byte(data), &e); err != nil {
		return known // cut off in the middle
	}
	if e.Kind != "instance" {
		return known
	}
	if _, twice := f.told[e.ID]; twice || e.Revision <= f.newest {
		f.mistakes.add("follower %d was told by %s of %s, revision %d, after %d: twice, or out of order", f.number, n.ID, e.ID, e.Revision, f.newest)
	}
	f.told[e.ID], f.newest = e.Revision, e.Revision
	return known
}

// again reads the whole, as a watcher must who has missed too much.
func (f *follower) again(ctx context.Context, n *jepsen.Node, w *watch) {
	a := n.Call(ctx, http.MethodGet, "/v1/namespaces/"+namespace+"/services?consistency=linearizable&limit=1", nil)
	if a.Outcome != jepsen.OK {
		return
	}
	found, err := w.Members(ctx, n.Client, "linearizable")
	if err != nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.anew++
	f.told, f.newest = map[string]uint64{}, a.Revision()
	for id, revision := range found {
		if revision <= a.Revision() { // what came later is told of
			f.told[id] = revision
		}
	}
}

func (w *watch) Check(ctx context.Context, s *Stage) (string, error) {
	defer w.following.Wait()
	defer w.end()
	seen, err := w.set.Check(ctx, s)
	if err != nil {
		return "", err
	}
	ops := s.History.Ops(func(op *jepsen.Op) bool { return op.Kind == jepsen.Write })
	// Some may still be on their way to a follower.
	s.History.Mark("", "looking at what the followers were told")
	err = settled(ctx, s, 30*time.Second, func() error {
		for _, f := range w.followers {
			f.mu.Lock()
			_, err := jepsen.CheckSet(ops, f.told)
			f.mu.Unlock()
			if err != nil {
				s.History.Mark("", fmt.Sprintf("what follower %d was told: %v", f.number, err))
				return fmt.Errorf("what follower %d was told: %w", f.number, err)
			}
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	streams, fresh := 0, 0
	for _, f := range w.followers {
		f.mu.Lock()
		streams += f.streams
		fresh += f.anew
		err := f.mistakes.err()
		f.mu.Unlock()
		if err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%s; %d followers were told of each once over %d streams, and read the whole again %d times", seen, len(w.followers), streams, fresh), nil
}
