package provider

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/sony/gobreaker/v2"
	"golang.org/x/sync/singleflight"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/identity"
)

const (
	rest     = 2 * time.Second  // of an endpoint after failures
	failures = 3                // upon each other, after which it rests
	queue    = 10 * time.Second // for which a question waits for its turn
)

// introspect asks an issuer about opaque tokens (RFC 7662): about each once at
// a time, however many callers present it, and about a bounded number together.
type introspect struct {
	*Config
	client  *http.Client
	logger  *slog.Logger
	asking  singleflight.Group
	turns   chan struct{}
	breaker *gobreaker.CircuitBreaker[claims]
	up      atomic.Bool
}

func newIntrospect(c *Config, client *http.Client, logger *slog.Logger) *introspect {
	i := &introspect{Config: c, client: client, logger: logger, turns: make(chan struct{}, concurrent)}
	i.up.Store(true) // nothing else is known
	i.breaker = gobreaker.NewCircuitBreaker[claims](gobreaker.Settings{
		Name: c.Name, Timeout: rest, MaxRequests: 1,
		ReadyToTrip: func(n gobreaker.Counts) bool { return n.ConsecutiveFailures >= failures },
	})
	return i
}

// principal proves one token. What came of it is handed to keep before the
// last of those who asked for it together gets it; had says what was kept.
func (i *introspect) principal(ctx context.Context, text string, sum [32]byte, now time.Time,
	had func() (*identity.Principal, error), keep func(*identity.Principal, error),
) (*identity.Principal, error) {
	// The answer is for all who wait: the first caller's going must not end it.
	answer := i.asking.DoChan(hex.EncodeToString(sum[:]), func() (any, error) {
		if p, err := had(); p != nil || err != nil {
			return p, err
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), queue)
		defer cancel()
		select {
		case i.turns <- struct{}{}:
			defer func() { <-i.turns }()
		case <-ctx.Done():
			return nil, errBusy
		}
		found, err := i.ask(ctx, text)
		if err != nil {
			return nil, err
		}
		p, err := i.judge(found, now)
		keep(p, err)
		return p, err
	})
	select {
	case <-ctx.Done():
		return nil, fault.Wrap(fault.IdentityProviderUnavailable, ctx.Err(), "the caller has gone before it was identified")
	case r := <-answer:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(*identity.Principal), nil
	}
}

// judge checks what the issuer said about a token; nil: that it is not active.
func (i *introspect) judge(c claims, now time.Time) (*identity.Principal, error) {
	if c == nil {
		return nil, refused("the token is not active: it has expired, was revoked, or is not its issuer's")
	}
	if iss := c.text("iss"); i.Issuer != "" && iss != "" && iss != i.Issuer {
		return nil, refused("the token is not from the issuer it was taken for")
	}
	exp, ok := c.time("exp")
	if _, there := c["exp"]; there && !ok {
		return nil, refused("the token's expiry is not a time")
	}
	return i.Config.principal(c, exp, now)
}

// ask makes the call; nil claims: the token is not active.
func (i *introspect) ask(ctx context.Context, text string) (claims, error) {
	found, err := i.breaker.Execute(func() (claims, error) { return i.call(ctx, text) })
	if err != nil {
		if i.up.Swap(false) {
			i.logger.Warn("an identity provider cannot be asked about tokens; sessions go on, nobody new is let in", "error", err)
		}
		return nil, away(i.Name, err)
	}
	if !i.up.Swap(true) {
		i.logger.Info("the identity provider is there")
	}
	return found, nil
}

func (i *introspect) call(ctx context.Context, text string) (claims, error) {
	form := url.Values{"token": {text}, "token_type_hint": {"access_token"}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, i.IntrospectionURL, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	// RFC 6749, 2.3.1: both are form-encoded before they become Basic.
	req.SetBasicAuth(url.QueryEscape(i.ClientID), url.QueryEscape(i.ClientSecret))
	resp, err := i.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(http.MaxBytesReader(nil, resp.Body, 64<<10))
	if err != nil {
		return nil, fmt.Errorf("the answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the answer is %s; 401 and 403 mean that the endpoint does not know muster by its client_id and secret", resp.Status)
	}
	var answer struct {
		Active *bool `json:"active"`
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.Active == nil {
		return nil, fmt.Errorf("the answer is not RFC 7662's: it does not say whether the token is active")
	}
	if !*answer.Active {
		return nil, nil
	}
	c, err := decodeClaims(body)
	if err != nil {
		return nil, err
	}
	delete(c, "active")
	return c, nil
}
