package rest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/muster-registry/muster/api/rest"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestProblems(t *testing.T) {
	for name, err := range map[string]error{
		"invalid_field":     fault.Invalid("/port", "must be from 1 to 65535"),
		"invalid_policy":    &fault.Error{Code: fault.InvalidPolicy, Detail: "the policy does not compile", Places: []fault.Place{{File: "a.rego", Row: 3, Col: 1, Message: "unsafe variable"}}},
		"policy_denied":     &fault.Error{Code: fault.PolicyDenied, Detail: "the policy refuses this update", Reasons: []string{"wrong owner"}, DecisionID: "d-7", PolicyRevision: 4},
		"denied_no_reason":  &fault.Error{Code: fault.PolicyDenied, Detail: "the policy refuses this update", DecisionID: "d-7"},
		"revision_mismatch": &fault.Error{Code: fault.RevisionMismatch, Detail: "the record is at revision 12", Current: 12},
		"mismatch_missing":  &fault.Error{Code: fault.RevisionMismatch, Detail: "there is no such record"},
		"no_leader":         fault.New(fault.NoLeader, "there is no leader; try again"),
		"unknown_outcome":   fault.Lost(fault.NoLeader, errors.New("10.0.0.7:8300: broken pipe"), "the leader went away; the change may have happened"),
		"internal":          errors.New("bbolt: /var/lib/muster/state.db: no space left on device"),
	} {
		t.Run(name, func(t *testing.T) {
			e := newEdge(t, rest.Options{})
			e.submit = func(*command.Intent) error { return err }
			w := e.do(ask{caller: "publisher", method: "PUT", path: cart, body: `{}`, header: header("X-Request-Id", "r-1")})
			refused(t, w, fault.From(err).Code.Status(), fault.From(err).Code)
			var got bytes.Buffer
			if err := json.Indent(&got, w.Body.Bytes(), "", "  "); err != nil {
				t.Fatal(err)
			}
			got.WriteByte('\n')
			file := filepath.Join("testdata", "problem_"+name+".json")
			if *update {
				if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got.String()); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestRetryAfter(t *testing.T) {
	e := newEdge(t, rest.Options{})
	f := fault.New(fault.RateLimited, "slow down")
	f.RetryAfter = 2001 * 1e6 // 2.001 s
	e.submit = func(*command.Intent) error { return f }
	if got := e.do(ask{caller: "publisher", method: "PUT", path: cart, body: `{}`}).Header().Get("Retry-After"); got != "3" {
		t.Errorf("Retry-After: %s, want 3", got)
	}
}

func TestRequestIDs(t *testing.T) {
	e := newEdge(t, rest.Options{})
	seen := map[string]bool{}
	for _, given := range []string{"", "a b", "x\"y", strings.Repeat("x", 129), "ünïcode", "a\tb"} {
		got := e.do(ask{caller: "viewer", method: "GET", path: "/v1/services", header: header("X-Request-Id", given)}).Header().Get("X-Request-Id")
		if got == given || seen[got] || got == "" {
			t.Errorf("%q was answered with %q", given, got)
		}
		seen[got] = true
	}
	for _, given := range []string{"r-1", "0b8f2e7a-5b0e-4c59-9a8e-9a6c2b6a4f11", strings.Repeat("x", 128)} {
		if got := e.do(ask{method: "GET", path: "/nothing", header: header("X-Request-Id", given)}).Header().Get("X-Request-Id"); got != given {
			t.Errorf("%q was answered with %q", given, got)
		}
	}
}

// traced counts the connections that are made.
func traced(ctx context.Context, fresh *int) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
		if !i.Reused {
			*fresh++
		}
	}})
}

// serve runs the edge on loopback.
func (e *edge) serve() *httptest.Server {
	s := httptest.NewServer(e.api)
	if t, ok := e.TB.(*testing.T); ok {
		t.Cleanup(s.Close)
	}
	return s
}

func TestPanicsAreAnsweredAndTheConnectionLives(t *testing.T) {
	var log bytes.Buffer
	var observed []int
	e := newEdge(t, rest.Options{Logger: slog.New(slog.NewTextHandler(&log, nil)), Observe: func(op string, status int, _ time.Duration) { observed = append(observed, status) }})
	e.call("publisher", "PUT", cart, `{}`, 201)
	e.policed(func(*policy.Input) policy.Decision { panic("a mistake of ours") })
	s := e.serve()
	fresh := 0
	client := &http.Client{Transport: &http.Transport{DisableCompression: true}}
	for range 2 {
		r := ask{caller: "viewer", method: "GET", path: cart, header: header("X-Request-Id", "r-9")}.request()
		r.RequestURI, r.URL.Scheme, r.URL.Host = "", "http", strings.TrimPrefix(s.URL, "http://")
		r = r.WithContext(traced(r.Context(), &fresh))
		res, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != 500 || strings.Contains(string(body), "mistake") || !strings.Contains(string(body), `"code":"internal"`) {
			t.Errorf("%d %s", res.StatusCode, body)
		}
	}
	if fresh != 1 {
		t.Errorf("%d connections, want 1", fresh)
	}
	if s := log.String(); !strings.Contains(s, "a mistake of ours") || !strings.Contains(s, "r-9") {
		t.Errorf("the log says %s", s)
	}
	s.Close()
	if !slices.Equal(observed, []int{201, 500, 500}) {
		t.Errorf("observed %v", observed)
	}
	if e.do(ask{caller: "viewer", method: "GET", path: "/v1/nothing"}).Code != 404 {
		t.Error("the edge is stuck")
	}
}
