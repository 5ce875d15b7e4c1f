package rest_test

import (
	"context"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/muster-registry/muster/api/rest"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/identity"
)

const find = "/v1/discovery/shop/cart"

// shopEdge has one service with one instance, at revision 1.
func shopEdge(t testing.TB, opt rest.Options) *edge {
	t.Helper()
	e := newEdge(t, opt)
	e.call("publisher", "PUT", cartA+"?create_service=true", instance, 201)
	return e
}

// begin asks in the background; the answer comes when the channel is closed.
func (e *edge) begin(a ask) (*httptest.ResponseRecorder, <-chan struct{}) {
	w, done := httptest.NewRecorder(), make(chan struct{})
	go func() {
		defer close(done)
		e.api.ServeHTTP(w, a.request())
	}()
	return w, done
}

func TestBlockingWakesForItsOwnServiceOnly(t *testing.T) {
	for _, path := range []string{find + "?index=1&wait=10m", cart + "/instances?index=1&wait=10m", "/v1/discovery?namespace=shop&service=cart&index=1&wait=10m"} {
		synctest.Test(t, func(t *testing.T) {
			e := shopEdge(t, rest.Options{})
			w, done := e.begin(ask{caller: "viewer", method: "GET", path: path})
			synctest.Wait()
			e.call("publisher", "PUT", "/v1/namespaces/shop/services/other", `{}`, 201)
			e.call("publisher", "PUT", "/v1/namespaces/shop/services/other/instances/a", instance, 201)
			synctest.Wait()
			select {
			case <-done:
				t.Fatalf("%s: another service's change was answered: %s", path, w.Body)
			default:
			}
			began := time.Now()
			e.call("publisher", "PUT", cart+"/instances/b", instance, 201)
			<-done
			if w.Code != 200 || !strings.Contains(w.Body.String(), `"id":"b"`) || time.Since(began) != 0 {
				t.Errorf("%s: %d %s after %s", path, w.Code, w.Body, time.Since(began))
			}
		})
	}
}

func TestBlockingEndsWithTheTime(t *testing.T) {
	for query, want := range map[string]time.Duration{
		"index=1&wait=10s": 10 * time.Second, "index=1": 30 * time.Second, "index=1&wait=1h": 10 * time.Minute, "index=1&wait=0s": 0,
		"index=0&wait=10s": 0, "wait=10s": 0, "index=99&wait=10s": 10 * time.Second,
	} {
		synctest.Test(t, func(t *testing.T) {
			e := shopEdge(t, rest.Options{})
			began := time.Now()
			w := e.call("viewer", "GET", find+"?"+query, "", 200)
			if took := time.Since(began); took != want || !strings.Contains(w.Body.String(), `"id":"a"`) {
				t.Errorf("%s: answered %s after %s, want %s", query, w.Body, took, want)
			}
		})
	}
}

func TestBlockingWhenTheServiceGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := shopEdge(t, rest.Options{})
		w, done := e.begin(ask{caller: "viewer", method: "GET", path: find + "?index=1&wait=10m"})
		synctest.Wait()
		e.call("publisher", "DELETE", cart, "", 204)
		<-done
		refused(t, w, 404, fault.ServiceNotFound)
	})
}

func TestBlockingEndsWithTheToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := shopEdge(t, rest.Options{})
		minted, err := identity.Mint("viewer", nil, time.Minute, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		x := e.State().Tokens.Txn(nil)
		if _, err := x.Put(identity.Stamp{Revision: 2, Time: time.Now()}, minted.ID, minted.Spec); err != nil {
			t.Fatal(err)
		}
		next := *e.State()
		next.Tokens = x.Commit()
		e.state.Store(&next)
		w, done := e.begin(ask{method: "GET", path: find + "?index=1&wait=10m", header: header("Authorization", "Bearer "+minted.Text)})
		synctest.Wait()
		time.Sleep(2 * time.Minute) // virtual
		e.call("publisher", "PUT", cart+"/instances/b", instance, 201)
		<-done
		refused(t, w, 401, fault.Unauthenticated)
	})
}

func TestBlockingEndsWithTheCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := shopEdge(t, rest.Options{})
		ctx, leave := context.WithCancel(t.Context())
		w, done := httptest.NewRecorder(), make(chan struct{})
		go func() {
			defer close(done)
			e.api.ServeHTTP(w, ask{caller: "viewer", method: "GET", path: find + "?index=1&wait=10m"}.request().WithContext(ctx))
		}()
		synctest.Wait()
		leave()
		<-done
		refused(t, w, 503, fault.NotReady)
	})
}

func TestMinRevision(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := shopEdge(t, rest.Options{})
		w, done := e.begin(ask{caller: "viewer", method: "GET", path: find + "?min_revision=2"})
		synctest.Wait()
		e.call("publisher", "PUT", cart+"/instances/b", instance, 201)
		<-done
		if w.Code != 200 || !strings.Contains(w.Body.String(), `"id":"b"`) {
			t.Errorf("read your own writes: %d %s", w.Code, w.Body)
		}
	})
	for query, want := range map[string]time.Duration{
		"min_revision=18446744073709551615": 5 * time.Second, "min_revision=2&wait=1s": time.Second, "min_revision=2&wait=1h": time.Minute, "min_revision=2&wait=0s": 0,
	} {
		for _, path := range []string{find, cart, cartA, "/v1/services", cart + "/instances", "/v1/discovery"} {
			synctest.Test(t, func(t *testing.T) {
				e := shopEdge(t, rest.Options{})
				began := time.Now()
				refused(t, e.do(ask{caller: "viewer", method: "GET", path: path + "?" + query}), 503, fault.TooStale)
				if took := time.Since(began); took != want {
					t.Errorf("%s?%s: refused after %s, want %s", path, query, took, want)
				}
			})
		}
	}
}

func TestLinearizable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := shopEdge(t, rest.Options{})
		e.age = time.Hour // as if contact had been lost; the round proves otherwise
		e.readIndex = func(context.Context) error {
			e.age = 3 * time.Second // a heartbeat may say less than the round
			time.Sleep(20 * time.Millisecond)
			return nil
		}
		w := e.call("viewer", "GET", find+"?consistency=linearizable", "", 200)
		if w.Header().Get("Muster-Consistency") != "linearizable" || w.Header().Get("Muster-Staleness-Ms") != "20" {
			t.Errorf("headers %v", w.Header())
		}
		e.readIndex = func(context.Context) error { return fault.New(fault.NoLeader, "there is no leader") }
		refused(t, e.do(ask{caller: "viewer", method: "GET", path: find + "?consistency=linearizable"}), 503, fault.NoLeader)
	})
}

func TestStaleness(t *testing.T) {
	const lost = "lost"
	for name, tc := range map[string]struct {
		age   time.Duration
		query string
		round string // what a round with the leader gives; "": none is made
		code  fault.Code
		ms    string
	}{
		"fresh":                        {time.Second, "", "", "", "1000"},
		"rounded up":                   {time.Second + 1, "", "", "", "1001"},
		"on the limit":                 {30 * time.Second, "", "", "", "30000"},
		"isolated":                     {30*time.Second + 1, "", "", fault.TooStale, ""},
		"never in contact":             {1<<63 - 1, "", "", fault.TooStale, ""},
		"young enough":                 {time.Second, "?max_staleness=1s", "", "", "1000"},
		"too old, confirmed":           {2 * time.Second, "?max_staleness=1s", "ok", "", "0"},
		"too old, leader away":         {2 * time.Second, "?max_staleness=1s", lost, fault.TooStale, ""},
		"none at all, confirmed":       {time.Millisecond, "?max_staleness=0s", "ok", "", "0"},
		"isolated, allowed by caller":  {31 * time.Second, "?max_staleness=1h", "", fault.TooStale, ""},
		"isolated, but linearizable":   {31 * time.Second, "?consistency=linearizable", "ok", "", "0"},
		"isolated, in a blocking read": {31 * time.Second, "?index=1&wait=1s", "", fault.TooStale, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := shopEdge(t, rest.Options{})
				e.age = tc.age
				e.readIndex = func(context.Context) error {
					switch tc.round {
					case "":
						t.Error("the leader was asked")
					case lost:
						return fault.New(fault.NoLeader, "there is no leader")
					}
					return nil
				}
				w := e.do(ask{caller: "viewer", method: "GET", path: find + tc.query})
				if tc.code != "" {
					refused(t, w, 503, tc.code)
					return
				}
				if w.Code != 200 || w.Header().Get("Muster-Staleness-Ms") != tc.ms {
					t.Errorf("%d %s, %v", w.Code, w.Body, w.Header())
				}
			})
		})
	}
}

