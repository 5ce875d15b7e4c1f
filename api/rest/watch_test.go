package rest_test

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/api/rest"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/flow"
	"github.com/muster-registry/muster/policy"
)

// told is one event as a browser would read it.
type told struct {
	id, name string
	data     struct {
		Type, Kind, Namespace, Service, ID string
		Revision                           uint64
		Record                             jsontext.Value
		Code                               fault.Code
	}
}

// listener reads an event stream.
type listener struct {
	t      *testing.T
	status int
	header http.Header
	lines  *bufio.Scanner
	cancel func()
	id     string // as a browser keeps it
}

func (e *edge) listen(t *testing.T, a ask) *listener {
	t.Helper()
	ts := httptest.NewUnstartedServer(e.api)
	ts.EnableHTTP2 = true
	ts.StartTLS()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(func() { cancel(); ts.Close() })
	r := a.request().WithContext(ctx)
	r.RequestURI, r.Host, r.URL.Scheme, r.URL.Host = "", "", "https", strings.TrimPrefix(ts.URL, "https://")
	res, err := ts.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { res.Body.Close() })
	l := &listener{t: t, status: res.StatusCode, header: res.Header, lines: bufio.NewScanner(res.Body), cancel: cancel}
	if l.status == 200 {
		l.next() // the id to begin with
	}
	return l
}

// next reads one event, or one id that stands alone. The name of an ended
// stream is "EOF".
func (l *listener) next() (e told) {
	l.t.Helper()
	for l.lines.Scan() {
		field, value, _ := strings.Cut(l.lines.Text(), ": ")
		switch field {
		case "":
			return e
		case "id":
			e.id, l.id = value, value
		case "event":
			e.name = value
		case "data":
			if err := json.Unmarshal([]byte(value), &e.data, json.MatchCaseInsensitiveNames(true)); err != nil {
				l.t.Fatalf("%s: %v", value, err)
			}
		default:
			l.t.Fatalf("%q is no field of an event", l.lines.Text())
		}
	}
	e.name = "EOF"
	return e
}

func (l *listener) want(name, kind, id string, revision uint64) told {
	l.t.Helper()
	e := l.next()
	if e.name != name || e.data.Type != name || e.data.Kind != kind || e.data.ID != id || e.data.Revision != revision {
		l.t.Fatalf("%+v, want %s %s %s at %d", e, name, kind, id, revision)
	}
	return e
}

const cartWatch = "/v1/watch?namespace=shop&service=cart"

func TestWatch(t *testing.T) {
	e := shopEdge(t, rest.Options{})
	l := e.listen(t, ask{caller: "viewer", method: "GET", path: cartWatch})
	if l.header.Get("Content-Type") != "text/event-stream" || l.id != "1" || l.header.Get("Muster-Revision") != "1" {
		t.Fatalf("%v, from %s", l.header, l.id)
	}
	e.call("publisher", "PUT", "/v1/namespaces/shop/services/till/instances/a?create_service=true", instance, 201)
	e.call("publisher", "PUT", cart+"/instances/b", instance, 201)
	put := l.want("put", "instance", "b", 3)
	if put.id != "3" || put.data.Namespace != "shop" || put.data.Service != "cart" || !strings.Contains(string(put.data.Record), `"id":"b"`) {
		t.Errorf("%+v", put)
	}
	// What one change did comes whole, and only then may be gone on behind it.
	e.call("publisher", "DELETE", cart, "", 204)
	var ids, kinds []string
	for range 3 {
		d := l.next()
		if d.name != "delete" || d.data.Revision != 4 || len(d.data.Record) < 10 {
			t.Fatalf("%+v", d)
		}
		ids, kinds = append(ids, d.id), append(kinds, d.data.Kind)
	}
	if !slices.Equal(ids, []string{"", "", "4"}) || !slices.Equal(kinds, []string{"instance", "instance", "service"}) {
		t.Errorf("%q %q", ids, kinds)
	}
	// The service comes back under the same watch.
	e.call("publisher", "PUT", cartA+"?create_service=true", instance, 201)
	l.want("put", "service", "cart", 5)
	l.want("put", "instance", "a", 5)
}

