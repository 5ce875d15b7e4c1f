package node

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/muster-registry/muster/api/dns"
	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/api/rest"
	"github.com/muster-registry/muster/flow"
	"github.com/muster-registry/muster/identity"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/rego"
	"github.com/muster-registry/muster/port"
)

// server is one of the ports that callers reach, and what serves it.
type server struct {
	*http.Server
	listener net.Listener
	files    int // sixteenths of the open files that its connections may take
	secure   bool
	port     *port.Port // before the server; nil: none

	dns     *dns.Server // in the server's place; nil: it is one of HTTP
	packets net.PacketConn
}

func (s *server) run() error {
	var err error
	if s.dns != nil {
		if err = s.dns.Serve(s.listener, s.packets); err == nil {
			return nil
		}
	} else if s.port != nil {
		err = s.port.Serve(s.listener)
	} else if s.secure {
		err = s.ServeTLS(s.listener, "", "")
	} else {
		err = s.Serve(s.listener)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("listener %s: %w", s.Addr, err)
}

// open opens what the server listens on.
func (s *server) open() (err error) {
	if s.listener, err = net.Listen("tcp", s.Addr); err != nil || s.dns == nil {
		return err
	}
	if s.packets, err = net.ListenPacket("udp", s.Addr); err != nil {
		return errors.Join(err, s.listener.Close())
	}
	return nil
}

// close closes it again, where nothing was served.
func (s *server) close() {
	_ = s.listener.Close()
	if s.packets != nil {
		_ = s.packets.Close()
	}
}

func (n *Node) listen(certs *certificates, reg *prometheus.Registry) ([]*server, error) {
	auth := identity.Config{TrustDomain: n.cfg.Cluster.TrustDomain, Clock: n.clock, Outside: n.verifier(), Unmapped: n.unmapped, Chain: n.trust.VerifyChain}
	if t := n.cfg.Secrets.OperatorToken; t != "" {
		auth.Static = append(auth.Static, identity.Static{Name: "operator", Role: "operator", Hash: identity.Hash(t)})
	}
	who, err := identity.New(auth)
	if err != nil {
		return nil, err
	}
	lim := n.cfg.Limits
	in := door.New(backend{n}, who, door.Options{Flow: n.flow, ZoneShare: n.cfg.Discovery.ZoneShare, MaxStaleness: n.cfg.Isolation.MaxStaleness, Refused: n.refused, Answered: n.answered()})
	api, err := rest.New(backend{n}, in, rest.Options{
		Logger: n.logger, Version: n.version, MaxBody: int64(lim.Body), MaxDefinition: int64(lim.Definition),
		MaxDepth:    lim.JSONDepth,
		ParseBundle: func(b []byte) (*policy.Push, error) { return rego.ParseBundle(b, int64(lim.Definition), n.signatures) },
		Signatures:  n.signatures,
		Diff:        n.engine.Diff,
		Traced:      n.tracer != nil,
		Health: func() []string {
			return slices.Concat(n.quorumLine(), certs.health(), n.auditHealth(), n.snapshotAlarm(), n.alarmLines())
		},
		Library: n.definitionRules,
		Issuer:  n.issuer, Issuance: n.issuance, Foreign: consulCalls(),
		Observe: n.metrics.observe, WebhookSecret: []byte(n.cfg.Secrets.GitWebhook),
	})
	if err != nil {
		return nil, err
	}
	control, err := n.withConsul(in, api)
	if err != nil {
		return nil, err
	}
	servers := []*server{n.controlServer(certs, in, n.tracer.Handler(control))}
	if n.cfg.Listen.Policy != Off {
		s, err := n.policyServer(who, certs, reg)
		if err != nil {
			return nil, err
		}
		servers = append(servers, s)
	}
	if n.cfg.Listen.Metrics != Off {
		servers = append(servers, &server{files: metricsFiles, Server: n.httpServer(n.cfg.Listen.Metrics, n.metrics.handler(reg, api.Health(), n.cfg.Pprof))})
	}
	if n.cfg.Listen.DNS != Off {
		s, err := n.dnsServer(in)
		if err != nil {
			return nil, err
		}
		servers = append(servers, s)
	}
	for i, s := range servers {
		if err := s.open(); err != nil {
			for _, open := range servers[:i] {
				open.close()
			}
			return nil, fmt.Errorf("listen on %s: %w", s.Addr, err)
		}
		s.listener = n.flow.Listen(s.listener, n.connections(s.Addr, s.files))
	}
	return servers, nil
}

func (n *Node) httpServer(addr string, h http.Handler) *http.Server {
	return &http.Server{
		Addr: addr, Handler: h, ConnState: flow.ConnState,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: 250,
			SendPingTimeout:      time.Minute, PingTimeout: 15 * time.Second, // for a connection that nothing is heard of
			WriteByteTimeout: 30 * time.Second, // for a caller who does not take what it asked for
		},
		MaxHeaderBytes: int(n.cfg.Limits.Headers),
		ErrorLog:       slog.NewLogLogger(n.logger.Handler(), slog.LevelDebug),
	}
}
