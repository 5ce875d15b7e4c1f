package rest_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/muster-registry/muster/api/rest"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/setting"
)

const (
	syncPath = "/v1/policy/sync"
	secret   = "a secret of the Git host"
	push     = `{"ref":"refs/heads/main"}`
)

func signed(key, body string) string {
	sum := hmac.New(sha256.New, []byte(key))
	sum.Write([]byte(body))
	return "sha256=" + hex.EncodeToString(sum.Sum(nil))
}

func TestWebhooksAreSigned(t *testing.T) {
	for name, c := range map[string]struct {
		secret string
		header http.Header
		status int
	}{
		"GitHub":                     {secret, header("X-Hub-Signature-256", signed(secret, push)), 202},
		"GitLab":                     {secret, header("X-Gitlab-Token", secret), 202},
		"another secret":             {secret, header("X-Hub-Signature-256", signed("guess", push)), 401},
		"another body":               {secret, header("X-Hub-Signature-256", signed(secret, "{}")), 401},
		"no HMAC":                    {secret, header("X-Hub-Signature-256", "sha256=zz"), 401},
		"an empty one":               {secret, header("X-Hub-Signature-256", ""), 401},
		"two of them":                {secret, header("X-Hub-Signature-256", signed(secret, push), "X-Hub-Signature-256", signed("guess", push)), 401},
		"a wrong HMAC and the token": {secret, header("X-Hub-Signature-256", "sha256=00", "X-Gitlab-Token", secret), 401},
		"another token":              {secret, header("X-Gitlab-Token", "guess"), 401},
		"an empty token":             {secret, header("X-Gitlab-Token", ""), 401},
		"the old SHA-1":              {secret, header("X-Hub-Signature", "sha1=00"), 401},
		"nothing":                    {secret, nil, 401},
		"no secret, an empty token":  {"", header("X-Gitlab-Token", ""), 401},
		"no secret, its HMAC":        {"", header("X-Hub-Signature-256", signed("", push)), 401},
	} {
		e := newEdge(t, rest.Options{WebhookSecret: []byte(c.secret)})
		w := e.do(ask{method: "POST", path: syncPath, body: push, header: c.header})
		if w.Code != c.status {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
		if c.status == 401 {
			refused(t, w, 401, fault.Unauthenticated)
		}
		if want := c.status == 202; want != slices.Equal(e.syncs, []bool{false}) || !want && len(e.syncs) > 0 {
			t.Errorf("%s: pulls %v", name, e.syncs)
		}
	}
}

// A credential beside a bad signature does not help: whoever signs means it.
func TestABadSignatureIsNotMadeGoodByAToken(t *testing.T) {
	e := newEdge(t, rest.Options{WebhookSecret: []byte(secret)})
	refused(t, e.do(ask{caller: "operator", method: "POST", path: syncPath, body: push, header: header("X-Hub-Signature-256", "sha256=00")}), 401, fault.Unauthenticated)
}

func TestWebhooksAreLimited(t *testing.T) {
	e := newEdge(t, rest.Options{WebhookSecret: []byte(secret)})
	var g errgroup.Group
	codes := make([]int, 200)
	for i := range codes {
		g.Go(func() error {
			codes[i] = e.do(ask{method: "POST", path: syncPath, body: push, header: header("X-Gitlab-Token", "guess")}).Code
			return nil
		})
	}
	_ = g.Wait()
	if !slices.Contains(codes, 429) || !slices.Contains(codes, 401) {
		t.Errorf("%v", codes)
	}
	// Somebody with a credential pulls all the same.
	e.call("admin", "POST", syncPath, "", 200)
	big := strings.Repeat("a", 5<<20)
	e = newEdge(t, rest.Options{WebhookSecret: []byte(secret)})
	refused(t, e.do(ask{method: "POST", path: syncPath, body: big, header: header("X-Hub-Signature-256", signed(secret, big))}), 413, fault.TooLarge)
}

func TestPullingAndItsHistory(t *testing.T) {
	e := newEdge(t, rest.Options{})
	w := e.call("admin", "POST", syncPath, "", 200)
	if w.Body.String() != `{"outcome":"unchanged"}` || !slices.Equal(e.syncs, []bool{true}) {
		t.Errorf("%s %v", w.Body, e.syncs)
	}
	refused(t, e.call("viewer", "POST", syncPath, "", 403), 403, fault.Forbidden)
	refused(t, e.call("admin", "GET", syncPath, "", 404), 404, fault.NotFound)
	next := *e.State()
	x := next.Settings.Txn(nil)
	const spec = `{"source":{"kind":"git","url":"https://a/b","commit":"c"},"outcome":"accepted"}`
	if _, _, err := x.Put(setting.Stamp{Revision: 7, Time: time.Unix(7, 0), By: "git"}, setting.Sync, "", "git", []byte(spec), 0); err != nil {
		t.Fatal(err)
	}
	next.Settings = x.Commit()
	e.state.Store(&next)
	if w := e.call("admin", "GET", syncPath, "", 200); w.Body.String() != spec || w.Header().Get("ETag") != `"7"` {
		t.Errorf("%s", w.Body)
	}
}
