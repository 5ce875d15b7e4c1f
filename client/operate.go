package client

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/muster-registry/muster/fault"
)

// Ready returns nil when the node that answers first is ready, else
// not_ready with its reason.
func (c *Client) Ready(ctx context.Context) error {
	a, err := c.do(ctx, call{method: http.MethodGet, path: []string{"readyz"}, anyStatus: true})
	if err != nil {
		return err
	}
	if a.status == http.StatusOK {
		return nil
	}
	return problem(&http.Response{StatusCode: a.status, Status: http.StatusText(a.status), Header: a.header}, a.body)
}

// Push stores a new policy revision, which activates it at once where asked.
// content is {"modules":{…},"data":{…},"note":"…"}.
func (c *Client) Push(ctx context.Context, content []byte, activate bool) (*Record, error) {
	q := url.Values{}
	if activate {
		q.Set("activate", "true")
	}
	return c.change(ctx, call{method: http.MethodPost, path: []string{"v1", "policy", "revisions"}, query: q, body: content})
}

// Activate makes a policy revision the active one on every node.
func (c *Client) Activate(ctx context.Context, revision uint64) (*Record, error) {
	return c.change(ctx, call{method: http.MethodPost, path: []string{"v1", "policy", "revisions", strconv.FormatUint(revision, 10), "activate"}})
}

// Rollback makes the policy revision active that was so before.
func (c *Client) Rollback(ctx context.Context) (*Record, error) {
	return c.change(ctx, call{method: http.MethodPost, path: []string{"v1", "policy", "rollback"}})
}

// Policies lists the policy revisions.
func (c *Client) Policies(ctx context.Context) ([]jsontext.Value, error) {
	return c.pages(ctx, []string{"v1", "policy", "revisions"}, Read{})
}

// Policy reads one policy revision with its modules and data.
func (c *Client) Policy(ctx context.Context, revision uint64) (jsontext.Value, error) {
	return c.read(ctx, "v1", "policy", "revisions", strconv.FormatUint(revision, 10))
}

// Authorize asks the active policy for a decision on exactly the input given.
// body is {"input":{…}} with an optional "entrypoint".
func (c *Client) Authorize(ctx context.Context, body []byte) (jsontext.Value, error) {
	a, err := c.do(ctx, call{method: http.MethodPost, path: []string{"v1", "authorize"}, body: body, safe: true})
	if err != nil {
		return nil, err
	}
	return a.body, nil
}

// Decision reads the record of a decision that any node made, without
// credentials; with rules, what became of each rule as well.
func (c *Client) Decision(ctx context.Context, id string, rules bool) (jsontext.Value, error) {
	q := url.Values{}
	if rules {
		q.Set("explain", "rules")
	}
	a, err := c.do(ctx, call{method: http.MethodGet, path: []string{"v1", "decisions", id}, query: q})
	if err != nil {
		return nil, err
	}
	return a.body, nil
}

// Status describes the cluster and each of its nodes.
func (c *Client) Status(ctx context.Context) (jsontext.Value, error) {
	return c.read(ctx, "v1", "cluster", "status")
}

// Members lists the members of the cluster.
func (c *Client) Members(ctx context.Context) (jsontext.Value, error) {
	return c.read(ctx, "v1", "cluster", "members")
}

// TransferLeader hands the leadership to the node named, or to the one that is
// furthest where none is.
func (c *Client) TransferLeader(ctx context.Context, to string) error {
	body := []byte("{}")
	if to != "" {
		var err error
		if body, err = json.Marshal(map[string]string{"to": to}); err != nil {
			return err
		}
	}
	_, err := c.do(ctx, call{method: http.MethodPost, path: []string{"v1", "cluster", "leader", "transfer"}, body: body})
	return err
}

// RemoveMember takes a node out of the cluster for good.
func (c *Client) RemoveMember(ctx context.Context, id string) error {
	_, err := c.do(ctx, call{method: http.MethodDelete, path: []string{"v1", "cluster", "members", id}})
	return err
}

// Token is a stored credential. Text is only known when it was just made.
type Token struct {
	ID         string    `json:"id"`
	Text       string    `json:"token,omitempty"`
	Role       string    `json:"role"`
	Namespaces []string  `json:"namespaces"`
	ExpiresAt  time.Time `json:"expires_at,omitzero"`
}

// CreateToken makes a token. ttl 0: the cluster's own default.
func (c *Client) CreateToken(ctx context.Context, role string, namespaces []string, ttl time.Duration) (jsontext.Value, error) {
	body := struct {
		Role       string   `json:"role"`
		Namespaces []string `json:"namespaces,omitempty"`
		TTL        string   `json:"ttl,omitempty"`
	}{Role: role, Namespaces: namespaces}
	if ttl != 0 {
		body.TTL = ttl.String()
	}
	b, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	a, err := c.do(ctx, call{method: http.MethodPost, path: []string{"v1", "tokens"}, body: b})
	if err != nil {
		return nil, err
	}
	return a.body, nil
}

