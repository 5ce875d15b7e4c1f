package client

import (
	"context"
	"net/http"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// OpenBreakGlass lifts the policy's refusals in one namespace for a time. It
// takes the role break-glass.
func (c *Client) OpenBreakGlass(ctx context.Context, namespace string, ttl time.Duration, reason string) (*Record, error) {
	body, err := json.Marshal(struct {
		Namespace string `json:"namespace"`
		TTL       string `json:"ttl"`
		Reason    string `json:"reason"`
	}{namespace, ttl.String(), reason})
	if err != nil {
		return nil, err
	}
	return c.change(ctx, call{method: http.MethodPost, path: []string{"v1", "break-glass"}, body: body, keyed: true})
}

// EndBreakGlass has the policy's refusals count again in a namespace.
func (c *Client) EndBreakGlass(ctx context.Context, namespace string) error {
	_, err := c.do(ctx, call{method: http.MethodDelete, path: []string{"v1", "break-glass", namespace}, keyed: true})
	return err
}

// BreakGlass lists the namespaces in which the policy's refusals are lifted.
func (c *Client) BreakGlass(ctx context.Context) ([]jsontext.Value, error) {
	return c.pages(ctx, []string{"v1", "break-glass"}, Read{Linearizable: true})
}
