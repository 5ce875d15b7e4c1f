package client

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/muster-registry/muster/fault"
)

// Event is one change of a record, as /v1/watch tells of it.
type Event struct {
	Type      string         `json:"type"` // put, delete
	Kind      Kind           `json:"kind"` // Service, Version, Instance
	Namespace string         `json:"namespace"`
	Service   string         `json:"service"`
	ID        string         `json:"id"`
	Revision  uint64         `json:"revision"`
	Record    jsontext.Value `json:"record"` // of a delete: as it was last

	JSON jsontext.Value `json:"-"` // the whole event
}

// Watching says what a watch follows, and who is told.
type Watching struct {
	Namespace string // "": all
	Service   string // "": all of the namespace
	After     uint64 // begin behind this revision; 0: behind the newest

	// Event is told of each change, in order and each once. An error ends the
	// watch, which returns it.
	Event func(*Event) error
	// Begun is told whenever a node has taken the watch up, and behind which
	// revision. Nil: nobody is.
	Begun func(revision uint64)
	// Lost is told why the watch has broken off, before it is tried again. Nil:
	// nobody is.
	Lost func(error)
}

// A node says something every 15 s. Who is silent for longer is gone.
const silence = 45 * time.Second

// maxEvent bounds one event.
const maxEvent = 32 << 20

// Watch follows changes until the context ends, and goes on at another node,
// behind what it has told already, whenever a node fails. Its error is the
// context's, that of Event, a refusal, or compacted: changes were missed, and
// the caller has to read anew.
func (c *Client) Watch(ctx context.Context, w Watching) error {
	f := follower{client: c, Watching: w, told: map[string]bool{}}
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 50*time.Millisecond, 2*time.Second
	for {
		begun, err := f.once(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case f.failed != nil:
			return f.failed
		case !known(err), definite(err): // what no other try mends
			return err
		}
		if w.Lost != nil {
			w.Lost(err)
		}
		if begun {
			pause.Reset()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause.NextBackOff()):
		}
	}
}

func known(err error) bool {
	_, ok := errors.AsType[*fault.Error](err)
	return ok
}

// follower is a watch over several streams.
type follower struct {
	client *Client
	Watching
	failed error // of Event

	at   uint64          // the revision that a later change was told of only in part
	told map[string]bool // what was told of it
}

// once follows one stream to its end. It always returns an error.
func (f *follower) once(ctx context.Context) (begun bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	q := url.Values{}
	for name, value := range map[string]string{"namespace": f.Namespace, "service": f.Service} {
		if value != "" {
			q.Set(name, value)
		}
	}
	if f.After > 0 {
		q.Set("index", strconv.FormatUint(f.After, 10))
	}
	res, err := f.client.open(ctx, call{method: http.MethodGet, path: []string{"v1", "watch"}, query: q})
	if err != nil {
		return false, err
	}
	defer res.Body.Close()
	dead := time.AfterFunc(silence, cancel)
	defer dead.Stop()
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(make([]byte, 0, 16<<10), maxEvent)
	var b block
	for lines.Scan() {
		if len(lines.Bytes()) > 0 {
			b.add(lines.Bytes())
			continue
		}
		dead.Reset(silence)
		if err := f.take(b, &begun); err != nil {
			return begun, err
		}
		b = block{}
	}
	if err = lines.Err(); err == nil {
		err = fault.New(fault.NotReady, "the node has ended the stream")
	}
	return begun, fault.Wrap(fault.NotReady, err, "the watch broke off: %v", err)
}

// block is one server-sent event.
type block struct {
	name string
	data []byte
	id   uint64
}

func (b *block) add(line []byte) {
	field, value, _ := bytes.Cut(line, []byte(":"))
	value = bytes.TrimPrefix(value, []byte(" "))
	switch string(field) {
	case "id":
		b.id, _ = strconv.ParseUint(string(value), 10, 64)
	case "event":
		b.name = string(value)
	case "data":
		b.data = append(b.data, value...)
	}
}

// take tells of a block.
func (f *follower) take(b block, begun *bool) error {
	switch b.name {
	case "reset", "error":
		return problem(&http.Response{StatusCode: http.StatusServiceUnavailable, Status: "503", Header: http.Header{}}, b.data)
	case "put", "delete":
		e := &Event{JSON: b.data}
		if err := json.Unmarshal(b.data, e); err != nil {
			return unreadable(err)
		}
		key := string(e.Kind) + "/" + e.Namespace + "/" + e.Service + "/" + e.ID
		if e.Revision == f.at && f.told[key] {
			break // of a change that broke off in its middle
		}
		if f.failed = f.Event(e); f.failed != nil {
			return f.failed
		}
		if e.Revision != f.at {
			f.at = e.Revision
			clear(f.told)
		}
		f.told[key] = true
	}
	if b.id > f.After {
		f.After = b.id
	}
	if !*begun && b.name == "" && b.id > 0 {
		*begun = true
		if f.Begun != nil {
			f.Begun(b.id)
		}
	}
	return nil
}
