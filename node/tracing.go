package node

import (
	"bufio"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/muster-registry/muster/identity"
	"github.com/muster-registry/muster/trace"
)

// TracingSettings say where the node sends the spans of requests.
type TracingSettings struct {
	Enabled     bool    `yaml:"enabled"`
	Endpoint    string  `yaml:"endpoint"` // URL of the collector; "": as OTEL_EXPORTER_OTLP_ENDPOINT says
	Protocol    string  `yaml:"protocol"` // grpc, http/protobuf; "": as OTEL_EXPORTER_OTLP_PROTOCOL says
	Sample      float64 `yaml:"sample"`   // share of the traces begun here that is recorded
	CA          string  `yaml:"ca"`
	HeadersFile string  `yaml:"headers_file"` // lines "Name: value", sent with each call
}

func tracingDefaults() TracingSettings { return TracingSettings{Sample: 1} }

func (s *TracingSettings) validate() (errs []error) {
	if s.Endpoint != "" {
		u, err := url.Parse(s.Endpoint)
		switch {
		case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
			errs = append(errs, errors.New("tracing.endpoint: is not a URL such as https://collector.example.org:4317"))
		case u.User != nil || u.RawQuery != "":
			errs = append(errs, errors.New("tracing.endpoint: carries credentials or a query; put what the collector wants to know into tracing.headers_file"))
		}
	}
	switch s.Protocol {
	case "", trace.GRPC, trace.HTTP:
	default:
		errs = append(errs, fmt.Errorf("tracing.protocol: %q is none of %s, %s", s.Protocol, trace.GRPC, trace.HTTP))
	}
	if s.Sample < 0 || s.Sample > 1 {
		errs = append(errs, fmt.Errorf("tracing.sample: %g is out of range; it is a share, from 0 to 1", s.Sample))
	}
	return errs
}

// headers reads "Name: value" or, as OTEL_EXPORTER_OTLP_HEADERS has it, Name=value.
func headers(setting, text string) (map[string]string, error) {
	out := map[string]string{}
	for lines, n := bufio.NewScanner(strings.NewReader(text)), 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if name = strings.TrimSpace(name); !ok || name == "" || strings.ContainsAny(name, " \t=") {
			return nil, fmt.Errorf("%s: line %d is not of the form Name: value", setting, n)
		}
		out[name] = strings.TrimSpace(value)
	}
	return out, nil
}

// openTracing begins to trace, where that is wanted. It gives what ends it.
func (n *Node) openTracing(ctx context.Context, reg prometheus.Registerer) (end func(), err error) {
	s := n.cfg.Tracing
	if !s.Enabled || strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") {
		return func() {}, nil
	}
	sent := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "muster_trace_spans_total", Help: "Spans handed to the collector, by outcome.",
	}, []string{"outcome"})
	if err := reg.Register(sent); err != nil {
		return nil, err
	}
	sent.WithLabelValues("sent")
	sent.WithLabelValues("failed")
	o := trace.Options{
		Endpoint: s.Endpoint, Protocol: s.Protocol, Sample: s.Sample, Node: n.cfg.NodeID, Version: n.version, Logger: n.logger,
		Mask: identity.Mask,
		Sent: func(spans int, err error) {
			sent.WithLabelValues(map[bool]string{true: "sent", false: "failed"}[err == nil]).Add(float64(spans))
		},
	}
	if o.Headers, err = headers("tracing.headers_file", n.cfg.Secrets.TracingHeaders); err != nil {
		return nil, err
	}
	if s.CA != "" {
		pem, err := os.ReadFile(s.CA)
		if err != nil {
			return nil, fmt.Errorf("tracing.ca: %w", err)
		}
		if o.CA = x509.NewCertPool(); !o.CA.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("tracing.ca: %s holds no PEM certificate", s.CA)
		}
	}
	if strings.HasPrefix(s.Endpoint, "http://") {
		n.logger.Info("spans are sent to the collector without encryption", "endpoint", s.Endpoint)
	}
	if n.tracer, err = trace.Open(ctx, o); err != nil {
		return nil, err
	}
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_ = n.tracer.Close(ctx) // what the collector did not take was told already
	}, nil
}
