package health

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/muster-registry/muster/egress"
	"github.com/muster-registry/muster/registry"
)

// Result is what one probe found: passing, warning or critical, and why.
type Result struct{ Status, Output string }

// Prober runs checks once. It is safe for concurrent use.
type Prober struct {
	Dialer     *egress.Dialer
	Agent      string // in User-Agent
	SkipVerify bool   // whether a check may say so
}

// maxBody bounds what is read of an answer.
const maxBody = 64 << 10

// Probe asks once, for no longer than the check's timeout. A redirect is an
// answer like any other and not followed.
func (p *Prober) Probe(ctx context.Context, c *registry.Check) Result {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(c.Timeout))
	defer cancel()
	if c.TLS != nil && c.TLS.SkipVerify && !p.SkipVerify {
		return Result{registry.Critical, "tls.skip_verify is not allowed here: an operator may set health.allow_skip_verify"}
	}
	var r Result
	var err error
	switch c.Type {
	case registry.CheckHTTP:
		r, err = p.http(ctx, c)
	case registry.CheckTCP:
		r, err = p.tcp(ctx, c)
	case registry.CheckGRPC:
		r, err = p.grpc(ctx, c)
	default:
		err = fmt.Errorf("this version knows no checks of type %q", c.Type)
	}
	if err != nil {
		return Result{registry.Critical, p.why(c, err)}
	}
	return r
}

// why says what a probe failed of, in few words.
func (p *Prober) why(c *registry.Check, err error) string {
	if refused, ok := errors.AsType[*egress.Refused](err); ok {
		return refused.Error() + ": see health.allow"
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "no answer within " + c.Timeout.String()
	}
	return err.Error()
}

func (p *Prober) trust(c *registry.Check, host string) *tls.Config {
	t := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host}
	if c.TLS == nil {
		return t
	}
	if c.TLS.ServerName != "" {
		t.ServerName = c.TLS.ServerName
	}
	if c.TLS.CA != "" {
		t.RootCAs = x509.NewCertPool()
		t.RootCAs.AppendCertsFromPEM([]byte(c.TLS.CA))
	}
	t.InsecureSkipVerify = c.TLS.SkipVerify // only where Probe let it pass
	return t
}

func (p *Prober) http(ctx context.Context, c *registry.Check) (Result, error) {
	method := c.Method
	if method == "" {
		method = http.MethodGet
	}
	req, err := http.NewRequestWithContext(ctx, method, c.Target, strings.NewReader(c.Body))
	if err != nil {
		return Result{}, err
	}
	for name, values := range c.Headers {
		for _, v := range values {
			req.Header.Add(name, v)
		}
	}
	if host := req.Header.Get("Host"); host != "" {
		req.Host = host
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", p.Agent)
	}
	transport := &http.Transport{
		DialContext: p.Dialer.DialContext, DisableKeepAlives: true, DisableCompression: true,
		TLSClientConfig: p.trust(c, req.URL.Hostname()), ForceAttemptHTTP2: true, MaxResponseHeaderBytes: maxBody,
	}
	defer transport.CloseIdleConnections()
	res, err := transport.RoundTrip(req)
	if err != nil {
		return Result{}, err
	}
	defer res.Body.Close()
	limit := int64(registry.MaxOutput)
	if c.Expect != nil && c.Expect.Body != "" {
		limit = maxBody
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, limit))
	if err != nil {
		return Result{}, err
	}
	return judge(c, method, res, body), nil
}

// judge says what an answer means.
func judge(c *registry.Check, method string, res *http.Response, body []byte) Result {
	said := fmt.Sprintf("%s %s: %s", method, c.Target, res.Status)
	text := strings.TrimSpace(string(body))
	if text != "" {
		said += "\n" + text
	}
	good := res.StatusCode/100 == 2
	if c.Expect != nil && len(c.Expect.Status) > 0 {
		good = slices.Contains(c.Expect.Status, res.StatusCode)
	}
	switch {
	case good && c.Expect != nil && !bytes.Contains(body, []byte(c.Expect.Body)):
		return Result{registry.Critical, "the answer does not contain what is expected\n" + said}
	case good:
		return Result{registry.Passing, said}
	case res.StatusCode == http.StatusTooManyRequests:
		return Result{registry.Warning, said}
	}
	return Result{registry.Critical, said}
}

func (p *Prober) tcp(ctx context.Context, c *registry.Check) (Result, error) {
	conn, err := p.Dialer.DialContext(ctx, "tcp", c.Target)
	if err != nil {
		return Result{}, err
	}
	defer conn.Close()
	if c.TLS != nil {
		host, _, _ := net.SplitHostPort(c.Target)
		secure := tls.Client(conn, p.trust(c, host))
		if err := secure.HandshakeContext(ctx); err != nil {
			return Result{}, err
		}
	}
	return Result{registry.Passing, "TCP connect " + c.Target + ": success"}, nil
}

func (p *Prober) grpc(ctx context.Context, c *registry.Check) (Result, error) {
	trust := insecure.NewCredentials()
	if c.TLS != nil {
		host, _, _ := net.SplitHostPort(c.Target)
		trust = credentials.NewTLS(p.trust(c, host))
	}
	var refused atomic.Pointer[egress.Refused] // grpc-go keeps only the words of errors
	conn, err := grpc.NewClient("passthrough:///"+c.Target, grpc.WithTransportCredentials(trust), grpc.WithUserAgent(p.Agent),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			conn, err := p.Dialer.DialContext(ctx, "tcp", c.Target)
			if r, is := errors.AsType[*egress.Refused](err); is {
				refused.Store(r)
			}
			return conn, err
		}),
		grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(), grpc.WithNoProxy(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(4<<10)))
	if err != nil {
		return Result{}, err
	}
	res, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: c.Service})
	_ = conn.Close() // ends its dialling
	if err != nil {
		if s := status.Code(err); s == codes.DeadlineExceeded {
			err = context.DeadlineExceeded
		}
		if r := refused.Load(); r != nil {
			err = r
		}
		return Result{}, err
	}
	said := "gRPC check " + c.Target + ": " + res.Status.String()
	if res.Status != healthpb.HealthCheckResponse_SERVING {
		return Result{registry.Critical, said}, nil
	}
	return Result{registry.Passing, said}, nil
}
