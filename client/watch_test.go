package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/muster-registry/muster/fault"
)

// script is what nodes stream, one part for each connection, whichever node it
// comes to; and what they were asked.
type script struct {
	mu    sync.Mutex
	parts []string // "" breaks off before an answer; "{…}" is a problem
	asked []string
}

func (s *script) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.asked = append(s.asked, r.URL.Path+"?"+r.URL.RawQuery)
	part := `{"status":418,"code":"conflict","detail":"the script is over"}`
	if len(s.parts) > 0 {
		part, s.parts = s.parts[0], s.parts[1:]
	}
	s.mu.Unlock()
	switch {
	case part == "":
		panic(http.ErrAbortHandler)
	case part[0] == '{':
		var status int
		fmt.Sscanf(part, `{"status":%d`, &status)
		fail(w, status, part)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	_, _ = w.Write([]byte(part))
}

// sent is one event as nodes send it; with its id only where the change is whole.
func sent(kind, id string, revision int, whole bool) string {
	text := fmt.Sprintf("event: %s\ndata: {\"type\":%q,\"kind\":\"instance\",\"namespace\":\"shop\",\"service\":\"cart\",\"id\":%q,\"revision\":%d,\"record\":{}}\n", kind, kind, id, revision)
	if whole {
		text += fmt.Sprintf("id: %d\n", revision)
	}
	return text + "\n"
}

func watched(t *testing.T, s *script, w Watching) (got []string, lost int, err error) {
	t.Helper()
	c := dial(t, Config{}, node(t, s.ServeHTTP), node(t, s.ServeHTTP))
	w.Namespace, w.Service = "shop", "cart"
	tell := w.Event
	w.Event = func(e *Event) error {
		got = append(got, fmt.Sprintf("%s %s %d", e.Type, e.ID, e.Revision))
		if tell != nil {
			return tell(e)
		}
		return nil
	}
	w.Begun = func(revision uint64) { got = append(got, fmt.Sprintf("begun %d", revision)) }
	w.Lost = func(error) { lost++ }
	err = c.Watch(t.Context(), w)
	return got, lost, err
}

const compacted = "event: reset\ndata: {\"status\":410,\"code\":\"compacted\",\"detail\":\"read anew\"}\n\n"

// A watch goes on where it was, at another node: each change is told once and in
// order, also one that a node died in the middle of.
func TestWatchGoesOnWhereItWas(t *testing.T) {
	s := &script{parts: []string{
		"id: 5\n\n" + sent("put", "a", 6, true) + sent("delete", "b", 7, false), // and dies within 7
		"",
		`{"status":503,"code":"not_ready","detail":"starting"}`,
		"id: 6\n\n" + sent("delete", "b", 7, false) + sent("delete", "c", 7, true) + "id: 19\n\n" + sent("put", "d", 20, true)[:30], // a bookmark, and half an event
		"id: 19\n\n: nothing\n\n" + sent("put", "d", 20, true) + compacted,
	}}
	got, lost, err := watched(t, s, Watching{After: 5})
	want := []string{"begun 5", "put a 6", "delete b 7", "begun 6", "delete c 7", "begun 19", "put d 20"}
	if !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
	if !fault.Is(err, fault.Compacted) || lost < 2 {
		t.Errorf("it ended with %v, and broke off %d times", err, lost)
	}
	var behind []string
	for _, a := range s.asked {
		_, index, _ := strings.Cut(a, "index=")
		index, _, _ = strings.Cut(index, "&")
		behind = append(behind, index)
	}
	if want := []string{"5", "6", "6", "6", "19"}; !slices.Equal(behind, want) {
		t.Errorf("asked for what is behind %q, want %q", behind, want)
	}
}

// What no other try mends ends a watch: a refusal, at the beginning and later,
// and an error of who is told.
func TestWatchEnds(t *testing.T) {
	enough := errors.New("enough")
	for name, c := range map[string]struct {
		part  string
		event func(*Event) error
		want  func(error) bool
	}{
		"refused":         {`{"status":403,"code":"policy_denied","detail":"no"}`, nil, func(err error) bool { return fault.Is(err, fault.PolicyDenied) }},
		"too old":         {`{"status":410,"code":"compacted","detail":"read anew"}`, nil, func(err error) bool { return fault.Is(err, fault.Compacted) }},
		"revoked":         {"id: 5\n\nevent: error\ndata: {\"status\":401,\"code\":\"unauthenticated\",\"detail\":\"revoked\"}\n\n", nil, func(err error) bool { return fault.Is(err, fault.Unauthenticated) }},
		"who is told":     {"id: 5\n\n" + sent("put", "a", 6, true), func(*Event) error { return enough }, func(err error) bool { return errors.Is(err, enough) }},
		"a reset at once": {compacted, nil, func(err error) bool { return fault.Is(err, fault.Compacted) }},
	} {
		t.Run(name, func(t *testing.T) {
			s := &script{parts: []string{c.part}}
			if _, _, err := watched(t, s, Watching{Event: c.event}); !c.want(err) || len(s.asked) != 1 {
				t.Errorf("it ended with %v after %d tries", err, len(s.asked))
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	held := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte("id: 5\n\n"))
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	defer held.Close()
	if err := dial(t, Config{}, held).Watch(ctx, Watching{Event: func(*Event) error { return nil }, Begun: func(uint64) { cancel() }}); !errors.Is(err, context.Canceled) {
		t.Errorf("the caller's end: %v", err)
	}
}
