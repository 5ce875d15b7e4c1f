package xds

import (
	"context"
	"maps"
	"time"

	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/muster-registry/muster/feed"
	"github.com/muster-registry/muster/registry"
)

// gather is how long a stream that follows all services waits for further
// changes before it looks again which there are.
const gather = 100 * time.Millisecond

// follow begins to follow a service, which has no resources until sync. The
// caller holds mu.
func (s *stream) follow(key registry.Key) (*followed, error) {
	if f := s.followed[key]; f != nil {
		return f, nil
	}
	if len(s.followed) >= maxServices {
		return nil, errTooMany
	}
	ctx, cancel := context.WithCancel(s.ctx)
	f := &followed{cancel: cancel, named: map[target]bool{}, current: map[target]*serialised{}}
	s.followed[key] = f
	// The channel before the state, or a change in between would be missed.
	changed, release := s.call.Changed(feed.Scope{Namespace: key.Namespace, Service: key.Service})
	s.done.Go(func() {
		for {
			select {
			case <-changed:
				release()
			case <-ctx.Done():
				release()
				return
			}
			changed, release = s.call.Changed(feed.Scope{Namespace: key.Namespace, Service: key.Service})
			s.mu.Lock()
			err := ctx.Err()
			if err == nil {
				if err = s.guarded(func() error { return s.sync(key, f) }); err != nil {
					s.stop(err)
				}
			}
			s.mu.Unlock()
		}
	})
	return f, nil
}

// leave lets go of what the client wants no more of a service. The caller holds mu.
func (s *stream) leave(key registry.Key, f *followed) {
	_ = s.drop(key, f) // fails only where an answer cannot be marshalled
	if len(f.named) == 0 && s.all == nil {
		f.cancel()
		delete(s.followed, key)
	}
}

// followAll begins or ends following all services there are. The caller holds mu.
func (s *stream) followAll(all bool) error {
	if !all {
		s.all()
		s.all = nil
		for key, f := range maps.Clone(s.followed) {
			s.leave(key, f)
		}
		return nil
	}
	ctx, cancel := context.WithCancel(s.ctx)
	s.all = cancel
	changed, release := s.call.Changed(feed.Scope{})
	if err := s.list(); err != nil {
		release()
		return err
	}
	s.done.Go(func() {
		pause := time.NewTimer(0)
		defer pause.Stop()
		for {
			select {
			case <-changed:
				release()
			case <-ctx.Done():
				release()
				return
			}
			pause.Reset(gather)
			select {
			case <-pause.C:
			case <-ctx.Done():
				return
			}
			changed, release = s.call.Changed(feed.Scope{})
			s.mu.Lock()
			if ctx.Err() == nil {
				if err := s.guarded(s.list); err != nil {
					s.stop(err)
				}
			}
			s.mu.Unlock()
		}
	})
	return nil
}

// list follows the services that there are and are not followed yet, and
// leaves those that are gone. The caller holds mu.
func (s *stream) list() error {
	if err := s.renew(); err != nil {
		return err
	}
	there := map[registry.Key]bool{}
	services, _ := s.call.State.Registry.Services("", "", 0)
	for _, svc := range services {
		key := registry.Key{Namespace: svc.Namespace, Service: svc.Name}
		if !s.call.Role.Sees(key.Namespace) {
			continue
		}
		there[key] = true
		f, before := s.followed[key]
		var err error
		switch {
		case !before:
			if f, err = s.follow(key); err == nil {
				err = s.sync(key, f)
			}
		case f.edition != nil && f.current[target{url: resourcev3.ClusterType}] == nil:
			err = s.show(key, f)
		}
		if err != nil {
			return err
		}
	}
	for key, f := range maps.Clone(s.followed) {
		if there[key] || len(f.named) > 0 {
			continue
		}
		f.edition = nil
		_ = s.drop(key, f)
		f.cancel()
		delete(s.followed, key)
	}
	return nil
}
