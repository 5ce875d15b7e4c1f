package client

import (
	"context"
	"errors"
	"net/http"
	"net/url"

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
	Locality  *Locality  `json:"locality"` // nil where no zone was asked for

	JSON jsontext.Value `json:"-"` // the whole answer
}

// Locality says what an answer prefers. Its instances of the zone stand first.
type Locality struct {
	Zone      string `json:"zone"`
	Instances int    `json:"instances"`  // of the answer that are in the zone
	SpillOver bool   `json:"spill_over"` // the zone has too few that pass: use the others as well
}

// Nearest gives the instances to use: those of the zone that was asked for
// while it has enough of them, else all.
func (d *Discovery) Nearest() []Endpoint {
	if l := d.Locality; l != nil && !l.SpillOver && l.Instances > 0 && l.Instances <= len(d.Instances) {
		return d.Instances[:l.Instances]
	}
	return d.Instances
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

func (f Filter) values() url.Values {
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
	return q
}

// Summary is what a list of services says of one.
type Summary struct {
	Namespace string `json:"namespace"`
	Service   string `json:"service"`
	Revision  uint64 `json:"revision"` // of the last change to its instances
	Instances int    `json:"instances"`
	Passing   int    `json:"passing"`
}

// Discoverable lists the services that the caller may see, of a namespace, or
// of all where it is empty.
func (c *Client) Discoverable(ctx context.Context, namespace string, how Read) ([]Summary, error) {
	q := how.query()
	if namespace != "" {
		q.Set("namespace", namespace)
	}
	items, err := c.pagesOf(ctx, []string{"v1", "discovery"}, q)
	if err != nil {
		return nil, err
	}
	all := make([]Summary, len(items))
	for i, item := range items {
		if err := json.Unmarshal(item, &all[i]); err != nil {
			return nil, unreadable(err)
		}
	}
	return all, nil
}

// Discover finds the instances of a service.
func (c *Client) Discover(ctx context.Context, namespace, service string, f Filter) (*Discovery, error) {
	q := f.values()
	a, err := c.do(ctx, call{method: http.MethodGet, path: []string{"v1", "discovery", namespace, service}, query: q})
	if err != nil {
		return nil, err
	}
	d, err := readDiscovery(a.body)
	if err != nil {
		return nil, err
	}
	return &d, nil
}

// readDiscovery reads the answer to a look-up. One without a list of instances
// is none: it does not say that there is nobody.
func readDiscovery(body []byte) (Discovery, error) {
	d := Discovery{JSON: body}
	var there struct {
		Instances jsontext.Value `json:"instances"`
	}
	err := json.Unmarshal(body, &there)
	if err == nil && there.Instances.Kind() != '[' {
		err = errors.New("it has no list of instances")
	}
	if err == nil {
		err = json.Unmarshal(body, &d)
	}
	if err != nil {
		return d, unreadable(err)
	}
	return d, nil
}
