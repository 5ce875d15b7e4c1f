package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/muster-registry/muster/fault"
)

// Kind is a kind of record.
type Kind string

// The kinds of records.
const (
	Service  Kind = "service"
	Version  Kind = "version"
	Instance Kind = "instance"
	Webhook  Kind = "webhook" // an outside policy endpoint; it has no namespace
	Quota    Kind = "quota"   // the one document of rate limits; neither namespace nor name matter
	Role     Kind = "role"    // a rule that gives a role to credentials; it has no namespace
	Schema   Kind = "schema"  // a JSON Schema: its name is the kind of record that it is for, its namespace may be *
)

// Ref names one record. Service is the service a version or an instance
// belongs to, and empty for a service itself.
type Ref struct {
	Kind      Kind
	Namespace string
	Service   string
	Name      string
}

// String is kind/name, with the service before the name where there is one.
func (r Ref) String() string {
	if r.Service != "" {
		return string(r.Kind) + "/" + r.Service + "/" + r.Name
	}
	return string(r.Kind) + "/" + r.Name
}

func (r Ref) path() []string {
	if r.Kind == Schema {
		return []string{"v1", "schemas", r.Namespace, r.Name}
	}
	if r.Kind == Webhook {
		return []string{"v1", "webhooks", r.Name}
	}
	if r.Kind == Role {
		return []string{"v1", "roles", r.Name}
	}
	if r.Kind == Quota {
		return []string{"v1", "quotas"}
	}
	p := []string{"v1", "namespaces", r.Namespace, "services"}
	if r.Kind == Service {
		return append(p, r.Name)
	}
	return append(p, r.Service, string(r.Kind)+"s", r.Name)
}

// Record is a record as the cluster stores it: the JSON and what the client
// itself needs of it.
type Record struct {
	JSON     jsontext.Value
	Revision uint64
	Created  bool // the change made it new
}

// Read says how fresh a read must be. The zero value is a local read.
type Read struct {
	Linearizable bool
	MinRevision  uint64        // wait for this revision
	MaxStaleness time.Duration // 0: any
}

func (r Read) query() url.Values {
	q := url.Values{}
	if r.Linearizable {
		q.Set("consistency", "linearizable")
	}
	if r.MinRevision > 0 {
		q.Set("min_revision", strconv.FormatUint(r.MinRevision, 10))
	}
	if r.MaxStaleness > 0 {
		q.Set("max_staleness", r.MaxStaleness.String())
	}
	return q
}

// Write says under which condition a change is made. The zero value is none.
type Write struct {
	IfRevision     uint64 // only if the record has this revision; else revision_mismatch
	CreateOnly     bool   // only if there is no such record; else revision_mismatch
	CreateService  bool   // of an instance: make the service when it is unknown
	DryRun         bool   // decide, and tell what would be stored; change nothing
	IdempotencyKey string // empty: one is made
}

func (w Write) apply(k *call) {
	k.header = http.Header{}
	if w.IfRevision > 0 {
		k.header.Set("If-Match", `"`+strconv.FormatUint(w.IfRevision, 10)+`"`)
	}
	if w.CreateOnly {
		k.header.Set("If-None-Match", "*")
	}
	if w.IdempotencyKey != "" {
		k.header.Set("Idempotency-Key", w.IdempotencyKey)
	}
	k.query = url.Values{}
	if w.CreateService {
		k.query.Set("create_service", "true")
	}
	if w.DryRun {
		k.query.Set("dry_run", "true")
	}
}

// Get reads one record.
func (c *Client) Get(ctx context.Context, r Ref, how Read) (*Record, error) {
	a, err := c.do(ctx, call{method: http.MethodGet, path: r.path(), query: how.query()})
	if err != nil {
		return nil, err
	}
	return a.record()
}

// Put creates or replaces a record. body is its JSON as the API takes it.
func (c *Client) Put(ctx context.Context, r Ref, body []byte, w Write) (*Record, error) {
	k := call{method: http.MethodPut, path: r.path(), body: body, keyed: true}
	w.apply(&k)
	a, err := c.do(ctx, k)
	if err != nil {
		return nil, err
	}
	return a.record()
}

