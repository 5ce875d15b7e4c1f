package sim

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
)

// wires carry Raft's messages of one node: a raft.Transport.
type wires struct {
	of       *link
	consumer chan raft.RPC

	mu    sync.Mutex // guards beats
	beats func(raft.RPC)
}

func (w *wires) init(of *link) { w.of, w.consumer = of, make(chan raft.RPC) }

// Consumer implements raft.Transport.
func (w *wires) Consumer() <-chan raft.RPC { return w.consumer }

// LocalAddr implements raft.Transport.
func (w *wires) LocalAddr() raft.ServerAddress {
	return raft.ServerAddress(w.of.station.Card.Address)
}

// EncodePeer implements raft.Transport.
func (w *wires) EncodePeer(_ raft.ServerID, a raft.ServerAddress) []byte { return []byte(a) }

// DecodePeer implements raft.Transport.
func (w *wires) DecodePeer(b []byte) raft.ServerAddress { return raft.ServerAddress(b) }

// SetHeartbeatHandler implements raft.Transport.
func (w *wires) SetHeartbeatHandler(beats func(raft.RPC)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.beats = beats
}

// AppendEntriesPipeline implements raft.Transport.
func (w *wires) AppendEntriesPipeline(_ raft.ServerID, to raft.ServerAddress) (raft.AppendPipeline, error) {
	return newPipeline(w, to), nil
}

// AppendEntries implements raft.Transport.
func (w *wires) AppendEntries(_ raft.ServerID, to raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	return fill(w, to, args, resp, nil)
}

// RequestVote implements raft.Transport.
func (w *wires) RequestVote(_ raft.ServerID, to raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return fill(w, to, args, resp, nil)
}

// RequestPreVote implements raft.WithPreVote.
func (w *wires) RequestPreVote(_ raft.ServerID, to raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return fill(w, to, args, resp, nil)
}

// TimeoutNow implements raft.Transport.
func (w *wires) TimeoutNow(_ raft.ServerID, to raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return fill(w, to, args, resp, nil)
}

// InstallSnapshot implements raft.Transport.
func (w *wires) InstallSnapshot(_ raft.ServerID, to raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	all, err := io.ReadAll(data)
	if err != nil {
		return err
	}
	return fill(w, to, args, resp, all)
}

func fill[Q, R any](w *wires, to raft.ServerAddress, args *Q, resp *R, data []byte) error {
	got, err := w.ask(to, func() raft.RPC {
		own := *args
		return raft.RPC{Command: &own, Reader: bytes.NewReader(data)}
	})
	if err != nil {
		return err
	}
	r, ok := got.(*R)
	if !ok {
		return errors.New("an answer of another kind")
	}
	*resp = *r
	return nil
}

// ask takes a message to a node and its answer back. Each time it arrives it is
// made anew.
func (w *wires) ask(to raft.ServerAddress, message func() raft.RPC) (any, error) {
	id, address, _ := strings.Cut(string(to), "@")
	if w.of.closed() {
		return nil, net.ErrClosed
	}
	other := w.of.net.at(id, address)
	if other == nil {
		return nil, syscall.ECONNREFUSED
	}
	back := make(chan raft.RPCResponse, 1)
	go func() {
		arrives, twice := w.of.net.travel(w.of.id, id)
		if !arrives {
			return
		}
		if twice {
			go func() {
				if late, _ := w.of.net.travel(w.of.id, id); late {
					other.take(message())
				}
			}()
		}
		r, ok := other.take(message())
		if !ok {
			return
		}
		if arrives, _ := w.of.net.travel(id, w.of.id); arrives && !other.closed() {
			back <- r
		}
	}()
	patience := time.NewTimer(messageTimeout)
	defer patience.Stop()
	select {
	case r := <-back:
		return r.Response, r.Error
	case <-patience.C:
		return nil, errLost
	case <-other.gone:
	case <-w.of.gone:
	}
	return nil, net.ErrClosed
}

// take has Raft of this node answer a message.
func (l *link) take(m raft.RPC) (raft.RPCResponse, bool) {
	back := make(chan raft.RPCResponse, 1)
	m.RespChan = back
	l.mu.Lock()
	beats := l.beats
	l.mu.Unlock()
	if a, ok := m.Command.(*raft.AppendEntriesRequest); ok && beats != nil && heartbeat(a) {
		go beats(m)
	} else {
		select {
		case l.consumer <- m:
		case <-l.gone:
			return raft.RPCResponse{}, false
		}
	}
	select {
	case r := <-back:
		return r, true
	case <-l.gone:
		return raft.RPCResponse{}, false
	}
}

func heartbeat(a *raft.AppendEntriesRequest) bool {
	return a.Term != 0 && a.PrevLogEntry == 0 && a.PrevLogTerm == 0 && len(a.Entries) == 0 && a.LeaderCommitIndex == 0
}

// pipeline has several messages to one node on their way, whose answers come in
// their order; the first failure ends it, as it ends a connection.
type pipeline struct {
	w     *wires
	to    raft.ServerAddress
	queue chan *appending
	ready chan raft.AppendFuture
	over  chan struct{}
	once  sync.Once
}

// pipelined is how many messages are on their way at once.
const pipelined = 4

func newPipeline(w *wires, to raft.ServerAddress) *pipeline {
	p := &pipeline{w: w, to: to, queue: make(chan *appending, pipelined), ready: make(chan raft.AppendFuture, pipelined), over: make(chan struct{})}
	go p.deliver()
	return p
}

// deliver gives the answers in order.
func (p *pipeline) deliver() {
	for {
		select {
		case a := <-p.queue:
			select {
			case <-a.done:
			case <-p.over:
				return
			}
			select {
			case p.ready <- a:
			case <-p.over:
				return
			}
		case <-p.over:
			return
		}
	}
}

// AppendEntries implements raft.AppendPipeline.
func (p *pipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	a := &appending{began: time.Now(), args: args, resp: resp, done: make(chan struct{})}
	select {
	case p.queue <- a:
	case <-p.over:
		return nil, raft.ErrPipelineShutdown
	}
	go func() {
		a.err = fill(p.w, p.to, args, resp, nil)
		close(a.done)
	}()
	return a, nil
}

// Consumer implements raft.AppendPipeline.
func (p *pipeline) Consumer() <-chan raft.AppendFuture { return p.ready }

// Close implements raft.AppendPipeline.
func (p *pipeline) Close() error {
	p.once.Do(func() { close(p.over) })
	return nil
}

// appending is a message of a pipeline: a raft.AppendFuture.
type appending struct {
	began time.Time
	args  *raft.AppendEntriesRequest
	resp  *raft.AppendEntriesResponse
	done  chan struct{}
	err   error
}

func (a *appending) Error() error                          { <-a.done; return a.err }
func (a *appending) Start() time.Time                      { return a.began }
func (a *appending) Request() *raft.AppendEntriesRequest   { return a.args }
func (a *appending) Response() *raft.AppendEntriesResponse { return a.resp }
