package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// ActivateIf is [Client.Activate] on the condition that the policy revision
// active is active; revision_mismatch otherwise.
func (c *Client) ActivateIf(ctx context.Context, revision, active uint64) (*Record, error) {
	return c.change(ctx, call{
		method: http.MethodPost, path: []string{"v1", "policy", "revisions", strconv.FormatUint(revision, 10), "activate"},
		header: http.Header{"If-Match": {`"` + strconv.FormatUint(active, 10) + `"`}},
	})
}

// PushShadow stores a new policy revision and has it evaluated beside the
// active one, for a share of the decisions, above 0 and at most 1.
func (c *Client) PushShadow(ctx context.Context, content []byte, share float64) (*Record, error) {
	q := url.Values{"shadow": {"true"}, "share": {strconv.FormatFloat(share, 'g', -1, 64)}}
	return c.change(ctx, call{method: http.MethodPost, path: []string{"v1", "policy", "revisions"}, query: q, body: content})
}

// Shadow has a policy revision evaluated beside the active one, without effect,
// for a share of the decisions, above 0 and at most 1.
func (c *Client) Shadow(ctx context.Context, revision uint64, share float64) (*Record, error) {
	body, err := json.Marshal(map[string]float64{"share": share})
	if err != nil {
		return nil, err
	}
	return c.change(ctx, call{method: http.MethodPost, path: []string{"v1", "policy", "revisions", strconv.FormatUint(revision, 10), "shadow"}, body: body, safe: true})
}

// StopShadow ends the shadow.
func (c *Client) StopShadow(ctx context.Context) (*Record, error) {
	return c.change(ctx, call{method: http.MethodDelete, path: []string{"v1", "policy", "shadow"}})
}

// ShadowReport tells how often the shadow decided differently, with examples.
func (c *Client) ShadowReport(ctx context.Context) (jsontext.Value, error) {
	return c.read(ctx, "v1", "policy", "shadow", "report")
}

// DiffPolicies tells how one policy revision differs from another, by rule; to
// 0 is the active one.
func (c *Client) DiffPolicies(ctx context.Context, from, to uint64) (jsontext.Value, error) {
	k := call{method: http.MethodGet, path: []string{"v1", "policy", "revisions", strconv.FormatUint(from, 10), "diff"}}
	if to > 0 {
		k.query = url.Values{"to": {strconv.FormatUint(to, 10)}}
	}
	a, err := c.do(ctx, k)
	if err != nil {
		return nil, err
	}
	return a.body, nil
}

// ReplayPolicy tells how a policy revision would have answered the newest
// decisions of each node, up to limit, made since so long ago. 0 leaves either
// to the cluster.
func (c *Client) ReplayPolicy(ctx context.Context, revision uint64, since time.Duration, limit int) (jsontext.Value, error) {
	ask := struct {
		Limit int    `json:"limit,omitzero"`
		Since string `json:"since,omitzero"`
	}{Limit: limit}
	if since > 0 {
		ask.Since = since.String()
	}
	body, err := json.Marshal(ask)
	if err != nil {
		return nil, err
	}
	a, err := c.do(ctx, call{method: http.MethodPost, path: []string{"v1", "policy", "revisions", strconv.FormatUint(revision, 10), "replay"}, body: body, safe: true})
	if err != nil {
		return nil, err
	}
	return a.body, nil
}
