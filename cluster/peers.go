package cluster

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/muster-registry/muster/cluster/wire"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

const (
	maxPayload  = 40 << 20 // one call or reply
	maxMessage  = 64 << 20 // one frame
	frameBytes  = 4 << 20  // a frame is closed at this size; a larger call goes alone
	window      = 8 << 20  // HTTP/2 flow control
	pingEvery   = 300 * time.Millisecond
	silentAfter = 1200 * time.Millisecond // a peer that owes an answer and says nothing for so long is gone
	metaCluster = "muster-cluster"
)

// peers holds this node's outgoing streams, one to each node it calls.
type peers struct {
	c  *Cluster
	mu sync.Mutex // guards what follows
	to map[string]*stream
}

func newPeers(c *Cluster) *peers { return &peers{c: c, to: map[string]*stream{}} }

// call makes one call to a node and waits for its reply. Until the call is
// handed to the connection, failing is definite; after that it is not known
// whether it was executed.
func (p *peers) call(ctx context.Context, id, address, method string, payload []byte, hop uint32) ([]byte, error) {
	return p.callSoon(ctx, ctx, id, address, method, payload, hop)
}

// callSoon gives up connecting when soon ends, and the call when ctx does.
func (p *peers) callSoon(ctx, soon context.Context, id, address, method string, payload []byte, hop uint32) ([]byte, error) {
	if len(payload) > maxPayload {
		return nil, fault.New(fault.TooLarge, "the request takes %d bytes between nodes, at most %d are allowed", len(payload), maxPayload)
	}
	p.c.metrics.calls.WithLabelValues(method).Inc()
	var s *stream
	if p.c.link == nil {
		var err error
		if s, err = p.stream(soon, id, address); err != nil {
			e := fault.Wrap(fault.NoLeader, err, "node %s cannot be reached", id)
			e.RetryAfter = time.Second
			return nil, e
		}
	}
	ctx, span := trace.Ask(ctx, "call "+method)
	span.Note("peer", id)
	call := &wire.Call{Method: method, Payload: payload, Hop: hop, Traceparent: trace.Parent(ctx), RequestId: trace.Request(ctx)}
	if deadline, ok := ctx.Deadline(); ok {
		call.Timeout = uint64(max(time.Until(deadline).Microseconds(), 1))
	}
	var reply []byte
	var err error
	if s != nil {
		reply, err = s.call(ctx, call)
	} else {
		reply, err = p.linked(ctx, id, address, call)
	}
	span.End(err)
	return reply, err
}

// over is closed when the process of the node has ended, or cannot be told
// from one that has: the stream to it is gone.
func (p *peers) over(ctx context.Context, id, address string) (<-chan struct{}, error) {
	if p.c.link != nil {
		return p.c.link.Over(id), nil
	}
	s, err := p.stream(ctx, id, address)
	if err != nil {
		return nil, err
	}
	return s.over, nil
}

