package rpc

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/tap"
)

// The library reads a message before it lets anybody look at the call, and holds
// it outside of all that bounds bodies. So the first message of a call has a time
// to arrive: hardly any for who has no credential, as the headers alone tell. Of
// all others some may be late.
const (
	strangersTime = time.Second
	soon          = 2 * time.Second
)

// arrival is that time.
type arrival struct {
	context.Context
	server *Server
	cancel context.CancelFunc
	rest   time.Duration // what is left for who may be late

	mu   sync.Mutex // guards what follows
	next *time.Timer
	late bool // it has one of the server's places
	over bool // the message is there, or nobody waits for it
}

type arrivalKey struct{}

// Value implements context.Context.
func (a *arrival) Value(key any) any {
	if key == (arrivalKey{}) {
		return a
	}
	return a.Context.Value(key)
}

// arriving begins the time; a call whose time is over is cancelled.
func (s *Server) arriving(ctx context.Context, method string, header metadata.MD) context.Context {
	a := &arrival{server: s}
	a.Context, a.cancel = context.WithCancel(ctx)
	first := min(soon, s.opt.ArriveTimeout)
	if s.stranger(ctx, method, header) {
		first = min(strangersTime, first)
	} else {
		a.rest = s.opt.ArriveTimeout - first
	}
	a.mu.Lock()
	a.next = time.AfterFunc(first, a.due)
	a.mu.Unlock()
	context.AfterFunc(ctx, a.end)
	return a
}

// due gives a message that is not there a place among the late ones, or gives up
// on it.
func (a *arrival) due() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.over {
		return
	}
	if !a.late && a.rest > 0 {
		select {
		case a.server.late <- struct{}{}:
			a.late = true
			a.next.Reset(a.rest)
			return
		default:
		}
	}
	a.cancel()
}

// end is when the message is there, or the call has ended.
func (a *arrival) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.over {
		return
	}
	a.over = true
	a.next.Stop()
	if a.late {
		<-a.server.late
	}
}

// arrived ends the time of a call.
func arrived(ctx context.Context) {
	if a, ok := ctx.Value(arrivalKey{}).(*arrival); ok {
		a.end()
	}
}

// tapped is asked by the native server when the headers of a call are there. It
// must not wait: the connection does as well.
func (s *Server) tapped(ctx context.Context, info *tap.Info) (context.Context, error) {
	header, _ := metadata.FromIncomingContext(ctx)
	return s.arriving(ctx, info.FullMethodName, header), nil
}

// stranger says that the caller has no credential, as far as that can be told
// without asking anybody.
func (s *Server) stranger(ctx context.Context, method string, header metadata.MD) bool {
	c := &Call{server: s, method: method, header: header, ctx: ctx}
	c.Begin(s.door, c, "")
	return c.Stranger()
}

// ServeHTTP serves a call that came in over net/http.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := metadata.MD{"authorization": r.Header["Authorization"]}
	ctx := s.arriving(withPeer(r), r.URL.Path, header)
	body := &paced{body: r.Body, most: int64(s.opt.MaxBody) + 64<<10, more: make(chan struct{}, 1), gone: make(chan struct{})}
	r = r.WithContext(context.WithValue(ctx, pacedKey{}, body))
	r.Body = body
	s.web.ServeHTTP(w, r)
}

// withPeer gives the context of a request with what is known of its connection.
func withPeer(r *http.Request) context.Context {
	if r.TLS == nil {
		return r.Context()
	}
	return peer.NewContext(r.Context(), &peer.Peer{Addr: address(r.RemoteAddr), AuthInfo: credentials.TLSInfo{State: *r.TLS}})
}

// address is a caller's, as text.
type address string

// Network implements net.Addr.
func (address) Network() string { return "tcp" }

// String implements net.Addr.
func (a address) String() string { return string(a) }

// paced is the body of a call over net/http, of which the library reads all that
// comes into memory, whether or not the call takes it. So no more is read than
// one message ahead of what was taken.
type paced struct {
	body io.ReadCloser
	most int64
	more chan struct{} // something was taken
	gone chan struct{} // nobody reads any more
	once sync.Once

	mu    sync.Mutex // guards ahead
	ahead int64      // bytes that were read and not taken
}

type pacedKey struct{}

// Read implements io.Reader.
func (p *paced) Read(b []byte) (int, error) {
	for {
		p.mu.Lock()
		room := p.most - p.ahead
		p.mu.Unlock()
		if room > 0 {
			n, err := p.body.Read(b[:min(int64(len(b)), room)])
			p.take(int64(-n))
			return n, err
		}
		select {
		case <-p.more:
		case <-p.gone:
			return 0, http.ErrBodyReadAfterClose
		}
	}
}

func (p *paced) take(n int64) {
	p.mu.Lock()
	p.ahead -= n
	p.mu.Unlock()
	select {
	case p.more <- struct{}{}:
	default:
	}
}

// Close implements io.Closer.
func (p *paced) Close() error {
	p.once.Do(func() { close(p.gone) })
	return p.body.Close()
}

// taken tells bodies what of them was taken.
type taken struct{}

// HandleRPC implements stats.Handler.
func (taken) HandleRPC(ctx context.Context, s stats.RPCStats) {
	if in, ok := s.(*stats.InPayload); ok {
		if p, ok := ctx.Value(pacedKey{}).(*paced); ok {
			p.take(int64(in.WireLength))
		}
	}
}

// TagRPC implements stats.Handler.
func (taken) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// HandleConn implements stats.Handler.
func (taken) HandleConn(context.Context, stats.ConnStats) {}

// TagConn implements stats.Handler.
func (taken) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// open are the methods that are answered without identity, like /livez.
func open(method string) bool { return method == "/grpc.health.v1.Health/Check" }

// look are the methods of the library's own services, which ask for no role.
func look(method string) bool {
	return strings.HasPrefix(method, "/grpc.reflection.") || strings.HasPrefix(method, "/grpc.health.")
}
