package rest

import (
	"bytes"
	"net/http"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/feed"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
)

const (
	watchPath  = "/v1/watch"
	mediaEvent = "text/event-stream"
)

// An event stream is written in pieces of this size, and a watcher has this
// long to take each.
const (
	pieceSize = 64 << 10
	pieceTime = 30 * time.Second
)

func watchRoutes() []Route {
	return []Route{
		{Method: http.MethodGet, Path: watchPath, ID: "watch", Summary: "Follow the changes of a service, of a namespace, or of all",
			Action: policy.Watch, Kind: registry.KindService, Status: 200, Media: mediaEvent,
			Query: []Param{{Name: "namespace", Type: "string"}, {Name: "service", Type: "string"},
				{Name: "index", Type: "integer", Description: "begin behind this revision; by default behind the newest"}},
			Headers:  []Param{{Name: "Last-Event-ID", Type: "string", Description: "go on behind this event; wins over index"}},
			Refusals: []fault.Code{fault.Compacted}, handle: watch},
	}
}

func watch(c *call) error {
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
	after, err := number(q, "index")
	if err != nil {
		return err
	}
	if given := c.R.Header["Last-Event-Id"]; len(given) > 0 && given[0] != "" {
		if after, err = strconv.ParseUint(given[0], 10, 64); err != nil || len(given) > 1 {
			return fault.New(fault.BadRequest, "Last-Event-ID must be the id of an event, which is a revision")
		}
	}
	c.params = nil // an idle watcher keeps nothing
	s := stream{call: c}
	err = c.Follow(feed.Scope{Namespace: c.namespace, Service: c.service}, after, s.tell)
	if c.Status == 0 || c.Gone() != nil {
		return err
	}
	return s.end(err)
}

// scope takes namespace and service from the query.
func (c *call) scope(namespace, service string) error {
	c.namespace, c.service = namespace, service
	if c.namespace != "" {
		if err := checkName("/namespace", c.namespace, registry.ValidName); err != nil {
			return err
		}
	}
	if c.service == "" {
		return nil
	}
	if c.namespace == "" {
		c.namespace = "default"
	}
	return checkName("/service", c.service, registry.ValidName)
}

// stream writes server-sent events.
type stream struct {
	*call
	b []byte
}

func (s *stream) tell(t door.Told) error {
	if t.Begun {
		h := s.Header()
		h.Set("Content-Type", mediaEvent)
		h.Set("Cache-Control", "no-store")
		h.Set("X-Accel-Buffering", "no")
		s.WriteHeader(http.StatusOK)
		// An id without data is no event: it only says where to go on.
		s.id(t.Revision)
		s.b = append(s.b, '\n')
		return s.flush()
	}
	for i := range t.Items {
		e := &t.Items[i]
		// Who saw only some of what a change did goes on before it.
		if e.Last || i+1 < len(t.Items) && t.Items[i+1].Revision != e.Revision {
			s.id(e.Revision)
		}
		s.event(e.Type, e.JSON())
		if len(s.b) > pieceSize {
			if err := s.write(); err != nil {
				return err
			}
		}
	}
	if t.Progress {
		s.id(t.Revision)
		s.event("progress", append(strconv.AppendUint([]byte(`{"type":"progress","revision":`), t.Revision, 10), '}'))
	}
	return s.flush()
}

func (s *stream) id(revision uint64) {
	s.b = append(s.b, "id: "...)
	s.b = strconv.AppendUint(s.b, revision, 10)
	s.b = append(s.b, '\n')
}

func (s *stream) event(name string, data []byte) {
	s.b = append(s.b, "event: "...)
	s.b = append(s.b, name...)
	s.b = append(s.b, "\ndata: "...)
	if bytes.IndexByte(data, '\n') >= 0 { // of a policy's own rendering; between values only
		data = bytes.ReplaceAll(data, []byte("\n"), []byte(" "))
	}
	s.b = append(s.b, data...)
	s.b = append(s.b, "\n\n"...)
}

func (s *stream) write() error {
	_ = http.NewResponseController(s.W).SetWriteDeadline(time.Now().Add(pieceTime)) // not every writer can; a server's does
	_, err := s.W.Write(s.b)
	s.b = nil // an idle watcher keeps nothing
	return err
}

func (s *stream) flush() error {
	if err := s.write(); err != nil {
		return err
	}
	return http.NewResponseController(s.W).Flush()
}

// end says why a stream ends that has begun: reset, when the watcher has to
// start anew, or else error, with the problem.
func (s *stream) end(err error) error {
	e := fault.From(err)
	switch e.Code.Status() {
	case http.StatusUnauthorized, http.StatusForbidden:
		s.Refuse(s.route.ID, e)
	}
	name := "error"
	if e.Code == fault.Compacted {
		name = "reset"
	}
	body, encodeErr := json.Marshal(newProblem(e, s.ID), json.Deterministic(true))
	if encodeErr != nil {
		return encodeErr
	}
	s.event(name, body)
	_ = s.flush() // the caller may have gone
	return nil
}
