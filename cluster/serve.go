package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"time"

	"github.com/muster-registry/muster/cluster/wire"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
)

const (
	// maxCalls bounds the calls being handled for other nodes at once.
	maxCalls     = 4096
	callPatience = 30 * time.Second // for a call that brings no deadline
)

// servePeers answers the calls of other nodes until the node stops.
func (c *Cluster) servePeers() {
	server := grpc.NewServer(
		grpc.Creds(greeted{c.cfg.TrustDomain}),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(4), grpc.ConnectionTimeout(handshakeTimeout), grpc.MaxHeaderListSize(16<<10),
		grpc.InitialWindowSize(window), grpc.InitialConnWindowSize(window),
		// An idle peer is asked whether it is still there.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
	)
	wire.RegisterPeerServer(server, &service{c: c, busy: make(chan struct{}, maxCalls)})
	stop := context.AfterFunc(c.life, server.Stop)
	defer stop()
	_ = server.Serve(c.port.peer)
}

// greeted tells gRPC who is at the other end of a connection on which the
// port has already done the handshake.
type greeted struct{ trustDomain string }

type caller struct {
	credentials.CommonAuthInfo
	id string
}

func (caller) AuthType() string { return "muster-node" }

func (g greeted) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	t, ok := conn.(*tls.Conn)
	if !ok {
		return nil, nil, errors.New("not a connection of the peer port")
	}
	id, err := nodeID(t.ConnectionState().PeerCertificates[0], g.trustDomain)
	return conn, caller{credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, id}, err
}

func (g greeted) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("for servers only")
}
func (g greeted) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}
func (g greeted) Clone() credentials.TransportCredentials { return g }
func (g greeted) OverrideServerName(string) error         { return nil }

type service struct {
	wire.UnimplementedPeerServer
	c    *Cluster
	busy chan struct{}
}

func (s *service) Exchange(exchange wire.Peer_ExchangeServer) error {
	ctx, cancel := context.WithCancel(exchange.Context())
	defer cancel()
	p, _ := peer.FromContext(ctx)
	from, ok := p.AuthInfo.(caller)
	if !ok {
		return errors.New("nobody is there")
	}
	md, _ := metadata.FromIncomingContext(ctx)
	var cluster string
	if v := md.Get(metaCluster); len(v) == 1 {
		cluster = v[0]
	}
	out := outbox{wake: make(chan struct{}, 1)}
	go func() {
		if out.drain(ctx, exchange.Send, nil) != nil {
			cancel()
		}
	}()
	for {
		frame, err := exchange.Recv()
		if err != nil {
			return err
		}
		if len(frame.Calls) == 0 {
			out.put(nil, nil, true)
		}
		for _, call := range frame.Calls {
			select {
			case s.busy <- struct{}{}:
				go func() {
					defer func() { <-s.busy }()
					out.put(nil, s.answer(ctx, from.id, cluster, call), false)
				}()
			default:
				f := fault.New(fault.RateLimited, "the node handles %d calls of other nodes already", maxCalls)
				out.put(nil, &wire.Reply{Id: call.Id, Fault: toWire(f)}, false)
			}
		}
	}
}

