package admit

import (
	"context"
	"sync"
)

// keyLock gives each record one writer at a time on the leader: concurrent
// writers of one record queue here instead of overtaking each other between
// decision and Apply.
type keyLock struct {
	mu   sync.Mutex // guards held
	held map[string]*keyHolder
}

type keyHolder struct {
	turn    chan struct{} // holds one token while the key is free
	waiters int
}

func (l *keyLock) lock(ctx context.Context, key string) (release func(), err error) {
	if key == "" {
		return func() {}, nil
	}
	l.mu.Lock()
	h, ok := l.held[key]
	if !ok {
		h = &keyHolder{turn: make(chan struct{}, 1)}
		h.turn <- struct{}{}
		l.held[key] = h
	}
	h.waiters++
	l.mu.Unlock()
	done := func() {
		l.mu.Lock()
		if h.waiters--; h.waiters == 0 {
			delete(l.held, key)
		}
		l.mu.Unlock()
	}
	select {
	case <-h.turn:
		return func() { h.turn <- struct{}{}; done() }, nil
	case <-ctx.Done():
		done()
		return nil, ctx.Err()
	}
}
