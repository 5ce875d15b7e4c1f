package client

import (
	"context"
	"net/http"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Filter narrows a discovery. The zero value asks for the passing instances.
type Filter struct {
	Read
	AnyStatus bool
	Version   string
	Tags      []string // all of them
	Zone      string   // instances of this zone come first
}

// Discovery is the answer to a look-up.
type Discovery struct {
	Namespace string     `json:"namespace"`
	Service   string     `json:"service"`
	Revision  uint64     `json:"revision"`
	Instances []Endpoint `json:"instances"`

	JSON jsontext.Value `json:"-"` // the whole answer
}

// Endpoint is where an instance is reached, and what helps to choose.
type Endpoint struct {
	ID       string            `json:"id"`
	Address  string            `json:"address"`
	Port     int               `json:"port"`
	Version  string            `json:"version"`
	Zone     string            `json:"zone"`
	Weight   int               `json:"weight"`
	Status   string            `json:"status"`
	Tags     []string          `json:"tags"`
	Metadata map[string]string `json:"metadata"`
}

// Discover finds the instances of a service.
func (c *Client) Discover(ctx context.Context, namespace, service string, f Filter) (*Discovery, error) {
	q := f.query()
	if f.AnyStatus {
		q.Set("status", "any")
	}
	if f.Version != "" {
		q.Set("version", f.Version)
	}
	if f.Zone != "" {
		q.Set("zone", f.Zone)
	}
	for _, t := range f.Tags {
		q.Add("tag", t)
	}
	a, err := c.do(ctx, call{method: http.MethodGet, path: []string{"v1", "discovery", namespace, service}, query: q})
	if err != nil {
		return nil, err
	}
	d := Discovery{JSON: a.body}
	if err := json.Unmarshal(a.body, &d); err != nil {
		return nil, unreadable(err)
	}
	return &d, nil
}
