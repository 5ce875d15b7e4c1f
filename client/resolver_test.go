package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/muster-registry/muster/fault"
)

// register is a registry of one service on a server of its own: what it holds,
// at which revision, and whether it is there at all.
type register struct {
	revision atomic.Uint64 // of the service, and of the state
	port     atomic.Int64
	refuse   atomic.Value // a problem to answer with; "": none
}

func (g *register) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if p, _ := g.refuse.Load().(string); p != "" {
		var status int
		fmt.Sscanf(p, `{"status":%d`, &status)
		fail(w, status, p)
		return
	}
	q := r.URL.Query()
	if least, _ := strconv.ParseUint(q.Get("min_revision"), 10, 64); least > g.revision.Load() {
		fail(w, 503, `{"status":503,"code":"too_stale","detail":"behind"}`)
		return
	}
	if index, _ := strconv.ParseUint(q.Get("index"), 10, 64); index > 0 {
		wait, _ := time.ParseDuration(q.Get("wait"))
		for end := time.Now().Add(wait); g.revision.Load() <= index && time.Now().Before(end) && r.Context().Err() == nil; {
			time.Sleep(time.Millisecond)
		}
	}
	w.Header().Set("Muster-Revision", strconv.FormatUint(g.revision.Load(), 10))
	w.Header().Set("Muster-Staleness-Ms", "0")
	fmt.Fprintf(w, `{"namespace":"shop","service":"cart","revision":%d,"instances":[{"id":"i1","address":"10.0.0.1","port":%d}]}`, g.revision.Load(), g.port.Load())
}

func newRegister(port int64) *register {
	g := &register{}
	g.revision.Store(7)
	g.port.Store(port)
	return g
}

const gone = `{"status":503,"code":"no_leader","detail":"nobody leads"}`

// eventually waits until a resolver says what is wanted.
func eventually(t *testing.T, r *Resolver, want func(*Answer, error) bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(2 * time.Millisecond) {
		a, err := r.Resolve(t.Context(), "shop", "cart")
		if want(a, err) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("it stays %+v, %v", a, err)
		}
	}
}

func TestResolverSurvivesALostCluster(t *testing.T) {
	g := newRegister(1000)
	r := dial(t, Config{}, node(t, g.ServeHTTP)).NewResolver(ResolverOptions{Wait: 50 * time.Millisecond})
	defer r.Close()
	eventually(t, r, func(a *Answer, err error) bool { return err == nil && a.Instances[0].Port == 1000 && a.Problem == nil })

	g.refuse.Store(gone)
	eventually(t, r, func(a *Answer, err error) bool {
		if err != nil || len(a.Instances) != 1 {
			t.Fatalf("an answer was lost with the cluster: %+v, %v", a, err)
		}
		return fault.Is(a.Problem, fault.NoLeader)
	})
	g.port.Store(2000)
	g.revision.Store(8)
	g.refuse.Store("")
	eventually(t, r, func(a *Answer, err error) bool {
		return err == nil && a.Problem == nil && a.Revision == 8 && a.Instances[0].Port == 2000
	})
}

func TestResolverTakesNoForAnAnswer(t *testing.T) {
	for code, status := range map[fault.Code]int{fault.ServiceNotFound: 404, fault.PolicyDenied: 403, fault.Unauthenticated: 401} {
		t.Run(string(code), func(t *testing.T) {
			g := newRegister(1000)
			r := dial(t, Config{}, node(t, g.ServeHTTP)).NewResolver(ResolverOptions{Wait: 20 * time.Millisecond})
			defer r.Close()
			eventually(t, r, func(a *Answer, err error) bool { return err == nil })
			g.refuse.Store(fmt.Sprintf(`{"status":%d,"code":%q,"detail":"no"}`, status, code))
			eventually(t, r, func(a *Answer, err error) bool { return fault.Is(err, code) })
			g.refuse.Store("")
			eventually(t, r, func(a *Answer, err error) bool { return err == nil })
		})
	}
}

