package rest

import (
	"math"
	"net/http"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
	"github.com/muster-registry/muster/registry/definition"
)

// missing says what of a version or an instance there is not.
func missing(c *call, code fault.Code, what string) error {
	if _, ok := c.State.Registry.Service(c.namespace, c.service); !ok {
		return door.NoService(c.namespace, c.service)
	}
	return fault.New(code, "service %s/%s has no %s %s", c.namespace, c.service, what, c.name)
}

// The resources below are what a policy sees of a record that is looked up.
// They match what the gate shows of a record that is changed.

func (c *call) serviceResource(rec *registry.Service) policy.Resource {
	res := policy.Resource{Kind: registry.KindService, Namespace: c.namespace, Name: c.service}
	if rec != nil && c.Policed() {
		res.Namespace, res.Name = rec.Namespace, rec.Name
		res.Holder, res.Payload = rec.JSON, rec.JSON
	}
	return res
}

func (c *call) versionResource(name string, rec *registry.Version) policy.Resource {
	res := policy.Resource{Kind: registry.KindVersion, Namespace: c.namespace, Name: name}
	if rec == nil || !c.Policed() {
		return res
	}
	res.Payload = rec.JSON
	if s, ok := c.State.Registry.Service(c.namespace, c.service); ok {
		res.Holder = s.JSON
	}
	return res
}

func (c *call) instanceResource(name string, rec *registry.Instance) policy.Resource {
	res := policy.Resource{Kind: registry.KindInstance, Namespace: c.namespace, Name: name}
	if rec != nil && c.Policed() {
		res.Payload = rec.JSON
		res.Holder = rec.JSON
	}
	return res
}

// record answers a look-up of one record. What a policy filtered has no
// entity tag: it can change without the record.
func (c *call) record(revision uint64, body []byte, d policy.Decision) error {
	if d.Filtered != nil {
		c.send(http.StatusOK, mediaJSON, d.Filtered)
		return nil
	}
	return c.tagged(revision, mediaJSON, body)
}

// tagged answers with an entity tag, and without the body when the caller has
// it already.
func (c *call) tagged(revision uint64, media string, body []byte) error {
	tag := entityTag(revision)
	c.headers[4] = tag
	c.Header()["Etag"] = c.headers[4:5:5]
	if given := c.R.Header["If-None-Match"]; len(given) > 0 && has(given, tag) {
		c.WriteHeader(http.StatusNotModified)
		return nil
	}
	c.send(http.StatusOK, media, body)
	return nil
}

func has(given []string, tag string) bool {
	for _, list := range given {
		for one := range strings.SplitSeq(list, ",") {
			one = strings.TrimSpace(one)
			if one == "*" || strings.TrimPrefix(one, "W/") == tag {
				return true
			}
		}
	}
	return false
}

func (c *call) serviceChanged(s *door.State) uint64 {
	rec, ok := s.Registry.Service(c.namespace, c.service)
	if !ok {
		return math.MaxUint64
	}
	return rec.Revision
}

func (c *call) versionChanged(s *door.State) uint64 {
	rec, ok := s.Registry.Version(c.namespace, c.service, c.name)
	if !ok {
		return math.MaxUint64
	}
	return rec.Revision
}

func getService(c *call) error {
	if err := c.view(c.serviceChanged); err != nil {
		return err
	}
	rec, ok := c.State.Registry.Service(c.namespace, c.service)
	d, err := c.Decide(c.serviceResource(rec))
	if err != nil {
		return err
	}
	if !ok {
		return door.NoService(c.namespace, c.service)
	}
	return c.record(rec.Revision, rec.JSON, d)
}

func listServices(c *call) error {
	after, limit, err := c.page()
	if err != nil {
		return err
	}
	if err := c.view(c.listChanged); err != nil {
		return err
	}
	page, next, err := items(after, limit, func(after string, n int) ([]*registry.Service, string) {
		return c.State.Registry.Services(c.namespace, after, n)
	}, func(rec *registry.Service) ([]byte, error) {
		if !c.Role.Sees(rec.Namespace) {
			return nil, nil
		}
		return c.Visible(c.serviceResource(rec), rec.JSON)
	})
	if err != nil {
		return err
	}
	c.list(page, next)
	return nil
}

func putService(c *call) error {
	body, err := c.body(c.api.opt.MaxBody)
	if err != nil {
		return err
	}
	spec, err := registry.CanonicalService(c.namespace, c.service, body)
	if err != nil {
		return err
	}
	return c.put(&command.Put{Kind: command.Kind_SERVICE, Namespace: c.namespace, Name: c.service, Spec: spec}, body, nil)
}

