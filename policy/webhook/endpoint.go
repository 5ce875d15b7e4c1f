package webhook

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/sony/gobreaker/v2"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/muster-registry/muster/egress"
	"github.com/muster-registry/muster/setting"
	"github.com/muster-registry/muster/trace"
)

// maxAnswer bounds what is read of an answer, decompressed.
const maxAnswer = 1 << 20

// The outcomes of a question.
const (
	allowed      = "allowed"
	denied       = "denied"
	failedClosed = "failed_closed"
	failedOpen   = "failed_open"
)

// endpoint is one webhook at one revision of its setting.
type endpoint struct {
	name     string
	revision uint64
	stored   []byte // the setting's spec
	spec     *Spec
	broken   error // the stored setting cannot be used
	limit    time.Duration
	interval time.Duration
	agent    string
	client   *http.Client
	signer   *standardwebhooks.Webhook // nil: requests are not signed
	breaker  *gobreaker.CircuitBreaker[answer]
}

// endpoint makes one from its setting. One that cannot be read, which the gate
// would not have stored, is asked about everything and refuses it.
func (h *Hooks) endpoint(r *setting.Record) *endpoint {
	e := &endpoint{name: r.Name, revision: r.Revision, stored: r.Spec, agent: h.options.Agent}
	if e.spec, e.broken = read(r); e.broken == nil {
		e.broken = e.prepare(h.options.Dialer)
	}
	if e.broken != nil {
		e.spec = &Spec{Events: []string{OnRegister, OnUpdate, OnDelete}, FailurePolicy: FailClosed}
		return e
	}
	h.metrics.state(r.Name, gobreaker.StateClosed)
	e.breaker = gobreaker.NewCircuitBreaker[answer](gobreaker.Settings{
		Name: r.Name, Timeout: h.options.Rest,
		ReadyToTrip: func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= h.options.Trip },
		// That the caller went away says nothing of the endpoint.
		IsExcluded: func(err error) bool { return errors.Is(err, errGone) },
		// An answer that turns the question down says nothing either: whoever may
		// change a record could have all others' changes refused, or let through.
		IsSuccessful: func(err error) bool { return err == nil || errors.Is(err, errQuestion) },
		OnStateChange: func(name string, from, to gobreaker.State) {
			h.metrics.state(name, to)
			h.options.Logger.Warn("circuit breaker of a webhook", "webhook", name, "from", from.String(), "to", to.String())
		},
	})
	return e
}

