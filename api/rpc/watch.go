package rpc

import (
	"context"
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/api/rpc/musterv1"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/feed"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
)

// maxWatches bounds how many watches one stream may hold.
const maxWatches = 10_000

// watches are those of one stream.
type watches struct {
	*Server
	stream grpc.BidiStreamingServer[musterv1.WatchRequest, musterv1.WatchResponse]
	ctx    context.Context // ends when one of the watches cannot send any more, too
	stop   context.CancelCauseFunc
	first  *Call

	mu      sync.Mutex // guards running
	running map[uint64]context.CancelFunc
	done    sync.WaitGroup

	sending sync.Mutex // guards the sending side of stream
}

// Watch implements musterv1.RegistryServer.
func (s service) Watch(stream grpc.BidiStreamingServer[musterv1.WatchRequest, musterv1.WatchResponse]) error {
	w := &watches{Server: s.Server, stream: stream, first: CallOf(stream.Context()), running: map[uint64]context.CancelFunc{}}
	w.ctx, w.stop = context.WithCancelCause(stream.Context())
	defer w.done.Wait()
	defer w.stop(nil)
	requests := make(chan *musterv1.WatchRequest)
	failed := make(chan error, 1)
	go func() {
		for {
			req, err := stream.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case requests <- req:
			case <-w.ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case req := <-requests:
			if err := w.take(req); err != nil {
				return err
			}
		case err := <-failed:
			return ended(err)
		case <-w.ctx.Done():
			return context.Cause(w.ctx)
		}
	}
}

// ended is how a stream ends that its caller has closed.
func ended(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func (w *watches) take(req *musterv1.WatchRequest) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch r := req.Request.(type) {
	case *musterv1.WatchRequest_Cancel:
		if cancel, ok := w.running[r.Cancel]; ok {
			cancel()
		}
		return nil
	case *musterv1.WatchRequest_Begin_:
		b := r.Begin
		if _, ok := w.running[b.Watch]; ok {
			return fault.New(fault.BadRequest, "the watch %d is there already on this stream; give each a number of its own", b.Watch)
		}
		if len(w.running) >= maxWatches {
			return fault.New(fault.RateLimited, "one stream holds at most %d watches; open another", maxWatches)
		}
		ctx, cancel := context.WithCancel(w.ctx)
		w.running[b.Watch] = cancel
		w.done.Go(func() { w.run(ctx, b) })
		return nil
	}
	return fault.New(fault.BadRequest, "send begin or cancel")
}

// run follows one scope until it ends, and says why it did.
func (w *watches) run(ctx context.Context, b *musterv1.WatchRequest_Begin) {
	err := w.guarded(ctx, b)
	w.mu.Lock()
	w.running[b.Watch]()
	delete(w.running, b.Watch)
	w.mu.Unlock()
	if w.ctx.Err() != nil {
		return
	}
	f := fault.From(known(err))
	_ = w.send(&musterv1.WatchResponse{Watch: b.Watch, Ended: Problem(f, w.first.ID)}) // the caller may have gone
}

// guarded is follow where a panic ends the watch and not the node.
func (w *watches) guarded(ctx context.Context, b *musterv1.WatchRequest_Begin) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = w.opt.panicked(p)
		}
	}()
	return w.follow(ctx, b)
}

func (w *watches) follow(ctx context.Context, b *musterv1.WatchRequest_Begin) error {
	c := &Call{server: w.Server, ctx: ctx, method: w.first.method, header: w.first.header}
	c.Begin(w.door, c, w.first.ID)
	defer c.Leave()
	if err := c.Arrive(c.remote()); err != nil {
		return err
	}
	if b.Namespace != "" || b.Service != "" {
		if err := scope(b); err != nil {
			return err
		}
	}
	c.Like("GET", "/v1/watch")
	if err := c.Admit(policy.Watch, registry.KindService, b.Namespace); err != nil {
		w.refuse(c, err)
		return err
	}
	err := c.Follow(feed.Scope{Namespace: b.Namespace, Service: b.Service}, b.After, func(t door.Told) error {
		res := &musterv1.WatchResponse{Watch: b.Watch, Revision: t.Revision, Progress: t.Progress, Begun: t.Begun}
		for _, i := range t.Items {
			res.Events = append(res.Events, &musterv1.Event{Type: i.Type, Kind: i.Kind, Namespace: i.Namespace, Service: i.Service, Id: i.ID,
				Revision: i.Revision, Record: i.Record})
		}
		return w.send(res)
	})
	w.refuse(c, err)
	return err
}

func scope(b *musterv1.WatchRequest_Begin) error {
	if b.Service == "" {
		return names(&b.Namespace)
	}
	return names(&b.Namespace, "/service", b.Service)
}

// refuse puts on record that the caller may not watch, or not any more.
func (w *watches) refuse(c *Call, err error) {
	switch f := fault.From(known(err)); f.Code.Status() {
	case 401, 403, 429:
		c.Refuse(operation(c.method), f)
	}
}

// send gives the caller one response. Where that fails the whole stream ends.
func (w *watches) send(res *musterv1.WatchResponse) error {
	w.sending.Lock()
	defer w.sending.Unlock()
	err := w.stream.Send(res)
	if err != nil {
		w.stop(err)
	}
	return err
}