// Tokens lists the stored tokens, without their texts.
func (c *Client) Tokens(ctx context.Context) ([]jsontext.Value, error) {
	return c.pages(ctx, []string{"v1", "tokens"}, Read{})
}

// Revocation says that credentials are no longer good. What the caller gives is
// sent; Name, Pending and InForceAt are the cluster's.
type Revocation struct {
	Kind      string    `json:"kind"` // jti, subject, serial, token, spiffe, key
	Value     string    `json:"value"`
	Reason    string    `json:"reason"`
	ExpiresAt time.Time `json:"expires_at,omitzero"`

	Name      string    `json:"name,omitzero"`
	Revision  uint64    `json:"revision,omitzero"`
	CreatedAt time.Time `json:"created_at,omitzero"`
	CreatedBy string    `json:"created_by,omitzero"`

	Pending   []string  `json:"pending,omitzero"`     // nodes that could not be reached
	InForceAt time.Time `json:"in_force_at,omitzero"` // from then on those do not answer either
}

// Revoke refuses a credential from now on. When it returns, every node that
// lives does; those that could not be reached are listed.
func (c *Client) Revoke(ctx context.Context, r Revocation) (*Revocation, jsontext.Value, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, nil, err
	}
	a, err := c.do(ctx, call{method: http.MethodPost, path: []string{"v1", "revocations"}, body: body, keyed: true})
	if err != nil {
		return nil, nil, err
	}
	done := new(Revocation)
	if err := json.Unmarshal(a.body, done); err != nil {
		return nil, nil, unreadable(err)
	}
	return done, a.body, nil
}

// Revocations lists what is revoked.
func (c *Client) Revocations(ctx context.Context) ([]jsontext.Value, error) {
	return c.pages(ctx, []string{"v1", "revocations"}, Read{})
}

// Unrevoke accepts a credential again.
func (c *Client) Unrevoke(ctx context.Context, name string) error {
	_, err := c.do(ctx, call{method: http.MethodDelete, path: []string{"v1", "revocations", name}, keyed: true})
	return err
}

// BuiltinPolicy reads the built-in policy of the roles: modules by name.
func (c *Client) BuiltinPolicy(ctx context.Context) (jsontext.Value, error) {
	a, err := c.do(ctx, call{method: http.MethodGet, path: []string{"v1", "policy", "builtin"}})
	if err != nil {
		return nil, err
	}
	return a.body, nil
}

// RevokeToken ends a token.
func (c *Client) RevokeToken(ctx context.Context, id string) error {
	_, err := c.do(ctx, call{method: http.MethodDelete, path: []string{"v1", "tokens", id}})
	return err
}

// SaveSnapshot streams a snapshot of the whole cluster; size is -1 when it is
// not known. The caller closes the stream; an error while reading it means
// that the snapshot is not whole.
func (c *Client) SaveSnapshot(ctx context.Context) (stream io.ReadCloser, size int64, err error) {
	res, err := c.open(ctx, call{method: http.MethodGet, path: []string{"v1", "snapshot"}})
	if err != nil {
		return nil, 0, err
	}
	return res.Body, res.ContentLength, nil
}

// RestoreSnapshot puts the whole cluster back to a snapshot. force allows it
// over a cluster that holds data or has another id; dryRun only tells.
func (c *Client) RestoreSnapshot(ctx context.Context, stream io.Reader, force, dryRun bool) (jsontext.Value, error) {
	q := url.Values{"dry_run": {strconv.FormatBool(dryRun)}}
	if force {
		q.Set("force", "true")
	}
	// A stream is not sent twice, so an address must answer first.
	if err := c.Ready(ctx); err != nil {
		return nil, err
	}
	res, err := c.open(ctx, call{
		method: http.MethodPut, path: []string{"v1", "snapshot"}, query: q, stream: stream,
		header: http.Header{"Content-Type": {"application/octet-stream"}},
	})
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return nil, fault.Lost(fault.NotReady, err, "the answer broke off; look with muster cluster status whether the restore was made")
	}
	return b, nil
}

func (c *Client) read(ctx context.Context, path ...string) (jsontext.Value, error) {
	a, err := c.do(ctx, call{method: http.MethodGet, path: path})
	if err != nil {
		return nil, err
	}
	return a.body, nil
}

func (c *Client) change(ctx context.Context, k call) (*Record, error) {
	a, err := c.do(ctx, k)
	if err != nil {
		return nil, err
	}
	return a.record()
}

// Code returns the code of an error of the cluster, or empty.
func Code(err error) fault.Code {
	if e, ok := errors.AsType[*fault.Error](err); ok {
		return e.Code
	}
	return ""
}
