package provider

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"

	"github.com/muster-registry/muster/fault"
)

const (
	maxKeys     = 100             // in one set
	maxTried    = 4               // keys that one token without a kid is held against
	fileEvery   = time.Minute     // between two looks at a key set in a file
	gap         = time.Second     // least time between two fetches, whoever wants them
	patience    = 3 * time.Second // for which a caller waits for a fetch under way
	maxPatient  = 64              // callers that wait for one
	firstRetry  = 500 * time.Millisecond
	longestWait = 10 * time.Second
)

// keys are what an issuer signs with, as last confirmed at a time.
type keys struct {
	all  []key
	byID map[string][]key
	at   time.Time
}

// key is one public key and what it may verify.
type key struct {
	id        string
	algorithm jose.SignatureAlgorithm // "": any that fits
	public    any
}

// keyring keeps an issuer's keys. They are fetched in the background, in turn,
// by one goroutine.
type keyring struct {
	name    string
	source  func(context.Context) (*keys, error)
	maxAge  time.Duration // 0: a file's keys, which hold until it changes
	every   time.Duration
	logger  *slog.Logger
	current atomic.Pointer[keys] // nil: there were none yet
	up      atomic.Bool          // the last fetch brought keys
	failed  atomic.Bool          // it did not
	waiting atomic.Int32
	nudge   chan struct{}

	mu   sync.Mutex
	now  chan struct{} // closed when the fetch under way has ended; nil: there is none
	next chan struct{} // closed when the fetch that begins next has ended
}

func newKeyring(c *Config, client *http.Client, logger *slog.Logger) (*keyring, error) {
	k := &keyring{name: c.Name, logger: logger, maxAge: c.KeyMaxAge, every: c.KeyMaxAge / 3, nudge: make(chan struct{}, 1), next: make(chan struct{})}
	switch {
	case c.JWKSFile != "":
		k.maxAge, k.every = 0, fileEvery
		k.source = func(context.Context) (*keys, error) { return fromFile(c.JWKSFile) }
		first, err := fromFile(c.JWKSFile)
		if err != nil {
			return nil, fmt.Errorf("identity.providers[%s].jwks_file: %w", c.Name, err)
		}
		k.current.Store(first)
		k.up.Store(true)
	case c.JWKSURL != "":
		k.source = func(ctx context.Context) (*keys, error) { return fromURL(ctx, client, c.JWKSURL) }
	default:
		k.source = func(ctx context.Context) (*keys, error) { return discover(ctx, c, client) }
	}
	return k, nil
}

// discover finds and fetches the keys as OpenID Connect has it. The document is
// read each time: it is where a provider says that its keys have moved.
func discover(ctx context.Context, c *Config, client *http.Client) (*keys, error) {
	p, err := oidc.NewProvider(oidc.ClientContext(ctx, client), c.Issuer)
	if err != nil {
		return nil, fmt.Errorf("discovery: %.500s", err.Error())
	}
	var document struct {
		JWKS string `json:"jwks_uri"`
	}
	if err := p.Claims(&document); err != nil {
		return nil, fmt.Errorf("discovery: %w", err)
	}
	if err := c.reachable(document.JWKS); err != nil {
		return nil, fmt.Errorf("discovery: jwks_uri %w", err)
	}
	return fromURL(ctx, client, document.JWKS)
}

func fromURL(ctx context.Context, client *http.Client, url string) (*keys, error) {
	at := time.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("the keys: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the keys: %s", resp.Status)
	}
	return parseKeys(body, at)
}

func fromFile(path string) (*keys, error) {
	at := time.Now()
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	body, err := io.ReadAll(io.LimitReader(f, answerMax+1))
	if err != nil {
		return nil, err
	}
	if len(body) > answerMax {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, answerMax)
	}
	return parseKeys(body, at)
}

// parseKeys reads a JWK set (RFC 7517). Keys of kinds that are not known, for
// encryption, too weak, or too large to verify with are left out, as the RFC
// advises; a set without any that can be used is an error.
func parseKeys(body []byte, at time.Time) (*keys, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(body, &set); err != nil {
		return nil, fmt.Errorf("is not a JWK set: %w", err)
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("has %d keys; at most %d are taken", len(set.Keys), maxKeys)
	}
	k := &keys{byID: map[string][]key{}, at: at}
	for _, raw := range set.Keys {
		var j jose.JSONWebKey
		if j.UnmarshalJSON(raw) != nil || j.Use == "enc" || !usable(j.Public().Key) {
			continue
		}
		one := key{id: j.KeyID, algorithm: jose.SignatureAlgorithm(j.Algorithm), public: j.Public().Key}
		k.all = append(k.all, one)
		k.byID[j.KeyID] = append(k.byID[j.KeyID], one)
	}
	if len(k.all) == 0 {
		return nil, errors.New("has no key that signatures can be verified with")
	}
	return k, nil
}