// answer runs one call that came from another node.
func (s *service) answer(ctx context.Context, from, cluster string, call *wire.Call) (reply *wire.Reply) {
	reply = &wire.Reply{Id: call.Id}
	ctx = trace.WithRequest(ctx, call.RequestId)
	defer func() {
		if r := recover(); r != nil {
			// A request must not end the node; what the handler did is unknown.
			s.c.log.ErrorContext(ctx, "a peer call panicked", "method", call.Method, "panic", r, "stack", string(debug.Stack()))
			reply.Payload, reply.Fault = nil, toWire(fault.Lost(fault.Internal, fmt.Errorf("%v", r), "the node failed to handle the request; its log says why"))
		}
	}()
	patience := callPatience
	if call.Timeout > 0 {
		patience = time.Duration(min(call.Timeout, uint64(time.Hour/time.Microsecond))) * time.Microsecond
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	traced, span := s.c.cfg.Tracer.Serve(ctx, call.Traceparent, "serve "+call.Method)
	span.Note("request_id", call.RequestId)
	payload, err := s.c.admit(traced, from, cluster, call)
	span.End(err)
	switch {
	case err != nil:
		e := fault.From(err)
		if e.Code == fault.Internal {
			s.c.log.ErrorContext(ctx, "a peer call failed", "method", call.Method, "from", from, "error", err)
		}
		reply.Fault = toWire(e)
	case len(payload) > maxPayload:
		reply.Fault = toWire(fault.Lost(fault.TooLarge, nil, "the answer takes %d bytes between nodes, at most %d are allowed", len(payload), maxPayload))
	default:
		reply.Payload = payload
	}
	return reply
}

// admit checks what every call must satisfy, and runs its handler.
func (c *Cluster) admit(ctx context.Context, from, cluster string, call *wire.Call) ([]byte, error) {
	h, ok := c.handlers[call.Method]
	switch {
	case !ok:
		return nil, fault.New(fault.NotFound, "this node knows no peer call %q: it may be older than node %s", call.Method, from)
	case call.Hop > 1:
		return nil, fault.New(fault.LoopDetected, "the request was forwarded %d times; one is the most", call.Hop)
	case foreign(cluster, c.machine.ClusterID()) && !h.open:
		return nil, fault.New(fault.Conflict, "node %s belongs to another cluster", from)
	case h.leaderOnly && c.serving() == nil:
		return nil, noLeader("node %s does not lead the cluster", c.cfg.NodeID)
	case h.leaderOnly && !h.open && c.member(from) == "":
		// Its certificate outlives its membership, and a call may speak for any
		// principal: the leader's configuration decides.
		return nil, fault.New(fault.Conflict, "node %s is not a member of the cluster: it was removed", from)
	case !h.own && !h.leaderOnly && c.member(from) == "":
		// A node that has been away may not have heard of the caller; it has of
		// those whom it can answer.
		return nil, fault.New(fault.Conflict, "this node knows no member %s of the cluster: it was removed, or has come since this node heard of its leader last", from)
	}
	if call.Hop > 0 {
		ctx = context.WithValue(ctx, forwarded{}, true)
	}
	return h.run(ctx, from, call.Payload)
}

// toWire leaves the cause behind: it may hold what the other side must not see.
func toWire(e *fault.Error) *wire.Fault {
	w := &wire.Fault{
		Code: string(e.Code), Detail: e.Detail, Unknown: e.Outcome == fault.Unknown, RetryAfter: int64(e.RetryAfter),
		Reasons: e.Reasons, DecisionId: e.DecisionID, PolicyRevision: e.PolicyRevision, Current: e.Current,
	}
	for _, f := range e.Fields {
		w.Fields = append(w.Fields, &wire.Field{Pointer: f.Pointer, Message: f.Message})
	}
	for _, p := range e.Places {
		w.Places = append(w.Places, &wire.Place{File: p.File, Row: int64(p.Row), Col: int64(p.Col), Message: p.Message})
	}
	return w
}

func fromWire(w *wire.Fault) error {
	if w == nil {
		return nil
	}
	e := &fault.Error{
		Code: fault.Code(w.Code), Detail: w.Detail, RetryAfter: time.Duration(w.RetryAfter),
		Reasons: w.Reasons, DecisionID: w.DecisionId, PolicyRevision: w.PolicyRevision, Current: w.Current,
	}
	if w.Unknown {
		e.Outcome = fault.Unknown
	}
	for _, f := range w.Fields {
		e.Fields = append(e.Fields, fault.Field{Pointer: f.Pointer, Message: f.Message})
	}
	for _, p := range w.Places {
		e.Places = append(e.Places, fault.Place{File: p.File, Row: int(p.Row), Col: int(p.Col), Message: p.Message})
	}
	return e
}
