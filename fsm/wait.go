package fsm

import (
	"container/heap"
	"context"
	"sync"

	"github.com/muster-registry/muster/registry"
)

// What a waiter waits for.
const (
	byRevision = iota
	byIndex
)

type waiter struct {
	at   uint64
	done chan struct{}
	pos  int // in its heap, -1 when popped
}

type waitHeap []*waiter

func (h waitHeap) Len() int           { return len(h) }
func (h waitHeap) Less(i, j int) bool { return h[i].at < h[j].at }
func (h waitHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i]; h[i].pos, h[j].pos = i, j }
func (h *waitHeap) Push(x any)        { w := x.(*waiter); w.pos = len(*h); *h = append(*h, w) }
func (h *waitHeap) Pop() any {
	old := *h
	w := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	w.pos = -1
	return w
}

// waitList wakes each waiter once, when its number is reached, and nobody else.
type waitList struct {
	mu    sync.Mutex // guards heaps
	heaps [2]waitHeap
}

func (l *waitList) wait(ctx context.Context, by int, at uint64, current func() uint64) error {
	if current() >= at {
		return nil
	}
	w := &waiter{at: at, done: make(chan struct{})}
	l.mu.Lock()
	heap.Push(&l.heaps[by], w)
	l.mu.Unlock()
	// The number may have been reached between the first look and the push;
	// wake runs after the view is stored, so one more look closes the gap.
	if current() < at {
		select {
		case <-w.done:
			return nil
		case <-ctx.Done():
		}
	}
	l.mu.Lock()
	if w.pos >= 0 {
		heap.Remove(&l.heaps[by], w.pos)
	}
	l.mu.Unlock()
	if current() >= at {
		return nil
	}
	return ctx.Err()
}

func (l *waitList) wake(revision, index uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for by, reached := range [2]uint64{byRevision: revision, byIndex: index} {
		for h := &l.heaps[by]; h.Len() > 0 && (*h)[0].at <= reached; {
			close(heap.Pop(h).(*waiter).done)
		}
	}
}

// watch is the channel of one watched service and how many hold it.
type watch struct {
	changed chan struct{}
	holders int
}

// watchMap holds one channel per watched service, whether it exists or not,
// for as long as somebody watches it.
type watchMap struct {
	mu      sync.Mutex // guards watches
	watches map[string]*watch
}

func (m *watchMap) init() { m.watches = map[string]*watch{} }

func (m *watchMap) hold(key string) (<-chan struct{}, func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w, ok := m.watches[key]
	if !ok {
		w = &watch{changed: make(chan struct{})}
		m.watches[key] = w
	}
	w.holders++
	return w.changed, sync.OnceFunc(func() { m.release(key, w) })
}

func (m *watchMap) release(key string, w *watch) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w.holders--
	// A woken watch has left the map; another may have taken its key since.
	if w.holders == 0 && m.watches[key] == w {
		delete(m.watches, key)
	}
}

func (m *watchMap) wake(touched []registry.Key) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.watches) == 0 {
		return
	}
	for _, k := range touched {
		key := k.Namespace + "/" + k.Service
		if w, ok := m.watches[key]; ok {
			close(w.changed)
			delete(m.watches, key)
		}
	}
}

func (m *watchMap) wakeAll() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, w := range m.watches {
		close(w.changed)
	}
	clear(m.watches)
}
