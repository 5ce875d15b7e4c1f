package provider_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/muster-registry/muster/fault"
)

func newForeign(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestIntrospection(t *testing.T) {
	i := newIssuer(t)
	c := i.introspection()
	c.Audiences = []string{"muster"}
	s, _ := set(t, c, i.oidc())
	hour := time.Now().Add(time.Hour).Unix()
	for text, claims := range map[string]map[string]any{
		"good-opaque-token-0001":  {"sub": "alice", "aud": "muster", "exp": hour, "jti": "j"},
		"wrong-audience-token-01": {"sub": "alice", "aud": "other", "exp": hour},
		"expired-opaque-token-01": {"sub": "alice", "aud": "muster", "exp": time.Now().Add(-time.Minute).Unix()},
		"strange-expiry-token-01": {"sub": "alice", "aud": "muster", "exp": "soon"},
		"nobodys-opaque-token-01": {"aud": "muster", "exp": hour},
	} {
		i.tokens[text] = claims
	}
	p, err := verify(s, "good-opaque-token-0001", time.Now())
	if err != nil || p.ID != "oidc:opaque/alice" || p.Credential.JTI != "j" || p.Claims["active"] != nil {
		t.Fatalf("got %+v, %v", p, err)
	}
	for _, text := range []string{"wrong-audience-token-01", "expired-opaque-token-01", "strange-expiry-token-01", "nobodys-opaque-token-01", "unknown-opaque-token-01"} {
		if _, err := verify(s, text, time.Now()); !fault.Is(err, fault.Unauthenticated) {
			t.Errorf("%s: %v", text, err)
		}
	}
	// What cannot be a token, and JWTs of others, are not sent to anybody.
	before := i.asked.Load()
	for _, text := range []string{"short", strings.Repeat(".", 4000), strings.Repeat("a.", 400), "not a token, by its characters", newIssuer(t).sign("ec", nil), i.sign("ec", nil)} {
		_, _ = verify(s, text, time.Now())
	}
	if n := i.asked.Load() - before; n != 0 {
		t.Errorf("the endpoint was asked %d times", n)
	}
	// Known answers, good and bad, are not asked for again.
	for range 50 {
		_, _ = verify(s, "good-opaque-token-0001", time.Now())
		_, _ = verify(s, "unknown-opaque-token-01", time.Now())
	}
	if n := i.asked.Load() - before; n > 1 {
		t.Errorf("the endpoint was asked %d times about what is known", n)
	}
}

func TestIntrospectionOutage(t *testing.T) {
	i := newIssuer(t)
	i.tokens["alice-opaque-token-01"] = map[string]any{"sub": "alice"}
	i.tokens["bobby-opaque-token-01"] = map[string]any{"sub": "bob"}
	s, reg := set(t, i.introspection())
	if _, err := verify(s, "alice-opaque-token-01", time.Now()); err != nil {
		t.Fatal(err)
	}
	for name, answer := range map[string]func(http.ResponseWriter){
		"not RFC 7662": func(w http.ResponseWriter) { _, _ = w.Write([]byte(`{"result":true}`)) },
		"no JSON":      func(w http.ResponseWriter) { _, _ = w.Write([]byte(`<html>`)) },
		"twice":        func(w http.ResponseWriter) { _, _ = w.Write([]byte(`{"active":false,"active":true,"sub":"x"}`)) },
		"active: text": func(w http.ResponseWriter) { _, _ = w.Write([]byte(`{"active":"true","sub":"x"}`)) },
		"not known":    func(w http.ResponseWriter) { w.WriteHeader(http.StatusUnauthorized) },
		"redirect":     func(w http.ResponseWriter) { w.Header().Set("Location", i.url+"/introspect"); w.WriteHeader(307) },
		"endless": func(w http.ResponseWriter) {
			_, _ = w.Write([]byte(`{"active":true,"sub":"` + strings.Repeat("x", 1<<20) + `"}`))
		},
		"cut off": func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", "900")
			_, _ = w.Write([]byte(`{"active":true`))
		},
		"too late, 500": func(w http.ResponseWriter) { w.WriteHeader(http.StatusBadGateway) },
	} {
		i.change(func() { i.answer = func(w http.ResponseWriter, _ *http.Request) bool { answer(w); return true } })
		if _, err := verify(s, "bobby-opaque-token-01", time.Now()); !fault.Is(err, fault.IdentityProviderUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := verify(s, "alice-opaque-token-01", time.Now()); err != nil {
			t.Errorf("%s: a session: %v", name, err)
		}
	}
	if testutil.ToFloat64(gauge(t, reg, "muster_identity_provider_up")) != 0 {
		t.Error("the provider is said to be up")
	}
	i.change(func() { i.answer = nil })
	eventually(t, "let in once the provider is back", func() bool { _, err := verify(s, "bobby-opaque-token-01", time.Now()); return err == nil })
}

// TestQuestionsAreBounded: a slow endpoint gets no more than 32 questions at a
// time, one for each token, and everybody is answered.
func TestQuestionsAreBounded(t *testing.T) {
	const clients = 200
	i := newIssuer(t)
	release := make(chan struct{})
	var now, most, all atomic.Int64
	i.answer = func(http.ResponseWriter, *http.Request) bool {
		all.Add(1)
		n := now.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		<-release
		now.Add(-1)
		return false
	}
	for n := range clients {
		i.tokens[fmt.Sprintf("opaque-token-%08d", n)] = map[string]any{"sub": "alice"}
	}
	s, _ := set(t, i.introspection())
	failed := make(chan error, 3*clients)
	for n := range clients {
		for range 3 {
			go func() { _, err := verify(s, fmt.Sprintf("opaque-token-%08d", n), time.Now()); failed <- err }()
		}
	}
	eventually(t, "32 questions are asked", func() bool { return now.Load() == 32 })
	close(release)
	for range cap(failed) {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	if most.Load() != 32 || all.Load() != clients {
		t.Errorf("%d questions at the same time, %d in all for %d tokens", most.Load(), all.Load(), clients)
	}
}

// TestTenThousandAtOnce is the morning after a restart: everyone comes back,
// each with a token that this node has never seen.
func TestTenThousandAtOnce(t *testing.T) {
	const clients = 10_000
	i := newIssuer(t)
	s, reg := set(t, i.oidc(), i.introspection())
	texts := make([]string, clients)
	for n := range texts {
		if n%2 == 0 {
			texts[n] = i.sign("ec", map[string]any{"sub": fmt.Sprint("client-", n)})
			continue
		}
		texts[n] = fmt.Sprintf("opaque-token-%08d", n)
		i.tokens[texts[n]] = map[string]any{"sub": fmt.Sprint("client-", n), "exp": time.Now().Add(time.Hour).Unix()}
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	start := make(chan struct{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	failed := map[string]int{}
	var again atomic.Int64 // calls that got no answer in time, as on a slow machine; each may stand for a question
	began := time.Now()
	for n := range clients {
		for range 2 { // two connections each
			wg.Go(func() {
				<-start
				for {
					p, err := verify(s, texts[n], time.Now())
					if fault.Is(err, fault.IdentityProviderUnavailable) {
						again.Add(1)
						time.Sleep(fault.From(err).RetryAfter)
						continue
					}
					if err != nil || !strings.HasSuffix(p.ID, fmt.Sprint("/client-", n)) {
						mu.Lock()
						failed[fmt.Sprint(err)]++
						mu.Unlock()
					}
					return
				}
			})
		}
	}
	close(start)
	wg.Wait()
	took := time.Since(began)
	runtime.GC()
	runtime.ReadMemStats(&after)
	if len(failed) > 0 {
		t.Fatalf("failures: %v", failed)
	}
	if n := i.asked.Load(); n > clients/2+again.Load() {
		t.Errorf("%d questions about %d opaque tokens, of which %d calls were not answered", n, clients/2, again.Load())
	}
	if n := i.fetches.Load(); n > int64(took/time.Second)+2 {
		t.Errorf("the keys were fetched %d times", n)
	}
	grown := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	if grown > 64<<20 {
		t.Errorf("%d MiB are held for the sessions", grown>>20)
	}
	held := testutil.ToFloat64(gauge(t, reg, "muster_identity_sessions"))
	if held < clients*9/10 {
		t.Errorf("%v sessions are remembered", held)
	}
	t.Logf("%d clients on two connections each: %v, %d KiB held, %d questions, %d fetches of keys",
		clients, took.Round(time.Millisecond), grown>>10, i.asked.Load(), i.fetches.Load())
}

func BenchmarkSession(b *testing.B) {
	i := newIssuer(b)
	s, _ := set(b, i.oidc())
	text := i.sign("rsa", nil)
	if _, err := verify(s, text, time.Now()); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := verify(s, text, time.Now()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	for _, kid := range []string{"rsa", "ec", "ed"} {
		b.Run(kid, func(b *testing.B) {
			i := newIssuer(b)
			c := i.oidc()
			c.SessionTTL = 1 // over before it is used
			s, _ := set(b, c)
			text := i.sign(kid, nil)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := verify(s, text, time.Now()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
