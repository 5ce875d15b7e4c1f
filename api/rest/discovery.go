package rest

import (
	"net/http"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
)

// discoveryPrefix begins the paths of the hot path.
const discoveryPrefix = "/v1/discovery/"

// discoveryPath finds the hot path without the mux: exactly two segments
// behind the prefix.
func discoveryPath(r *http.Request) (namespace, service string, ok bool) {
	rest, ok := strings.CutPrefix(r.URL.Path, discoveryPrefix)
	if !ok || (r.Method != http.MethodGet && r.Method != http.MethodHead) {
		return "", "", false
	}
	namespace, service, ok = strings.Cut(rest, "/")
	return namespace, service, ok && namespace != "" && service != "" && strings.IndexByte(service, '/') < 0
}

// Discovery is the answer to who provides a service.
type Discovery struct {
	Namespace string `json:"namespace"`
	Service   string `json:"service"`
	Revision  uint64 `json:"revision"`
	Instances []struct {
		ID       string            `json:"id"`
		Address  string            `json:"address"`
		Port     int               `json:"port"`
		Version  string            `json:"version"`
		Zone     string            `json:"zone"`
		Weight   int               `json:"weight"`
		Status   string            `json:"status"`
		Tags     []string          `json:"tags"`
		Metadata map[string]string `json:"metadata"`
	} `json:"instances"`
	// Locality is there where zone was asked for.
	Locality *registry.Locality `json:"locality,omitzero"`
}

// DiscoveredService is one service that the caller may see.
type DiscoveredService struct {
	Namespace string `json:"namespace"`
	Service   string `json:"service"`
	Revision  uint64 `json:"revision"` // of the last change to its instances
	Instances int    `json:"instances"`
	Passing   int    `json:"passing"`
}

// discover answers from bytes that were encoded when the service last changed.
func discover(c *call) error {
	if err := c.view(c.instancesChanged); err != nil {
		return err
	}
	which, err := c.selection()
	if err != nil {
		return err
	}
	f, err := c.Discover(c.namespace, c.service, which)
	if err != nil {
		return err
	}
	if f.Body == nil {
		f.Body = f.Entry.Answer(f.Query)
	}
	return c.record(f.Entry.Revision(), f.Body, f.Decision)
}

// selection reads what narrows discovery.
func (c *call) selection() (which registry.Query, err error) {
	q, err := c.query()
	if err != nil || q == nil {
		return which, err
	}
	switch status := q.Get("status"); status {
	case "", registry.Passing:
	case "any":
		which.AnyStatus = true
	default:
		return which, fault.New(fault.BadRequest, "status must be passing or any, not %q", door.Clip(status))
	}
	which.Version, which.Tags, which.Zone = q.Get("version"), q["tag"], q.Get("zone")
	return which, nil
}

// listDiscovery lists services with counts. With service= it is the other
// spelling of [discover].
func listDiscovery(c *call) error {
	q, err := c.query()
	if err != nil {
		return err
	}
	if err := c.scope(q.Get("namespace"), q.Get("service")); err != nil {
		return err
	}
	if err := c.Permit(c.route.Action, c.route.Kind, c.namespace); err != nil {
		return err
	}
	if c.service != "" {
		return discover(c)
	}
	after, limit, err := c.page()
	if err != nil {
		return err
	}
	if err := c.view(c.listChanged); err != nil {
		return err
	}
	page, next, err := items(after, limit, func(after string, n int) ([]*registry.Entry, string) {
		return c.State.Registry.Entries(c.namespace, after, n)
	}, c.discovered)
	if err != nil {
		return err
	}
	c.list(page, next)
	return nil
}

func (c *call) discovered(e *registry.Entry) ([]byte, error) {
	if !c.Role.Sees(e.Namespace()) {
		return nil, nil
	}
	b, err := json.Marshal(DiscoveredService{
		Namespace: e.Namespace(), Service: e.Service(), Revision: e.Revision(), Instances: len(e.Instances()), Passing: e.Passing(),
	})
	if err != nil || !c.Policed() {
		return b, err
	}
	res := policy.Resource{Kind: registry.KindService, Namespace: e.Namespace(), Name: e.Service(), Payload: b}
	if s, ok := c.State.Registry.Service(e.Namespace(), e.Service()); ok {
		res.Holder = s.JSON
	}
	return c.Visible(res, b)
}

// AuthorizeBody asks for a decision on exactly the input given.
type AuthorizeBody struct {
	Input      jsontext.Value `json:"input"`
	EntryPoint string         `json:"entrypoint,omitempty"` // a/b; by default the one that input.action selects
}

// Verdict is the answer of a policy.
type Verdict struct {
	Allow          bool     `json:"allow"`
	Reasons        []string `json:"reasons"`
	DecisionID     string   `json:"decision_id"`
	PolicyRevision uint64   `json:"policy_revision"`
	Revision       uint64   `json:"revision"`
	// Filtered is what the policy's filtered would put in place of what is
	// stored or returned; absent where it is not defined.
	Filtered jsontext.Value `json:"filtered,omitzero"`
	// BreakGlass says that the policy refuses, for the reasons, and that it is
	// allowed all the same since break-glass is open in the namespace.
	BreakGlass bool `json:"break_glass,omitzero"`
}

func authorize(c *call) error {
	body, err := c.body(c.api.opt.MaxBody)
	if err != nil {
		return err
	}
	var ask AuthorizeBody
	if err := registry.DecodeStrict(body, &ask); err != nil {
		return err
	}
	if len(ask.Input) == 0 {
		return fault.Invalid("/input", "give the input document")
	}
	if err := c.view(nil); err != nil {
		return err
	}
	d, err := c.Ask(ask.EntryPoint, ask.Input)
	if err != nil {
		return err
	}
	v := Verdict{Allow: d.Allow, Reasons: d.Reasons, DecisionID: d.ID, PolicyRevision: d.PolicyRevision, Revision: c.State.Revision, Filtered: d.Filtered, BreakGlass: d.BreakGlass}
	if v.Reasons == nil {
		v.Reasons = []string{}
	}
	return c.json(http.StatusOK, v)
}

// json encodes what is not stored in encoded form.
func (c *call) json(status int, v any) error {
	b, err := json.Marshal(v, json.Deterministic(true))
	if err != nil {
		return err
	}
	c.send(status, mediaJSON, b)
	return nil
}