func TestWatchGoesOn(t *testing.T) {
	e := shopEdge(t, rest.Options{})
	for i := range 5 {
		e.call("publisher", "PUT", fmt.Sprintf("%s/instances/i%d", cart, i), instance, 201)
	}
	for _, a := range []ask{
		{caller: "viewer", method: "GET", path: cartWatch, header: header("Last-Event-ID", "3")},
		{caller: "viewer", method: "GET", path: cartWatch + "&index=3"},
		{caller: "viewer", method: "GET", path: cartWatch + "&index=1", header: header("Last-Event-ID", "3")},
		{caller: "viewer", method: "GET", path: "/v1/watch?namespace=shop&index=3"},
		{caller: "viewer", method: "GET", path: "/v1/watch?index=3", header: header("Accept-Encoding", "gzip")},
	} {
		l := e.listen(t, a)
		for i := range 3 {
			l.want("put", "instance", fmt.Sprintf("i%d", i+2), uint64(4+i))
		}
	}
	for _, bad := range []ask{
		{caller: "viewer", method: "GET", path: cartWatch, header: header("Last-Event-ID", "x")},
		{caller: "viewer", method: "GET", path: cartWatch + "&index=-1"},
	} {
		refused(t, e.do(bad), 400, fault.BadRequest)
	}
	refused(t, e.do(ask{caller: "viewer", method: "GET", path: "/v1/watch?namespace=Shop"}), 400, fault.InvalidField)
	refused(t, e.do(ask{caller: "shopper", method: "GET", path: "/v1/watch?namespace=bank&service=vault"}), 403, fault.Forbidden)

	// After a restore nobody goes on where he was.
	l := e.listen(t, ask{caller: "viewer", method: "GET", path: cartWatch})
	e.feed.Reset(e.State().Revision)
	if end := l.next(); end.name != "reset" || end.data.Code != fault.Compacted || l.next().name != "EOF" {
		t.Errorf("%+v", end)
	}
	refused(t, e.do(ask{caller: "viewer", method: "GET", path: cartWatch, header: header("Last-Event-ID", "3")}), 410, fault.Compacted)
}

// TestWatchersSeeWhatTheyMay holds watchers of everything to their namespaces
// and to the policy, whose mind may change.
func TestWatchersSeeWhatTheyMay(t *testing.T) {
	e := shopEdge(t, rest.Options{})
	shopper := e.listen(t, ask{caller: "shopper", method: "GET", path: "/v1/watch"})
	e.call("publisher", "PUT", "/v1/namespaces/bank/services/vault", `{}`, 201)
	e.call("publisher", "PUT", cart+"/instances/b", instance, 201)
	shopper.want("put", "instance", "b", 3)

	asked := make(chan policy.Action, 100)
	var over atomic.Bool
	decide := func(in *policy.Input) policy.Decision {
		if over.Load() {
			return policy.Decision{Reasons: []string{"not any more"}}
		}
		asked <- in.Action
		switch {
		case in.Resource.Name == "secret":
			return policy.Decision{Reasons: []string{"no"}}
		case in.Resource.Kind == "service":
			return policy.Decision{Allow: true, Filtered: []byte(`{}`)}
		}
		return policy.Decision{Allow: true, Filtered: []byte("{\"masked\":\ntrue}")}
	}
	shopper.cancel()
	e.policed(decide)
	l := e.listen(t, ask{caller: "viewer", method: "GET", path: cartWatch})
	select {
	case action := <-asked:
		if action != policy.Watch {
			t.Errorf("the policy was asked about %s", action)
		}
	case <-time.After(time.Minute):
		t.Fatal("the policy was not asked")
	}
	e.call("publisher", "PUT", cart+"/instances/secret", instance, 201)
	e.call("publisher", "PUT", cart+"/instances/c", instance, 201)
	if put := l.next(); put.data.ID != "c" || string(put.data.Record) != `{"masked": true}` {
		t.Errorf("%+v", put)
	}
	over.Store(true)
	if _, err := e.ActivatePolicy(t.Context(), nil, 1); err != nil {
		t.Fatal(err)
	}
	if end := l.next(); end.name != "error" || end.data.Code != fault.PolicyDenied || l.next().name != "EOF" {
		t.Errorf("%+v", end)
	}
	refused(t, e.do(ask{caller: "viewer", method: "GET", path: cartWatch}), 403, fault.PolicyDenied)
}