// CheckSchema asks which records would not meet a JSON Schema; nothing is
// stored. The answer is {"checked","failing","failures":[…]}.
func (c *Client) CheckSchema(ctx context.Context, r Ref, body []byte) (jsontext.Value, error) {
	a, err := c.do(ctx, call{method: http.MethodPut, path: r.path(), query: url.Values{"check": {"true"}}, body: body, safe: true})
	if err != nil {
		return nil, err
	}
	return a.body, nil
}

// Delete removes a record, and with a service all that it holds.
func (c *Client) Delete(ctx context.Context, r Ref, w Write) error {
	k := call{method: http.MethodDelete, path: r.path(), keyed: true}
	w.apply(&k)
	_, err := c.do(ctx, k)
	return err
}

// SetStatus sets the status of an instance: passing, warning, critical or
// maintenance.
func (c *Client) SetStatus(ctx context.Context, r Ref, status string) (*Record, error) {
	body, err := json.Marshal(map[string]string{"status": status})
	if err != nil {
		return nil, err
	}
	a, err := c.do(ctx, call{method: http.MethodPut, path: append(r.path(), "status"), body: body, keyed: true})
	if err != nil {
		return nil, err
	}
	return a.record()
}

// Heartbeat renews the lease of an instance. The error instance_not_found says
// that it must register again.
func (c *Client) Heartbeat(ctx context.Context, r Ref) error {
	_, err := c.do(ctx, call{method: http.MethodPost, path: append(r.path(), "heartbeat"), safe: true})
	return err
}

// Definition reads the document of a version, exactly as it was stored.
func (c *Client) Definition(ctx context.Context, r Ref) (document []byte, contentType string, err error) {
	a, err := c.do(ctx, call{method: http.MethodGet, path: append(r.path(), "document")})
	if err != nil {
		return nil, "", err
	}
	return a.body, a.header.Get("Content-Type"), nil
}

// List reads all records of a kind, page by page: services of a namespace (of
// all where it is empty), versions or instances of a service, the schemas of
// all namespaces, the webhooks, the role
// rules.
func (c *Client) List(ctx context.Context, kind Kind, namespace, service string, how Read) ([]jsontext.Value, error) {
	path := []string{"v1", "namespaces", namespace, "services"}
	switch {
	case kind == Schema:
		path = []string{"v1", "schemas"}
	case kind == Role:
		path = []string{"v1", "roles"}
	case kind == Webhook:
		path = []string{"v1", "webhooks"}
	case kind != Service:
		path = append(path, service, string(kind)+"s")
	case namespace == "":
		path = []string{"v1", "services"}
	}
	return c.pages(ctx, path, how)
}

func (c *Client) pages(ctx context.Context, path []string, how Read) ([]jsontext.Value, error) {
	return c.pagesOf(ctx, path, how.query())
}

func (c *Client) pagesOf(ctx context.Context, path []string, q url.Values) ([]jsontext.Value, error) {
	items := []jsontext.Value{}
	for {
		a, err := c.do(ctx, call{method: http.MethodGet, path: path, query: q})
		if err != nil {
			return nil, err
		}
		var page struct {
			Items []jsontext.Value `json:"items"`
			Next  string           `json:"next_page_token"`
		}
		if err := json.Unmarshal(a.body, &page); err != nil {
			return nil, unreadable(err)
		}
		items = append(items, page.Items...)
		if page.Next == "" {
			return items, nil
		}
		q.Set("page_token", page.Next)
	}
}

func (a *answer) record() (*Record, error) {
	var m struct {
		Revision uint64 `json:"revision"`
	}
	if err := json.Unmarshal(a.body, &m); err != nil {
		return nil, unreadable(err)
	}
	return &Record{JSON: a.body, Revision: m.Revision, Created: a.status == http.StatusCreated}, nil
}

func unreadable(err error) error {
	return fault.Wrap(fault.Internal, err, "the answer cannot be read; is the address that of a muster node, of a version this client knows?")
}
