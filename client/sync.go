package client

import (
	"context"
	"net/http"

	"github.com/go-json-experiment/json/jsontext"
)

// SyncPolicy has the cluster pull policies from its Git source, waits for that,
// and gives the state of the source with how the pull ended.
func (c *Client) SyncPolicy(ctx context.Context) (jsontext.Value, error) {
	a, err := c.do(ctx, call{method: http.MethodPost, path: []string{"v1", "policy", "sync"}, safe: true})
	if err != nil {
		return nil, err
	}
	return a.body, nil
}

// SyncStatus tells how far the Git source of policies has come.
func (c *Client) SyncStatus(ctx context.Context) (jsontext.Value, error) {
	return c.read(ctx, "v1", "policy", "sync")
}
