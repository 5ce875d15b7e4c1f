package client

import (
	"context"
	"encoding/base64"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Policy is a policy on its way to the cluster. The bytes of the body are sent
// as they are, since a signature is over them.
type Policy struct {
	Body      []byte  // JSON as [Client.Push] takes it, or an OPA bundle
	Bundle    bool    // the body is a gzipped OPA bundle
	Signature []byte  // detached OpenPGP signature over the body; nil: none
	Activate  bool    // make it the active one at once
	Shadow    float64 // share of the decisions it is evaluated for without effect; 0: none
}

// PushPolicy stores a new policy revision.
func (c *Client) PushPolicy(ctx context.Context, p Policy) (*Record, error) {
	k := call{method: http.MethodPost, path: []string{"v1", "policy", "revisions"}, query: url.Values{}, header: http.Header{}, body: p.Body}
	if p.Activate {
		k.query.Set("activate", "true")
	}
	if p.Shadow > 0 {
		k.query.Set("shadow", "true")
		k.query.Set("share", strconv.FormatFloat(p.Shadow, 'g', -1, 64))
	}
	if p.Bundle {
		k.header.Set("Content-Type", "application/gzip")
	}
	if p.Signature != nil {
		k.header.Set("Muster-Signature", base64.StdEncoding.EncodeToString(p.Signature))
	}
	return c.change(ctx, k)
}

// PolicyKey is a key that may sign policies. Only the fields that a caller
// gives are sent; the cluster adds the others.
type PolicyKey struct {
	Name          string    `json:"-"`
	Kind          string    `json:"kind,omitempty"` // openpgp, opa, ssh
	Material      string    `json:"material,omitempty"`
	Algorithm     string    `json:"algorithm,omitempty"` // of the kind opa: RS256, …
	Scope         string    `json:"scope,omitempty"`     // of the kind opa
	NotAfter      time.Time `json:"not_after,omitzero"`
	RevokedReason string    `json:"revoked_reason,omitempty"`
}

// TrustKey makes a key one that may sign policies, or changes it.
func (c *Client) TrustKey(ctx context.Context, k PolicyKey) (*Record, error) {
	body, err := json.Marshal(k)
	if err != nil {
		return nil, err
	}
	return c.change(ctx, call{method: http.MethodPut, path: []string{"v1", "policy", "keys", k.Name}, body: body, keyed: true})
}

// RevokeKey refuses all signatures by the key from now on, for good.
func (c *Client) RevokeKey(ctx context.Context, name, reason string) (*Record, error) {
	return c.TrustKey(ctx, PolicyKey{Name: name, RevokedReason: reason})
}

// DeleteKey forgets a key.
func (c *Client) DeleteKey(ctx context.Context, name string) error {
	_, err := c.do(ctx, call{method: http.MethodDelete, path: []string{"v1", "policy", "keys", name}, keyed: true})
	return err
}

// PolicyKeys lists the keys that may sign policies, or might before they were revoked.
func (c *Client) PolicyKeys(ctx context.Context) ([]jsontext.Value, error) {
	return c.pages(ctx, []string{"v1", "policy", "keys"}, Read{})
}

// RequireSignature has the cluster refuse policies that are not signed, or
// ends that.
func (c *Client) RequireSignature(ctx context.Context, required bool) error {
	k := call{method: http.MethodDelete, path: []string{"v1", "policy", "requirements", "signature"}, keyed: true}
	if required {
		k.method, k.body = http.MethodPut, []byte("{}")
	}
	_, err := c.do(ctx, k)
	return err
}