// A policy that gives no answer in time has refused nobody for good: the watcher
// is told to come back.
func TestAWatchIsNotRefusedForWantOfAnAnswer(t *testing.T) {
	e := shopEdge(t, rest.Options{})
	var missed atomic.Bool
	e.policed(func(*policy.Input) policy.Decision {
		if missed.Load() {
			return policy.Decision{Missed: true, Reasons: []string{"too slow"}}
		}
		return policy.Decision{Allow: true}
	})
	l := e.listen(t, ask{caller: "viewer", method: "GET", path: cartWatch})
	missed.Store(true)
	if _, err := e.ActivatePolicy(t.Context(), nil, 1); err != nil {
		t.Fatal(err)
	}
	if end := l.next(); end.name != "error" || end.data.Code != fault.PolicyUnavailable || l.next().name != "EOF" {
		t.Errorf("%+v", end)
	}
	refused(t, e.do(ask{caller: "viewer", method: "GET", path: cartWatch}), 503, fault.PolicyUnavailable)
}

func TestAWatchEndsWithItsToken(t *testing.T) {
	e := shopEdge(t, rest.Options{})
	w := e.call("operator", "POST", "/v1/tokens", `{"role":"viewer"}`, 201)
	var minted struct{ ID, Token string }
	if err := json.Unmarshal(w.Body.Bytes(), &minted, json.MatchCaseInsensitiveNames(true)); err != nil {
		t.Fatal(err)
	}
	l := e.listen(t, ask{method: "GET", path: cartWatch, header: header("Authorization", "Bearer "+minted.Token)})
	e.call("operator", "DELETE", "/v1/tokens/"+minted.ID, "", 204)
	if end := l.next(); end.name != "error" || end.data.Code != fault.Unauthenticated || l.next().name != "EOF" {
		t.Errorf("%+v", end)
	}
}

// What its owner might have seen before its end it does not get after.
func TestAWatchEndsWithItsTokensTime(t *testing.T) {
	e := shopEdge(t, rest.Options{})
	var own ask
	var l *listener
	for _, ttl := range []string{"1s", "5s", "20s"} { // the stream has to begin before its token ends
		w := e.call("operator", "POST", "/v1/tokens", `{"role":"viewer","ttl":"`+ttl+`"}`, 201)
		var minted struct{ Token string }
		if err := json.Unmarshal(w.Body.Bytes(), &minted, json.MatchCaseInsensitiveNames(true)); err != nil {
			t.Fatal(err)
		}
		own = ask{method: "GET", path: cartWatch, header: header("Authorization", "Bearer "+minted.Token)}
		if l = e.listen(t, own); l.status != 401 {
			break
		}
	}
	for ended := time.After(time.Minute); ; {
		if e.do(ask{method: "GET", path: cart, header: own.header}).Code == 401 {
			break
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ended:
			t.Fatal("the token does not end")
		}
	}
	e.call("publisher", "PUT", cart+"/instances/b", instance, 201)
	if end := l.next(); end.name != "error" || end.data.Code != fault.Unauthenticated || l.next().name != "EOF" {
		t.Errorf("%+v", end)
	}
}

func TestWatchersAreNotInFlightAndBounded(t *testing.T) {
	e := newEdgeBehind(t, door.Options{Flow: flow.New(flow.Limits{InFlight: 1, Streams: 2, StreamsPerCaller: 2})}, rest.Options{})
	for range 2 {
		e.listen(t, ask{caller: "viewer", method: "GET", path: cartWatch})
		e.call("viewer", "GET", "/v1/services", "", 200)
	}
	refused(t, e.do(ask{caller: "viewer", method: "GET", path: cartWatch}), 429, fault.RateLimited)
}

// TestAWatchEndsWhenTheNodeDoes tells where to go on.
func TestAWatchEndsWhenTheNodeDoes(t *testing.T) {
	e := shopEdge(t, rest.Options{})
	l := e.listen(t, ask{caller: "viewer", method: "GET", path: cartWatch})
	e.feed.Close()
	if end := l.next(); end.name != "error" || end.data.Code != fault.NotReady || l.next().name != "EOF" || l.id != "1" {
		t.Errorf("%+v", end)
	}
}

func TestListsWaitForTheirNextChange(t *testing.T) {
	for _, path := range []string{"/v1/namespaces/shop/services", "/v1/services", "/v1/discovery?namespace=shop", "/v1/discovery"} {
		e := shopEdge(t, rest.Options{})
		e.call("publisher", "PUT", "/v1/namespaces/shop/services/till", `{}`, 201)
		join := "?"
		if strings.Contains(path, "?") {
			join = "&"
		}
		w, done := e.begin(ask{caller: "viewer", method: "GET", path: path + join + "index=2&wait=1m"})
		e.call("publisher", "PUT", "/v1/namespaces/shop/services/crate", `{}`, 201)
		<-done
		if w.Code != 200 || !strings.Contains(w.Body.String(), "crate") {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}