// stream returns the living stream to a node or makes one. Concurrent callers
// share one attempt.
func (p *peers) stream(ctx context.Context, id, address string) (*stream, error) {
	// Two processes may claim one id for a while, so the address is in the key.
	key := id + "@" + address
	p.mu.Lock()
	s := p.to[key]
	if s == nil {
		life, cancel := context.WithCancel(p.c.life)
		s = &stream{c: p.c, id: id, open: make(chan struct{}), over: life.Done(), cancel: cancel, pending: map[uint64]*pending{}}
		s.out.wake = make(chan struct{}, 1)
		p.to[key] = s
		go func() {
			defer cancel()
			s.connect(life, address)
			p.mu.Lock()
			delete(p.to, key) // it is over: the next call makes another
			p.mu.Unlock()
		}()
	}
	p.mu.Unlock()
	select {
	case <-s.open:
		return s, s.failed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// stream is one gRPC stream to one node. It lives until its first error.
type stream struct {
	c      *Cluster
	id     string
	open   chan struct{} // closed when connected or failed
	failed error         // set before open is closed
	over   <-chan struct{}
	cancel context.CancelFunc
	out    outbox

	mu      sync.Mutex // guards what follows
	last    uint64
	pending map[uint64]*pending
	broken  error
	heard   time.Time // of the last frame, or of the first call since nothing was owed
}

type pending struct {
	sent  bool
	reply chan *wire.Reply
}

// connect dials, serves the stream, and returns when it is over.
func (s *stream) connect(ctx context.Context, address string) {
	conn, err := grpc.NewClient("passthrough:///"+s.id,
		grpc.WithTransportCredentials(insecure.NewCredentials()), // the dialler does mutual TLS itself
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return s.c.dial(ctx, s.id, address, protoPeer)
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithInitialWindowSize(window), grpc.WithInitialConnWindowSize(window),
		grpc.WithNoProxy(), grpc.WithDisableServiceConfig(), grpc.WithIdleTimeout(0))
	if err != nil {
		s.failed = err
		close(s.open)
		return
	}
	defer conn.Close()
	ctx = metadata.AppendToOutgoingContext(ctx, metaCluster, s.c.machine.ClusterID())
	exchange, err := wire.NewPeerClient(conn).Exchange(ctx)
	s.failed = err
	close(s.open)
	if err != nil {
		return
	}
	var tasks sync.WaitGroup
	tasks.Go(func() { s.sever(s.out.drain(ctx, exchange.Send, s.sending)) })
	tasks.Go(func() { s.watch(ctx) })
	for {
		frame, err := exchange.Recv()
		if err != nil {
			s.sever(err)
			break
		}
		s.receive(frame)
	}
	tasks.Wait()
}

func (s *stream) call(ctx context.Context, call *wire.Call) ([]byte, error) {
	p := &pending{reply: make(chan *wire.Reply, 1)}
	s.mu.Lock()
	if s.broken != nil {
		s.mu.Unlock()
		return nil, noLeader("node %s cannot be reached", s.id)
	}
	s.last++
	call.Id = s.last
	if len(s.pending) == 0 {
		s.heard = time.Now()
	}
	s.pending[call.Id] = p
	s.mu.Unlock()
	s.out.put(call, nil, false)

	var why error
	select {
	case reply := <-p.reply:
		if reply != nil {
			return reply.Payload, fromWire(reply.Fault)
		}
	case <-ctx.Done():
		why = ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pending, call.Id)
	if why == nil {
		why = s.broken
	}
	if p.sent {
		return nil, fault.Lost(fault.NoLeader, why, "node %s was asked and did not answer; the request may have been executed", s.id)
	}
	return nil, fault.Wrap(fault.NoLeader, why, "node %s could not be asked in time; nothing was changed", s.id)
}

// sending is told of a call just before it goes out; false means that its
// caller has left, and it does not go out.
func (s *stream) sending(id uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pending[id]
	if p != nil {
		p.sent = true
	}
	return p != nil
}

func (s *stream) receive(frame *wire.Frame) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heard = time.Now()
	for _, reply := range frame.Replies {
		if p := s.pending[reply.Id]; p != nil {
			delete(s.pending, reply.Id)
			p.reply <- reply
		}
	}
}

// watch finds a peer that stopped answering without closing anything: cut
// off, or stopped as a process.
func (s *stream) watch(ctx context.Context) {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s.mu.Lock()
		owed, silent := len(s.pending) > 0, time.Since(s.heard)
		s.mu.Unlock()
		if owed && silent > silentAfter {
			s.sever(context.DeadlineExceeded)
			return
		}
		if owed {
			s.out.put(nil, nil, true)
		}
	}
}

// sever ends the stream; every call on it fails.
func (s *stream) sever(why error) {
	s.mu.Lock()
	if s.broken == nil {
		s.broken = why
		if why == nil {
			s.broken = net.ErrClosed
		}
		for id, p := range s.pending {
			delete(s.pending, id)
			p.reply <- nil
		}
	}
	s.mu.Unlock()
	s.cancel()
}

// outbox collects what is to be sent; whatever waits goes into one frame.
type outbox struct {
	mu      sync.Mutex // guards what follows
	calls   []*wire.Call
	replies []*wire.Reply
	ping    bool
	wake    chan struct{}
}

func (o *outbox) put(call *wire.Call, reply *wire.Reply, ping bool) {
	o.mu.Lock()
	if call != nil {
		o.calls = append(o.calls, call)
	}
	if reply != nil {
		o.replies = append(o.replies, reply)
	}
	o.ping = o.ping || ping
	o.mu.Unlock()
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// drain sends until the context ends or a send fails.
func (o *outbox) drain(ctx context.Context, send func(*wire.Frame) error, sending func(id uint64) bool) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-o.wake:
		}
		o.mu.Lock()
		calls, replies, ping := o.calls, o.replies, o.ping
		o.calls, o.replies, o.ping = nil, nil, false
		o.mu.Unlock()

		frame, size := &wire.Frame{}, 0
		flush := func(next int) error {
			if size == 0 || size+next <= frameBytes {
				return nil
			}
			err := send(frame)
			frame, size = &wire.Frame{}, 0
			return err
		}
		for _, call := range calls {
			if err := flush(len(call.Payload)); err != nil {
				return err
			}
			if sending(call.Id) {
				frame.Calls = append(frame.Calls, call)
				size += len(call.Payload) + 64
			}
		}
		for _, reply := range replies {
			if err := flush(len(reply.Payload)); err != nil {
				return err
			}
			frame.Replies = append(frame.Replies, reply)
			size += len(reply.Payload) + 64
		}
		if size > 0 || ping {
			if err := send(frame); err != nil {
				return err
			}
		}
	}
}
