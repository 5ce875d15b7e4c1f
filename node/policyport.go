package node

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/muster-registry/muster/api/opa"
	"github.com/muster-registry/muster/identity"
	"github.com/muster-registry/muster/policy"
)

// Policies implements opa.Backend.
func (b backend) Policies() opa.State {
	v := b.machine.View()
	return opa.State{Policy: v.Policy, Tokens: b.credentials(v), Revision: v.Revision}
}

// policyServer is the listener that speaks OPA's REST API.
func (n *Node) policyServer(who *identity.Authenticator, certs *certificates, reg prometheus.Registerer) (*server, error) {
	// OPA's own name, with its prefix, and its labels: what operators of an OPA
	// watch.
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "opa_http_request_duration_seconds", Help: "Time from the request to its answer on the policy port, by status, handler and method.",
		Buckets: []float64{1e-6, 5e-6, 1e-5, 5e-5, 1e-4, 5e-4, 1e-3, .01, .1, 1},
	}, []string{"code", "handler", "method"})
	if err := reg.Register(seconds); err != nil {
		return nil, err
	}
	seconds.WithLabelValues("200", "v1/data", "POST") // it is there before the first request
	lim := n.cfg.Limits
	api, err := opa.New(backend{n}, n.engine, who, opa.Options{
		Logger: n.logger, Version: n.version, MaxBody: int64(lim.Body), MaxPolicy: int64(lim.Definition),
		Flow: n.flow, MaxStaleness: n.cfg.Isolation.MaxStaleness,
		Traced: n.tracer != nil, Decided: policy.Observers{n.shadow, n.log, decisionsTold{n}}, Refused: n.refusedCall,
		Observe: func(handler, method string, status int, elapsed time.Duration) {
			seconds.WithLabelValues(strconv.Itoa(status), handler, knownMethod(method)).Observe(elapsed.Seconds())
		},
	})
	if err != nil {
		return nil, err
	}
	s := &server{files: policyFiles, Server: n.httpServer(n.cfg.Listen.Policy, n.tracer.Handler(api)), secure: !n.cfg.Insecure}
	s.TLSConfig = certs.control()
	return s, nil
}

// knownMethod keeps what callers make up out of the metrics.
func knownMethod(method string) string {
	switch method {
	case "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS":
		return method
	}
	return "other"
}
