package node_test

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/muster-registry/muster/api/rpc/musterv1"
	"github.com/muster-registry/muster/fault"
)

// follower is something that goes on until what it may see changes.
type follower struct {
	name  string
	ended chan string // how it did
}

func (f *follower) end(t *testing.T, why, want string) {
	t.Helper()
	select {
	case got := <-f.ended:
		if !strings.Contains(got, want) {
			t.Errorf("%s, %s ended with %q, want %s", why, f.name, got, want)
		}
	case <-time.After(time.Minute):
		t.Errorf("%s, %s goes on", why, f.name)
	}
}

// followers begin to follow the service in each way, as the token.
func (e *edge) followers(t *testing.T, token string) (all []*follower) {
	t.Helper()
	at := e.tr.nodes[0].control
	get := func(name, path string, end func(*http.Response) string) {
		t.Helper()
		f := &follower{name, make(chan string, 1)}
		all = append(all, f)
		req, err := http.NewRequestWithContext(t.Context(), "GET", at+path, nil)
		must(t, err)
		req.Header.Set("Authorization", "Bearer "+token)
		begun := make(chan struct{})
		begin := sync.OnceFunc(func() { close(begun) })
		go func() {
			defer begin()
			if name != "an event stream" {
				begin()
			}
			res, err := (&http.Client{Transport: e.http["HTTP/1.1"].Transport}).Do(req)
			if err != nil {
				f.ended <- err.Error()
				return
			}
			defer res.Body.Close()
			begin()
			f.ended <- end(res)
		}()
		<-begun
	}
	status := func(res *http.Response) string {
		b, _ := io.ReadAll(res.Body)
		return fmt.Sprint(res.StatusCode, " ", string(b))
	}
	get("an event stream", "/v1/watch?namespace=shop&service=cart", status)
	index := e.mustDo(t, "GET", "/v1/discovery/shop/cart", "").header.Get("Muster-Revision")
	get("a blocking query", "/v1/discovery/shop/cart?wait=5m&index="+index, status)
	get("Consul's blocking query", "/v1/health/service/cart?ns=shop&stale&wait=5m&index="+index, status)

	f := &follower{"a gRPC stream", make(chan string, 1)}
	w, err := musterv1.NewRegistryClient(e.dialRPC(t, 0, &tls.Config{})).Watch(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token))
	must(t, err)
	must(t, w.Send(&musterv1.WatchRequest{Request: &musterv1.WatchRequest_Begin_{Begin: &musterv1.WatchRequest_Begin{Watch: 1, Namespace: "shop", Service: "cart"}}}))
	r, err := w.Recv()
	must(t, err)
	if !r.Begun {
		t.Fatalf("%v", r)
	}
	go func() {
		for {
			r, err := w.Recv()
			if err != nil {
				f.ended <- err.Error()
				return
			}
			if r.Ended != nil {
				f.ended <- r.Ended.Code
				return
			}
		}
	}()
	return append(all, f)
}

// Whatever follows a service ends with the credential that it was begun with,
// and when the policy does not allow it any more. (TestADSShowsWhatTheCallerMaySee
// is the same of xDS.)
func TestFollowersEndWithTheirRight(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	tr.startAll()
	e := newEdge(t, tr)
	const instance = "/v1/namespaces/shop/services/cart/instances/"
	e.mustDo(t, "PUT", instance+"a?create_service=true", `{"address":"10.0.0.1","port":80}`)

	token := e.credential(t, "viewer")
	revoked := e.followers(t, token)
	e.mustDo(t, "DELETE", "/v1/tokens/"+strings.Split(token, "_")[1], "")
	for _, f := range revoked {
		want := string(fault.Unauthenticated)
		if f.name == "Consul's blocking query" {
			want = "401"
		}
		f.end(t, "after its token was revoked", want)
	}

	refused := e.followers(t, e.credential(t, "viewer"))
	push, err := json.Marshal(map[string]any{"modules": map[string]string{"authz.rego": "package api.security.authz\nimport rego.v1\ndefault allow := true\ndeny contains \"not for you\" if not \"operator\" in input.principal.roles\n"}})
	must(t, err)
	e.mustDo(t, "POST", "/v1/policy/revisions?activate=true", string(push))
	e.mustDo(t, "PUT", instance+"b", `{"address":"10.0.0.2","port":80}`) // what the queries wait for
	for _, f := range refused {
		want := string(fault.PolicyDenied)
		if f.name == "Consul's blocking query" {
			want = "403"
		}
		f.end(t, "after the policy has changed", want)
	}
}