// What stands between the client and the cluster knows nothing of services, and
// a policy that gave no answer in time has said nothing: neither takes one away.
func TestResolverTakesNothingForNoAnswer(t *testing.T) {
	for name, page := range map[string]struct {
		status int
		body   string
	}{"not found": {404, "404 page not found"}, "forbidden": {403, "<html>no</html>"}, "another API": {404, `{"message":"no route"}`},
		"a policy without an answer": {403, `{"status":403,"code":"policy_denied","detail":"the policy took longer than 50ms"}`},
		"a page":                     {200, "<html>back soon</html>"}, "an object": {200, "{}"}, "no list": {200, `{"namespace":"shop","service":"cart","revision":9,"instances":null}`}} {
		t.Run(name, func(t *testing.T) {
			g := newRegister(1000)
			var between atomic.Bool
			n := node(t, func(w http.ResponseWriter, r *http.Request) {
				if between.Load() {
					if strings.Contains(page.body, "policy_denied") {
						w.Header().Set("Retry-After", "1")
					}
					w.WriteHeader(page.status)
					fmt.Fprint(w, page.body)
					return
				}
				g.ServeHTTP(w, r)
			})
			c := dial(t, Config{}, n)
			r := c.NewResolver(ResolverOptions{Wait: 20 * time.Millisecond})
			defer r.Close()
			eventually(t, r, func(a *Answer, err error) bool { return err == nil && a.Problem == nil })
			between.Store(true)
			eventually(t, r, func(a *Answer, err error) bool {
				if err != nil || len(a.Instances) != 1 {
					t.Fatalf("an answer was lost: %+v, %v", a, err)
				}
				return a.Problem != nil
			})
			if d, err := c.Discover(t.Context(), "shop", "cart", Filter{}); err == nil {
				t.Errorf("found %+v", d)
			}
		})
	}
}

func TestResolverGivesUpAnAnswerPastItsAge(t *testing.T) {
	g := newRegister(1000)
	r := dial(t, Config{}, node(t, g.ServeHTTP)).NewResolver(ResolverOptions{MaxAge: 300 * time.Millisecond})
	defer r.Close()
	told := make(chan error, 100)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	followed := make(chan error, 1)
	go func() {
		followed <- r.Follow(ctx, "shop", "cart", func(a *Answer, err error) {
			select {
			case told <- err:
			case <-ctx.Done():
			}
		})
	}()
	hear := func(what string, is func(error) bool) {
		t.Helper()
		for late := time.After(time.Minute); ; {
			select {
			case err := <-told:
				if is(err) {
					return
				}
			case <-late:
				t.Fatalf("it is not told %s", what)
			}
		}
	}
	hear("an answer", func(err error) bool { return err == nil })
	g.refuse.Store(gone)
	hear("that the answer is too old", func(err error) bool { return fault.Is(err, fault.NoLeader) })
	if _, err := r.Resolve(t.Context(), "shop", "cart"); !fault.Is(err, fault.NoLeader) {
		t.Errorf("an answer too old is still given: %v", err)
	}
	// What is there now knows nothing of the past: a cluster made anew.
	g.revision.Store(2)
	g.refuse.Store("")
	eventually(t, r, func(a *Answer, err error) bool { return err == nil && a.Revision == 2 })
	cancel()
	if err := <-followed; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestResolverNeverGoesBack(t *testing.T) {
	ahead, behind := newRegister(2000), newRegister(1000)
	ahead.revision.Store(9)
	r := dial(t, Config{}, node(t, ahead.ServeHTTP), node(t, behind.ServeHTTP)).NewResolver(ResolverOptions{Wait: 20 * time.Millisecond})
	defer r.Close()
	eventually(t, r, func(a *Answer, err error) bool { return err == nil && a.Revision == 9 })
	ahead.refuse.Store(gone) // only the node that has missed something is left
	eventually(t, r, func(a *Answer, err error) bool {
		if err != nil || a.Revision != 9 || a.Instances[0].Port != 2000 {
			t.Fatalf("it went back: %+v, %v", a, err)
		}
		return a.Problem != nil
	})
	behind.port.Store(3000)
	behind.revision.Store(10)
	eventually(t, r, func(a *Answer, err error) bool { return err == nil && a.Revision == 10 && a.Instances[0].Port == 3000 })
}

func TestResolverLetsGoOfWhatNobodyWants(t *testing.T) {
	var asked atomic.Int64
	g := newRegister(1000)
	n := node(t, func(w http.ResponseWriter, r *http.Request) { asked.Add(1); g.ServeHTTP(w, r) })
	r := dial(t, Config{}, n).NewResolver(ResolverOptions{Wait: 5 * time.Millisecond, Idle: 20 * time.Millisecond})
	defer r.Close()
	if _, err := r.Resolve(t.Context(), "shop", "cart"); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		r.mu.Lock()
		left := len(r.services)
		r.mu.Unlock()
		if left == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("it is followed for ever")
		}
	}
	if _, err := r.Resolve(t.Context(), "shop", "cart"); err != nil {
		t.Fatal(err)
	}
}
