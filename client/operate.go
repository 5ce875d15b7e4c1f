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

// Outstanding says on which nodes a revocation may not be in force yet. None:
// no node accepts the credential any more.
type Outstanding struct {
	Pending   []string  `json:"pending,omitzero"`     // nodes that could not be reached; if they run, they may still accept it
	InForceAt time.Time `json:"in_force_at,omitzero"` // from then on those do not answer either; zero: not by itself
}

// Revocation says that credentials are no longer good. What the caller gives is
// sent; Name and Outstanding are the cluster's.
type Revocation struct {
	Kind      string    `json:"kind"` // jti, subject, serial, token, spiffe, key
	Value     string    `json:"value"`
	Reason    string    `json:"reason"`
	ExpiresAt time.Time `json:"expires_at,omitzero"`

	Name      string    `json:"name,omitzero"`
	Revision  uint64    `json:"revision,omitzero"`
	CreatedAt time.Time `json:"created_at,omitzero"`
	CreatedBy string    `json:"created_by,omitzero"`

	Outstanding
}

// inForce is the query and the patience of a call that revokes.
func inForce(k call, wait time.Duration) call {
	if wait > 0 {
		k.query, k.wait = url.Values{"wait": {wait.String()}}, wait
	}
	return k
}

// Revoke refuses a credential from now on. It returns when no node accepts it
// any more, or after wait, with those that may; wait 0: as long as the node
// waits by itself, 3 s.
func (c *Client) Revoke(ctx context.Context, r Revocation, wait time.Duration) (*Revocation, jsontext.Value, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, nil, err
	}
	a, err := c.do(ctx, inForce(call{method: http.MethodPost, path: []string{"v1", "revocations"}, body: body, keyed: true}, wait))
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

// AuditHead is a line of a node's audit trail that the cluster knows.
type AuditHead struct {
	Node string    `json:"node"`
	Seq  uint64    `json:"seq"`
	Hash string    `json:"hash"`
	At   time.Time `json:"at"`
}

// AuditHeads tells where the nodes' audit trails have come to, as far as the
// cluster was told. It is linearizable.
func (c *Client) AuditHeads(ctx context.Context) ([]AuditHead, error) {
	a, err := c.do(ctx, call{method: http.MethodGet, path: []string{"v1", "audit", "heads"}, query: url.Values{"consistency": {"linearizable"}}})
	if err != nil {
		return nil, err
	}
	var list struct {
		Items []AuditHead `json:"items"`
	}
	if err := json.Unmarshal(a.body, &list); err != nil {
		return nil, unreadable(err)
	}
	return list.Items, nil
}

// ForgetAuditHead has the audit trail of a node accepted as it is from here on.
func (c *Client) ForgetAuditHead(ctx context.Context, node string) error {
	_, err := c.do(ctx, call{method: http.MethodDelete, path: []string{"v1", "audit", "heads", node}})
	return err
}

// Certificate is one that a node had made for a workload.
type Certificate struct {
	ID        string    `json:"id"`
	Serial    string    `json:"serial"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	Hosts     []string  `json:"hosts"`
	PEM       string    `json:"certificate"` // with what is between it and its root
	Authority string    `json:"authority"`   // PEM of the root, by which others verify it
}

// RequestCertificate has a certificate made for the key of a signing request
// (PEM). id "": that of the request, or the caller's own; ttl 0: as long as may
// be.
func (c *Client) RequestCertificate(ctx context.Context, csr []byte, id string, ttl time.Duration) (*Certificate, error) {
	ask := struct {
		CSR string `json:"csr"`
		ID  string `json:"id,omitempty"`
		TTL string `json:"ttl,omitempty"`
	}{CSR: string(csr), ID: id}
	if ttl != 0 {
		ask.TTL = ttl.String()
	}
	body, err := json.Marshal(ask)
	if err != nil {
		return nil, err
	}
	// One that was made and got lost is of no use to anybody: no key goes with it.
	a, err := c.do(ctx, call{method: http.MethodPost, path: []string{"v1", "certificates"}, body: body, safe: true})
	if err != nil {
		return nil, err
	}
	made := new(Certificate)
	if err := json.Unmarshal(a.body, made); err != nil {
		return nil, unreadable(err)
	}
	return made, nil
}

// BuiltinPolicy reads the built-in policy of the roles: modules by name.
func (c *Client) BuiltinPolicy(ctx context.Context) (jsontext.Value, error) {
	a, err := c.do(ctx, call{method: http.MethodGet, path: []string{"v1", "policy", "builtin"}})
	if err != nil {
		return nil, err
	}
	return a.body, nil
}

// PolicyLibrary reads the built-in rules about API definitions, as
// {"rules":[…],"modules":{…}}.
func (c *Client) PolicyLibrary(ctx context.Context) (jsontext.Value, error) {
	a, err := c.do(ctx, call{method: http.MethodGet, path: []string{"v1", "policy", "library"}})
	if err != nil {
		return nil, err
	}
	return a.body, nil
}

// RevokeToken ends a token. It returns as Revoke does.
func (c *Client) RevokeToken(ctx context.Context, id string, wait time.Duration) (*Outstanding, error) {
	a, err := c.do(ctx, inForce(call{method: http.MethodDelete, path: []string{"v1", "tokens", id}}, wait))
	if err != nil {
		return nil, err
	}
	o := new(Outstanding)
	if a.status == http.StatusAccepted {
		if err := json.Unmarshal(a.body, o); err != nil {
			return nil, unreadable(err)
		}
	}
	return o, nil
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