func (e *endpoint) prepare(dialer *egress.Dialer) (err error) {
	if e.limit, err = time.ParseDuration(e.spec.Timeout); err != nil {
		return err
	}
	if e.interval, err = time.ParseDuration(e.spec.Retry.Interval); err != nil {
		return err
	}
	if e.spec.Secret != "" {
		if e.signer, err = standardwebhooks.NewWebhook(e.spec.Secret); err != nil {
			return errors.New("the secret cannot be read")
		}
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS13}
	if t := e.spec.TLS; t != nil {
		if t.CA != "" {
			cfg.RootCAs = x509.NewCertPool()
			if !cfg.RootCAs.AppendCertsFromPEM([]byte(t.CA)) {
				return errors.New("tls.ca cannot be read")
			}
		}
		if t.Cert != "" {
			pair, err := tls.X509KeyPair([]byte(t.Cert), []byte(t.Key))
			if err != nil {
				return errors.New("tls.cert and tls.key cannot be read")
			}
			cfg.Certificates = []tls.Certificate{pair}
		}
	}
	e.client = &http.Client{
		Transport: &http.Transport{
			Proxy: nil, DialContext: dialer.DialContext, TLSClientConfig: cfg, ForceAttemptHTTP2: true,
			MaxIdleConnsPerHost: 16, IdleConnTimeout: 90 * time.Second, MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return nil
}

func (e *endpoint) close() {
	if e.client != nil {
		e.client.CloseIdleConnections()
	}
}

// turnedDown are the statuses by which an endpoint that works says that the
// question is at fault.
var turnedDown = []int{http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity, http.StatusRequestHeaderFieldsTooLarge}

// What stands in the way of an answer, as callers are told.
var (
	errGone     = errors.New("the request ended before it answered")
	errTimeout  = errors.New("it did not answer in time")
	errReach    = errors.New("it cannot be reached")
	errRefused  = errors.New("it is at an address that is not connected to unless webhook.allow lists it")
	errTLS      = errors.New("TLS with it cannot be set up")
	errLarge    = errors.New("its answer is larger than 1 MiB")
	errRest     = errors.New("it failed several times and is not asked for a while")
	errQuestion = errors.New("it turns the question down")
	errSetting  = errors.New("its stored setting cannot be used; set it again")
)

// failure is why there was no answer: the word for callers, and the cause for
// the log.
type failure struct {
	told  error
	cause error
}

func (f *failure) Error() string {
	if f.cause == nil {
		return f.told.Error()
	}
	return f.told.Error() + ": " + f.cause.Error()
}

func (f *failure) Unwrap() []error { return []error{f.told, f.cause} }

// judge turns an answer, or the lack of one, into what counts.
func (e *endpoint) judge(a answer, err error) (outcome string, reasons []string) {
	switch {
	case err == nil && a.allow:
		return allowed, nil
	case err == nil && len(a.reasons) == 0:
		return denied, []string{"webhook " + e.name + ": refuses without a reason"}
	case err == nil:
		for _, r := range a.reasons {
			reasons = append(reasons, "webhook "+e.name+": "+r)
		}
		return denied, reasons
	case e.spec.FailurePolicy == FailOpen && !errors.Is(err, errGone):
		return failedOpen, nil
	}
	told := err
	if f, ok := errors.AsType[*failure](err); ok {
		told = f.told
	}
	return failedClosed, []string{"webhook " + e.name + ": " + told.Error()}
}

// ask asks until there is an answer, the attempts are used up, or the time is.
// The error is a [*failure].
func (e *endpoint) ask(ctx context.Context, id string, body []byte) (_ answer, err error) {
	ctx, span := trace.Ask(ctx, "webhook "+e.name)
	defer func() { span.End(err) }()
	if e.broken != nil {
		return answer{}, &failure{told: errSetting, cause: e.broken}
	}
	a, err := e.breaker.Execute(func() (answer, error) {
		limited, cancel := context.WithTimeout(ctx, e.limit)
		defer cancel()
		var last error // what the attempt before the time was up failed of
		a, err := backoff.Retry(limited, func() (answer, error) {
			a, err := e.attempt(limited, id, body)
			if err != nil && limited.Err() == nil {
				last = err
			}
			return a, err
		}, backoff.WithBackOff(e.backoff()), backoff.WithMaxTries(uint(e.spec.Retry.MaxAttempts)), backoff.WithMaxElapsedTime(0))
		if p, ok := errors.AsType[*backoff.PermanentError](err); ok {
			err = p.Err
		}
		switch {
		case err == nil:
			return a, nil
		case ctx.Err() != nil:
			return a, &failure{told: errGone, cause: err}
		case limited.Err() != nil:
			return a, &failure{told: errTimeout, cause: errors.Join(last, err)}
		}
		return a, err
	})
	if errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests) {
		err = &failure{told: errRest}
	}
	return a, err
}

func (e *endpoint) backoff() backoff.BackOff {
	if e.spec.Retry.Backoff == Constant {
		return backoff.NewConstantBackOff(e.interval)
	}
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.Multiplier, b.MaxInterval = e.interval, 2, e.limit
	return b
}

// attempt asks once. What another attempt cannot mend is permanent.
func (e *endpoint) attempt(ctx context.Context, id string, body []byte) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.spec.URL, bytes.NewReader(body))
	if err != nil {
		return answer{}, backoff.Permanent(&failure{told: errSetting, cause: err})
	}
	for name, value := range e.spec.Headers {
		req.Header.Set(name, value)
	}
	req.Header.Set("Content-Type", "application/json")
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", e.agent)
	}
	trace.Inject(ctx, req.Header)
	if err := e.sign(req, id, body); err != nil {
		return answer{}, backoff.Permanent(&failure{told: errSetting, cause: err})
	}
	res, err := e.client.Do(req)
	if err != nil {
		return answer{}, unreached(err)
	}
	defer func() { _ = res.Body.Close() }()
	got, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	switch {
	case res.StatusCode >= 300 && res.StatusCode < 400:
		return answer{}, backoff.Permanent(&failure{told: errors.New("it answers with a redirect, which is not followed")})
	case res.StatusCode >= 500 || res.StatusCode == http.StatusTooManyRequests || res.StatusCode == http.StatusRequestTimeout:
		return answer{}, &failure{told: fmt.Errorf("it answers with status %d", res.StatusCode)}
	case slices.Contains(turnedDown, res.StatusCode):
		return answer{}, backoff.Permanent(&failure{told: fmt.Errorf("it answers with status %d", res.StatusCode), cause: errQuestion})
	case res.StatusCode != http.StatusOK:
		return answer{}, backoff.Permanent(&failure{told: fmt.Errorf("it answers with status %d", res.StatusCode)})
	case err != nil:
		return answer{}, &failure{told: errReach, cause: err}
	case len(got) > maxAnswer:
		return answer{}, backoff.Permanent(&failure{told: errLarge})
	}
	a, err := readAnswer(got)
	if err != nil {
		return answer{}, backoff.Permanent(&failure{told: err})
	}
	return a, nil
}

// unreached tells what another attempt may mend from what it cannot.
func unreached(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err // without the URL, whose path or query may be what the endpoint knows its callers by
	}
	if _, ok := errors.AsType[*egress.Refused](err); ok {
		return backoff.Permanent(&failure{told: errRefused, cause: err})
	}
	_, verify := errors.AsType[*tls.CertificateVerificationError](err)
	_, alert := errors.AsType[tls.AlertError](err)
	if verify || alert {
		return backoff.Permanent(&failure{told: errTLS, cause: err})
	}
	return &failure{told: errReach, cause: err}
}

// sign names the question and, where there is a secret, proves who asks it, as
// Standard Webhooks has it.
func (e *endpoint) sign(req *http.Request, id string, body []byte) error {
	now := time.Now()
	req.Header.Set(standardwebhooks.HeaderWebhookID, id)
	req.Header.Set(standardwebhooks.HeaderWebhookTimestamp, strconv.FormatInt(now.Unix(), 10))
	if e.signer == nil {
		return nil
	}
	signature, err := e.signer.Sign(id, now, body)
	if err != nil {
		return err
	}
	req.Header.Set(standardwebhooks.HeaderWebhookSignature, signature)
	return nil
}
