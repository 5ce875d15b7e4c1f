package node

import (
	"context"
	"net/http"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/api/envoy"
	"github.com/muster-registry/muster/api/rpc"
	"github.com/muster-registry/muster/api/xds"
	"github.com/muster-registry/muster/port"
)

// controlServer is the control port: REST and gRPC on one listener. Connections
// that speak gRPC only have their own server; a call that comes in beside
// others, or without TLS, takes the way over net/http.
func (n *Node) controlServer(certs *certificates, in *door.Door, api http.Handler) *server {
	calls := rpc.New(in, rpc.Options{
		Logger: n.logger, NodeID: n.cfg.NodeID, MaxBody: int(n.cfg.Limits.Body), MaxHeaders: int(n.cfg.Limits.Headers),
		Late:        int(n.cfg.Limits.Bodies / max(1, n.cfg.Limits.Body)), // what bodies may take is what these hold
		Credentials: port.Credentials(), Tracer: n.tracer, Observe: n.metrics.observe,
	})
	envoy.Register(calls, rpc.As, backend{n})
	xds.Register(calls, rpc.As, n.metrics.xdsWatched(n.logger))
	s := &server{files: controlFiles, Server: n.httpServer(n.cfg.Listen.Control, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if rpc.IsCall(r) {
			calls.ServeHTTP(w, r)
			return
		}
		api.ServeHTTP(w, r)
	}))}
	if n.cfg.Insecure {
		n.logger.Warn("insecure is set: the control port speaks plain HTTP, and tokens can be read on the wire")
		s.Protocols = new(http.Protocols)
		s.Protocols.SetHTTP1(true)
		s.Protocols.SetUnencryptedHTTP2(true)
		return s
	}
	s.port = port.New(certs.control(), s.Server, calls)
	return s
}

// Shutdown shadows that of the HTTP server, where there is a port before it.
func (s *server) Shutdown(ctx context.Context) error {
	if s.dns != nil {
		return s.dns.Shutdown(ctx)
	}
	if s.port != nil {
		return s.port.Shutdown(ctx)
	}
	return s.Server.Shutdown(ctx)
}

// Close shadows likewise.
func (s *server) Close() error {
	if s.dns != nil {
		s.close()
		return nil
	}
	if s.port != nil {
		return s.port.Close()
	}
	return s.Server.Close()
}
