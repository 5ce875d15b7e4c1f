package rest

import (
	"net/http"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
	"github.com/muster-registry/muster/setting"
)

// settingRoute is one kind of setting as this edge offers it: put, get, delete
// and list below one path. Its rules are the gate's.
type settingRoute struct {
	kind     setting.Kind
	resource string // as the built-in roles know it
	base     string // the list; the path of one setting has /{name} behind it, or /{namespace}/{name}
	spaced   bool   // kept by namespace
	one      string // operation ids are made of these two: putWebhook, listWebhooks
	many     string
	body     any
	answer   any
	refusals []fault.Code // of a put, beside those of every write
	// show gives the record as callers may see it, without its secrets; nil: all of it.
	show func(record []byte) ([]byte, error)
	// check answers instead of a put that says ?check=true, and stores nothing; nil: there is no such thing.
	check func(c *call, namespace, name string, body []byte) error
}

// settingTable lists the kinds that callers change by their name. Each has its
// rule in the gate.
func settingTable() []settingRoute {
	return []settingRoute{keyRoute(), requirementRoute(), schemaRoute(), webhookRoute(), roleRoute()}
}

func settingRoutes() []Route {
	var all []Route
	for _, s := range settingTable() {
		all = append(all, s.routes()...)
	}
	return all
}

func (s settingRoute) routes() []Route {
	path := s.base + "/{name}"
	if s.spaced {
		path = s.base + "/{scope}/{name}"
	}
	missing := []fault.Code{fault.NotFound}
	label := string(s.kind)
	var query []Param
	if s.check != nil {
		query = []Param{{Name: "check", Type: "boolean", Description: "store nothing, and tell which records would not meet it"}}
	}
	return []Route{
		{Method: http.MethodGet, Path: s.base, ID: "list" + s.many, Summary: "List the settings of the kind " + label,
			Action: policy.Read, Kind: s.resource, Status: 200, Reads: true, Pages: true, Answer: s.answer, handle: s.list},
		{Method: http.MethodGet, Path: path, ID: "get" + s.one, Summary: "Get a " + label,
			Action: policy.Read, Kind: s.resource, Status: 200, Reads: true, Answer: s.answer, Refusals: missing, handle: s.get},
		{Method: http.MethodPut, Path: path, ID: "put" + s.one, Summary: "Create or change a " + label,
			Action: policy.Manage, Kind: s.resource, Status: 200, Writes: true, Query: query, Body: s.body, Answer: s.answer, Refusals: s.refusals, handle: s.put},
		{Method: http.MethodDelete, Path: path, ID: "delete" + s.one, Summary: "Delete a " + label,
			Action: policy.Manage, Kind: s.resource, Status: 204, Writes: true, Refusals: missing, handle: s.delete},
	}
}

// place reads the namespace, "" or "*" or a name, and the name from the path.
func (s settingRoute) place(c *call) (namespace, name string, err error) {
	if s.spaced {
		if namespace = c.R.PathValue("scope"); namespace != "*" {
			if err := checkName("/namespace", namespace, registry.ValidName); err != nil {
				return "", "", err
			}
		}
	}
	name = c.R.PathValue("name")
	return namespace, name, checkName("/name", name, registry.ValidName)
}

func (s settingRoute) shown(record []byte) ([]byte, error) {
	if s.show == nil {
		return record, nil
	}
	return s.show(record)
}

func (s settingRoute) list(c *call) error {
	after, limit, err := c.page()
	if err != nil {
		return err
	}
	if err := c.view(nil); err != nil {
		return err
	}
	page, next, err := items(after, limit, func(after string, n int) ([]*setting.Record, string) {
		return c.State.Settings.List(s.kind, after, n)
	}, func(r *setting.Record) ([]byte, error) { return s.shown(r.JSON) })
	if err != nil {
		return err
	}
	c.list(page, next)
	return nil
}

func (s settingRoute) get(c *call) error {
	namespace, name, err := s.place(c)
	if err != nil {
		return err
	}
	if err := c.view(nil); err != nil {
		return err
	}
	r, ok := c.State.Settings.Get(s.kind, namespace, name)
	if !ok {
		return fault.New(fault.NotFound, "there is no %s %q", s.kind, name)
	}
	record, err := s.shown(r.JSON)
	if err != nil {
		return err
	}
	return c.tagged(r.Revision, mediaJSON, record)
}

func (s settingRoute) put(c *call) error {
	namespace, name, err := s.place(c)
	if err != nil {
		return err
	}
	body, err := c.body(c.api.opt.MaxBody)
	if err != nil {
		return err
	}
	if s.check != nil {
		q, err := c.query()
		if err != nil {
			return err
		}
		if only, err := flag(q, "check"); err != nil || only {
			if err != nil {
				return err
			}
			return s.check(c, namespace, name, body)
		}
	}
	receipt, err := c.submit(&command.Command{Op: &command.Command_Put{Put: &command.Put{
		Kind: command.Kind_SETTING, Service: string(s.kind), Namespace: namespace, Name: name, Spec: body,
	}}}, body, nil)
	if err != nil {
		return err
	}
	if receipt.Record, err = s.shown(receipt.Record); err != nil {
		return err
	}
	c.stored(receipt)
	return nil
}

func (s settingRoute) delete(c *call) error {
	namespace, name, err := s.place(c)
	if err != nil {
		return err
	}
	return c.delete(&command.Delete{Kind: command.Kind_SETTING, Service: string(s.kind), Namespace: namespace, Name: name})
}