// The age that is told covers the time until the answer leaves.
func TestStalenessCoversTheAnswersOwnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := shopEdge(t, rest.Options{})
		e.age = time.Second
		w := e.call("viewer", "GET", find+"?index=1&wait=10s", "", 200)
		if ms, _ := strconv.Atoi(w.Header().Get("Muster-Staleness-Ms")); ms < 1000 {
			t.Errorf("Muster-Staleness-Ms: %d", ms)
		}
	})
}

// Law 6 is about decisions, too; what tells how the cluster is goes on.
func TestIsolationEndsDecisions(t *testing.T) {
	e := shopEdge(t, rest.Options{})
	e.age = time.Minute
	for _, a := range []ask{
		{method: "POST", path: "/v1/authorize", body: `{"input":{}}`}, {method: "GET", path: cart}, {method: "GET", path: "/v1/services"},
		{method: "GET", path: cartA}, {method: "GET", path: "/v1/discovery"}, {method: "GET", path: "/v1/tokens"}, {method: "GET", path: "/v1/policy/revisions"},
	} {
		a.caller = "operator"
		refused(t, e.do(a), 503, fault.TooStale)
	}
	e.call("operator", "GET", "/v1/cluster/status", "", 200)
	e.call("operator", "GET", "/livez", "", 200)
	// Who sends requests by /readyz must not send them here.
	refused(t, e.do(ask{method: "GET", path: "/readyz"}), 503, fault.TooStale)
	refused(t, e.do(ask{method: "GET", path: "/readyz?verbose"}), 503, fault.TooStale)
}

func TestNotReady(t *testing.T) {
	e := shopEdge(t, rest.Options{})
	e.ready = fault.New(fault.NotReady, "the node has not caught up")
	for _, r := range e.api.Routes() {
		if r.ID == "livez" {
			continue
		}
		// Also to a token that this node does not know yet.
		for _, caller := range []string{"operator", "unheard-of", ""} {
			refused(t, e.do(ask{caller: caller, method: r.Method, path: filled(r)}), 503, fault.NotReady)
		}
	}
	e.call("", "GET", "/livez", "", 200)
}

// A node without a vote answers reads, and is not ready for the next one to be
// taken away.
func TestReadyMeansThatItVotes(t *testing.T) {
	e := shopEdge(t, rest.Options{})
	e.votes = fault.New(fault.NotReady, "no vote yet")
	e.call("viewer", "GET", cart, "", 200)
	e.call("", "GET", "/livez", "", 200)
	refused(t, e.do(ask{method: "GET", path: "/readyz"}), 503, fault.NotReady)
	refused(t, e.do(ask{method: "GET", path: "/readyz?verbose"}), 503, fault.NotReady)
	e.votes = nil
	e.call("", "GET", "/readyz", "", 200)
}

// A record is waited for by itself: what else happens to its service does not
// answer, its deletion does.
func TestBlockingOnARecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := shopEdge(t, rest.Options{})
		w, done := e.begin(ask{caller: "viewer", method: "GET", path: cart + "?index=1&wait=10m"})
		synctest.Wait()
		e.call("publisher", "PUT", cart+"/instances/b", instance, 201)
		synctest.Wait()
		select {
		case <-done:
			t.Fatalf("an instance's change was answered: %s", w.Body)
		default:
		}
		e.call("publisher", "PUT", cart, `{"owner":"new"}`, 200)
		<-done
		if w.Code != 200 || !strings.Contains(w.Body.String(), `"owner":"new"`) {
			t.Errorf("the change of the record: %d %s", w.Code, w.Body)
		}
		made := e.call("publisher", "PUT", cartV1, `{"format":"openapi","document":`+openapi+`}`, 201)
		revision := strings.Trim(made.Header().Get("Etag"), `"`)
		w, done = e.begin(ask{caller: "viewer", method: "GET", path: cartV1 + "?wait=10m&index=" + revision})
		synctest.Wait()
		e.call("publisher", "DELETE", cartV1, "", 204)
		<-done
		if w.Code != 404 {
			t.Errorf("the deletion of the version: %d %s", w.Code, w.Body)
		}
	})
}