func (c *call) put(p *command.Put, body, payload []byte) error {
	receipt, err := c.submit(&command.Command{Op: &command.Command_Put{Put: p}}, body, payload)
	if err != nil {
		return err
	}
	c.stored(receipt)
	return nil
}

func deleteService(c *call) error {
	return c.delete(&command.Delete{Kind: command.Kind_SERVICE, Namespace: c.namespace, Name: c.service})
}

func (c *call) delete(d *command.Delete) error {
	if _, err := c.submit(&command.Command{Op: &command.Command_Delete{Delete: d}}, nil, nil); err != nil {
		return err
	}
	c.empty()
	return nil
}

// seeService decides about the service whose parts are listed, before anything
// is said about whether it exists.
func (c *call) seeService() error {
	rec, ok := c.State.Registry.Service(c.namespace, c.service)
	if _, err := c.Decide(c.serviceResource(rec)); err != nil {
		return err
	}
	if !ok {
		return door.NoService(c.namespace, c.service)
	}
	return nil
}

func getVersion(c *call) error {
	if err := c.view(c.versionChanged); err != nil {
		return err
	}
	rec, ok := c.State.Registry.Version(c.namespace, c.service, c.name)
	d, err := c.Decide(c.versionResource(c.name, rec))
	if err != nil {
		return err
	}
	if !ok {
		return missing(c, fault.VersionNotFound, "version")
	}
	return c.record(rec.Revision, rec.JSON, d)
}

// getDocument answers with the definition. Its policy sees the definition as
// the payload, since that is what would be returned.
func getDocument(c *call) error {
	if err := c.view(c.versionChanged); err != nil {
		return err
	}
	rec, document, err := c.document()
	if err != nil {
		return err
	}
	res := c.versionResource(c.name, rec)
	if rec != nil && c.Policed() {
		res.Payload = definition.JSON(rec.Format, document)
	}
	d, err := c.Decide(res)
	if err != nil {
		return err
	}
	if rec == nil {
		return missing(c, fault.VersionNotFound, "version")
	}
	if d.Filtered != nil {
		return c.record(rec.Revision, nil, d)
	}
	// A definition is somebody else's text: no browser is to take it for a page.
	c.Header().Set("X-Content-Type-Options", "nosniff")
	return c.tagged(rec.Revision, rec.ContentType, document)
}

// document reads a version and its definition; nil when there is no such
// version. The definition of an older revision is gone once it was replaced, so
// a state that was left behind in between is looked at anew.
func (c *call) document() (*registry.Version, []byte, error) {
	for {
		rec, ok := c.State.Registry.Version(c.namespace, c.service, c.name)
		if !ok {
			return nil, nil, nil
		}
		document, err := c.api.backend.Document(c.namespace, c.service, c.name, rec.Revision)
		if err == nil {
			return rec, document, nil
		}
		c.Look()
		if now, ok := c.State.Registry.Version(c.namespace, c.service, c.name); ok && now.Revision == rec.Revision {
			return nil, nil, err
		}
		if gone := c.Gone(); gone != nil {
			return nil, nil, gone
		}
	}
}

func listVersions(c *call) error {
	after, limit, err := c.page()
	if err != nil {
		return err
	}
	if err := c.view(nil); err != nil {
		return err
	}
	if err := c.seeService(); err != nil {
		return err
	}
	page, next, err := items(after, limit, func(after string, n int) ([]*registry.Version, string) {
		return c.State.Registry.Versions(c.namespace, c.service, after, n)
	}, func(rec *registry.Version) ([]byte, error) {
		return c.Visible(c.versionResource(rec.Version, rec), rec.JSON)
	})
	if err != nil {
		return err
	}
	c.list(page, next)
	return nil
}

// VersionBody brings a definition: as JSON in document, or as text in content.
type VersionBody struct {
	Format    string         `json:"format"`
	Lifecycle string         `json:"lifecycle,omitempty"`
	Document  jsontext.Value `json:"document,omitzero"`
	Content   *string        `json:"content,omitzero"`
}

func putVersion(c *call) error {
	body, err := c.body(c.api.opt.MaxDefinition)
	if err != nil {
		return err
	}
	spec, document, err := registry.CanonicalVersion(c.namespace, c.service, c.name, body)
	if err != nil {
		return err
	}
	payload := definition.JSON(registry.SpecFormat(spec), document)
	return c.put(&command.Put{Kind: command.Kind_VERSION, Namespace: c.namespace, Service: c.service, Name: c.name,
		Spec: spec, Document: document}, body, payload)
}

func deleteVersion(c *call) error {
	return c.delete(&command.Delete{Kind: command.Kind_VERSION, Namespace: c.namespace, Service: c.service, Name: c.name})
}