func usable(public any) bool {
	switch p := public.(type) {
	case *rsa.PublicKey:
		return p.N.BitLen() >= 2048 && p.N.BitLen() <= 8192
	case *ecdsa.PublicKey, ed25519.PublicKey:
		return true
	}
	return false
}

// fits reports whether a signature by the algorithm can be this key's.
func (k key) fits(a jose.SignatureAlgorithm) bool {
	if k.algorithm != "" && k.algorithm != a {
		return false
	}
	switch p := k.public.(type) {
	case *rsa.PublicKey:
		return a[0] == 'R' || a[0] == 'P'
	case *ecdsa.PublicKey:
		return string(a) == map[int]string{256: "ES256", 384: "ES384", 521: "ES512"}[p.Curve.Params().BitSize]
	case ed25519.PublicKey:
		return a == jose.EdDSA
	}
	return false
}

// candidates are the public keys that may have signed a token with that kid
// ("": none was named). Keys that were not confirmed for too long are nobody's.
func (k *keyring) candidates(id string, a jose.SignatureAlgorithm, now time.Time) ([]any, error) {
	set := k.current.Load()
	if set == nil || k.maxAge > 0 && now.Sub(set.at) > k.maxAge {
		return nil, away(k.name, errUnknownKey)
	}
	named := set.byID[id]
	if id == "" {
		named = set.all
	}
	var out []any
	for _, one := range named {
		if one.fits(a) && len(out) < maxTried {
			out = append(out, one.public)
		}
	}
	switch {
	case len(out) > 0:
		return out, nil
	case k.up.Load():
		return nil, fault.Wrap(fault.Unauthenticated, errors.Join(errUnknownKey, errTransient), "the token is signed with a key that its issuer does not publish")
	}
	return nil, away(k.name, errUnknownKey)
}

// await waits for the fetch that is under way, if that brings what is missing,
// or else for the next one, and reports whether there may be something new. It
// does not wait for a provider that is away, nor in a crowd.
func (k *keyring) await(ctx context.Context, missing func() bool) bool {
	if k.failed.Load() {
		return false
	}
	defer k.waiting.Add(-1)
	if k.waiting.Add(1) > maxPatient {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	k.mu.Lock()
	now, next := k.now, k.next
	k.mu.Unlock()
	if now != nil {
		select {
		case <-now:
		case <-ctx.Done():
			return false
		}
	}
	if !missing() {
		return true
	}
	select {
	case k.nudge <- struct{}{}:
	default:
	}
	select {
	case <-next:
		return true
	case <-ctx.Done():
		return false
	}
}

// run fetches the keys, again and again, until the context ends.
func (k *keyring) run(ctx context.Context) {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = firstRetry, longestWait
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-k.nudge:
			if k.failed.Load() {
				continue // the back-off says when
			}
		}
		began := time.Now()
		wait := k.every
		if err := k.fetch(ctx); err != nil {
			wait = min(pause.NextBackOff(), k.every)
		} else {
			pause.Reset()
		}
		// Nothing begins within the gap, and what is asked for meanwhile, after it.
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Until(began.Add(min(gap, wait)))):
		}
		timer.Reset(time.Until(began.Add(wait)))
	}
}

func (k *keyring) fetch(ctx context.Context) error {
	k.mu.Lock()
	k.now, k.next = k.next, make(chan struct{})
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		close(k.now)
		k.now = nil
		k.mu.Unlock()
	}()

	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	set, err := k.source(ctx)
	if err != nil {
		k.up.Store(false)
		if !k.failed.Swap(true) {
			k.logger.Warn("the keys of an identity provider could not be read; sessions go on, nobody new is let in once the keys are too old", "error", err)
		}
		return err
	}
	k.current.Store(set)
	k.failed.Store(false)
	if !k.up.Swap(true) {
		k.logger.Info("the identity provider is there", "keys", len(set.all))
	}
	return nil
}
