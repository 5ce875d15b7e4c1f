package webhook_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/muster-registry/muster/egress"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/webhook"
	"github.com/muster-registry/muster/setting"
)

// loopback is a dialer that may reach the servers of these tests.
var loopback = &egress.Dialer{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}

// patient is a time-out that decides nothing on a slow machine.
const patient = "30s"

// outside is a policy endpoint on loopback, over TLS.
type outside struct {
	*httptest.Server
	calls atomic.Int64
}

func endpoint(t *testing.T, answer http.HandlerFunc) *outside {
	t.Helper()
	o := new(outside)
	o.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o.calls.Add(1)
		answer(w, r)
	}))
	o.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	o.StartTLS()
	t.Cleanup(o.Close)
	return o
}

func says(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) }
}

// hang never answers. The server only notices that the caller left once the
// request is read.
func hang(_ http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	<-r.Context().Done()
}

func (o *outside) ca() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: o.Certificate().Raw}))
}

// spec is the setting of a webhook at the endpoint; change has its say last.
func (o *outside) spec(change func(*webhook.Spec)) webhook.Spec {
	s := webhook.Spec{
		URL: o.URL + "/v1/data/api/registry/authz/allow", Events: []string{"on_register", "on_update", "on_delete"},
		Timeout: patient, Retry: webhook.Retry{MaxAttempts: 1, Interval: "1ms"}, TLS: &webhook.TLS{CA: o.ca()},
	}
	if change != nil {
		change(&s)
	}
	return s
}

// settings stores webhooks as the gate would.
type settings struct {
	t        *testing.T
	table    *setting.Table
	revision uint64
}

func (s *settings) put(name string, spec webhook.Spec) {
	s.t.Helper()
	sent, err := json.Marshal(spec)
	if err != nil {
		s.t.Fatal(err)
	}
	stored, err := webhook.Canonical(name, sent, loopback)
	if err != nil {
		s.t.Fatal(err)
	}
	var observed uint64
	if r, ok := s.table.Get(setting.Webhook, "", name); ok {
		observed = r.Revision
	}
	s.revision++
	x := s.table.Txn(nil)
	if _, _, err := x.Put(setting.Stamp{Revision: s.revision, Time: time.Unix(1, 0)}, setting.Webhook, "", name, stored, observed); err != nil {
		s.t.Fatal(err)
	}
	s.table = x.Commit()
}

func (s *settings) remove(name string) {
	s.t.Helper()
	r, _ := s.table.Get(setting.Webhook, "", name)
	x := s.table.Txn(nil)
	if err := x.Delete(setting.Webhook, "", name, r.Revision); err != nil {
		s.t.Fatal(err)
	}
	s.table = x.Commit()
}

// with gives hooks and the table that holds one webhook, opa.
func with(t *testing.T, spec webhook.Spec, o webhook.Options) (*webhook.Hooks, *settings) {
	t.Helper()
	if o.Dialer == nil {
		o.Dialer = loopback
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &settings{t: t, table: setting.NewTable()}
	s.put("opa", spec)
	return webhook.New(o), s
}

func change() *policy.Input {
	return &policy.Input{Action: policy.Register, Time: time.Unix(1700000000, 0), Method: "PUT", Token: "the token",
		Resource: policy.Resource{Kind: "service", Namespace: "default", Name: "cart", Payload: []byte(`{"owner":"shop"}`)}}
}

func ask(t *testing.T, h *webhook.Hooks, s *settings, in *policy.Input) []string {
	t.Helper()
	document, err := in.Document()
	if err != nil {
		t.Fatal(err)
	}
	return h.Ask(t.Context(), s.table, "0198c1d2-decision", in, document)
}

func refusedFor(t *testing.T, reasons []string, part string) {
	t.Helper()
	if len(reasons) != 1 || !strings.HasPrefix(reasons[0], "webhook opa: ") || !strings.Contains(reasons[0], part) {
		t.Errorf("reasons %q, want one of webhook opa with %q", reasons, part)
	}
}

// counted reads how often webhook opa had an outcome.
func counted(t *testing.T, h *webhook.Hooks, outcome string) float64 {
	t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(h.Collectors()...)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "muster_webhook_requests_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "outcome" && l.GetValue() == outcome {
					return m.GetCounter().GetValue()
				}
			}
		}
	}
	return 0
}

func TestTheEndpointIsAskedAsOPAIs(t *testing.T) {
	secret := "whsec_" + base64.StdEncoding.EncodeToString([]byte("a secret of thirty-two bytes ...")[:32])
	verifier, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	type seen struct {
		body   []byte
		header http.Header
		path   string
		err    error
	}
	got := make(chan seen, 1)
	o := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err == nil {
			err = verifier.Verify(body, r.Header)
		}
		got <- seen{body, r.Header, r.Method + " " + r.URL.Path, err}
		says(`{"result":true}`)(w, r)
	})
	h, s := with(t, o.spec(func(s *webhook.Spec) { s.Secret, s.Headers = secret, map[string]string{"Authorization": "Bearer x"} }), webhook.Options{})
	in := change()
	if reasons := ask(t, h, s, in); reasons != nil {
		t.Fatal(reasons)
	}
	one := <-got
	if one.err != nil {
		t.Errorf("the signature: %v", one.err)
	}
	if one.path != "POST /v1/data/api/registry/authz/allow" || one.header.Get("Content-Type") != "application/json" || one.header.Get("Authorization") != "Bearer x" {
		t.Errorf("%s %v", one.path, one.header)
	}
	if id := one.header.Get("webhook-id"); id != "0198c1d2-decision" {
		t.Errorf("webhook-id %q", id)
	}
	document, err := in.Document()
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"input":` + string(document) + `}`; string(one.body) != want {
		t.Errorf("body %s\nwant %s", one.body, want)
	}
}

func TestAnswers(t *testing.T) {
	var answer atomic.Value
	o := endpoint(t, func(w http.ResponseWriter, r *http.Request) { says(answer.Load().(string))(w, r) })
	h, s := with(t, o.spec(nil), webhook.Options{Trip: 1 << 20})
	for body, want := range map[string]string{ // "": allowed; else part of the reason
		`{"result":true}`: "",
		`{"result":true,"decision_id":"1","metrics":{}}`: "",
		`{"result":{"allow":true}}`:                      "",
		`{"result":{"allow":true,"deny":[]}}`:            "",
		`{"result":{"allow":true,"reasons":["x"]}}`:      "",
		`{"allow":true}`:                                 "",

		`{"result":false}`: "without a reason",
		`{"allow":false}`:  "without a reason",
		`{"result":{"allow":false,"reasons":["no owner"]}}`: "no owner",
		`{"allow":false,"reasons":"no owner"}`:              "no owner",
		`{"result":{"allow":true,"deny":["no owner"]}}`:     "no owner",
		`{"result":{"allow":false,"deny":[{"msg":1}]}}`:     `{"msg":1}`,
		`{"allow":false,"reasons":["a\nb"]}`:                "a b",

		``:                               "its answer is none",
		`true`:                           "its answer is none",
		`not JSON`:                       "its answer is none",
		`{"result":true} x`:              "its answer is none",
		`{"result":false,"result":true}`: "its answer is none",
		`{"result":"true"}`:              "its answer is none",
		`{"result":1}`:                   "its answer is none",
		`{"result":[true]}`:              "its answer is none",
		`{"result":null}`:                "its answer is none",
		`{"result":null,"allow":true}`:   "its answer is none",
		`{"result":{"allow":"true"}}`:    "its answer is none",
		`{"result":{}}`:                  "its answer is none",
		`{"allow":true,"deny":{"a":1}}`:  "its answer is none",
		`{}`:                             "undefined",
		`{"decision_id":"1"}`:            "undefined",
		`{"a":"` + strings.Repeat("x", 1<<20) + `"}`: "larger than 1 MiB",
	} {
		answer.Store(body)
		reasons := ask(t, h, s, change())
		if want == "" {
			if reasons != nil {
				t.Errorf("%.80s: refused for %q", body, reasons)
			}
			continue
		}
		if len(reasons) != 1 || !strings.Contains(reasons[0], want) {
			t.Errorf("%.80s: %q, want %q", body, reasons, want)
		}
	}
	if n := counted(t, h, "allowed"); n != 6 {
		t.Errorf("%v answers are counted as allowed, want 6", n)
	}
}

func TestOnlyWhatTheSettingNamesIsAsked(t *testing.T) {
	o := endpoint(t, says(`{"result":true}`))
	h, s := with(t, o.spec(func(s *webhook.Spec) {
		s.Events, s.Namespaces = []string{"on_register", "on_delete"}, []string{"shop", "bank"}
	}), webhook.Options{})
	for _, c := range []struct {
		action    policy.Action
		namespace string
		asked     int64
	}{{policy.Register, "shop", 1}, {policy.Delete, "bank", 1}, {policy.Update, "shop", 0}, {policy.Register, "default", 0}, {policy.Lookup, "shop", 0}} {
		before := o.calls.Load()
		in := change()
		in.Action, in.Resource.Namespace = c.action, c.namespace
		if reasons := ask(t, h, s, in); reasons != nil {
			t.Error(reasons)
		}
		if n := o.calls.Load() - before; n != c.asked {
			t.Errorf("%s in %s: asked %d times, want %d", c.action, c.namespace, n, c.asked)
		}
	}
}

func TestSeveralWebhooksAreAskedAtTheSameTime(t *testing.T) {
	var both sync.WaitGroup
	both.Add(2)
	meet := func(body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			both.Done()
			both.Wait() // for the other one
			says(body)(w, r)
		}
	}
	a, b := endpoint(t, meet(`{"result":{"allow":false,"reasons":["not on a Friday"]}}`)), endpoint(t, meet(`{"result":{"allow":false,"reasons":["no owner"]}}`))
	h, s := with(t, b.spec(nil), webhook.Options{})
	s.put("calendar", a.spec(nil))
	got := ask(t, h, s, change())
	if len(got) != 2 || got[0] != "webhook calendar: not on a Friday" || got[1] != "webhook opa: no owner" {
		t.Errorf("%q", got)
	}
}

func TestFailuresAreTriedAgain(t *testing.T) {
	for _, backoff := range []string{webhook.Exponential, webhook.Constant} {
		var left atomic.Int64
		o := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
			if left.Add(-1) >= 0 {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			says(`{"result":true}`)(w, r)
		})
		h, s := with(t, o.spec(func(s *webhook.Spec) { s.Retry.MaxAttempts, s.Retry.Backoff = 3, backoff }), webhook.Options{})
		left.Store(2)
		if reasons := ask(t, h, s, change()); reasons != nil {
			t.Errorf("%s: %q", backoff, reasons)
		}
		left.Store(3)
		refusedFor(t, ask(t, h, s, change()), "status 503")
		if n := o.calls.Load(); n != 6 {
			t.Errorf("%s: asked %d times, want 3 and 3", backoff, n)
		}
	}
}

func TestWhatWillNotGetBetterIsNotTriedAgain(t *testing.T) {
	elsewhere := endpoint(t, says(`{"result":true}`))
	for name, answer := range map[string]http.HandlerFunc{
		"status 404": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) },
		"status 201": func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusCreated)
			says(`{"result":true}`)(w, r)
		},
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
		},
		"undefined":          says(`{}`),
		"its answer is none": says(`<html>`),
	} {
		o := endpoint(t, answer)
		h, s := with(t, o.spec(func(s *webhook.Spec) { s.Retry.MaxAttempts = 5 }), webhook.Options{})
		refusedFor(t, ask(t, h, s, change()), name)
		if n := o.calls.Load(); n != 1 {
			t.Errorf("%s: asked %d times", name, n)
		}
	}
	if n := elsewhere.calls.Load(); n != 0 {
		t.Errorf("the redirect was followed %d times", n)
	}
}

func TestAHangEndsWithTheTimeout(t *testing.T) {
	o := endpoint(t, hang)
	h, s := with(t, o.spec(func(s *webhook.Spec) { s.Timeout = "50ms" }), webhook.Options{})
	refusedFor(t, ask(t, h, s, change()), "did not answer in time")
	if n := counted(t, h, "failed_closed"); n != 1 {
		t.Errorf("counted %v failures", n)
	}
}

func TestACallerWhoLeavesIsRefusedWhateverTheFailurePolicy(t *testing.T) {
	ctx, leave := context.WithCancel(t.Context())
	o := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
		leave()
		hang(w, r)
	})
	h, s := with(t, o.spec(func(s *webhook.Spec) { s.FailurePolicy = webhook.FailOpen }), webhook.Options{})
	document, err := change().Document()
	if err != nil {
		t.Fatal(err)
	}
	refusedFor(t, h.Ask(ctx, s.table, "1", change(), document), "the request ended")
}

// lines is a log to look at.
type lines struct {
	mu  sync.Mutex
	all strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.String()
}

func TestFailOpenLetsThroughAndSaysSo(t *testing.T) {
	o := endpoint(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	log := new(lines)
	h, s := with(t, o.spec(func(s *webhook.Spec) { s.FailurePolicy = webhook.FailOpen }), webhook.Options{Logger: slog.New(slog.NewTextHandler(log, nil))})
	if reasons := ask(t, h, s, change()); reasons != nil {
		t.Errorf("%q", reasons)
	}
	if n := counted(t, h, "failed_open"); n != 1 {
		t.Errorf("counted %v", n)
	}
	if l := log.String(); !strings.Contains(l, "lets the change through") || !strings.Contains(l, "webhook=opa") || !strings.Contains(l, "status 500") {
		t.Errorf("the log: %s", l)
	}
	deny := endpoint(t, says(`{"result":false}`))
	s.put("opa", deny.spec(func(s *webhook.Spec) { s.FailurePolicy = webhook.FailOpen }))
	refusedFor(t, ask(t, h, s, change()), "without a reason") // a no is no failure
}

// Who may change a record decides what is in the question: an endpoint that
// turns such questions down is asked the next one all the same.
func TestQuestionsThatAreTurnedDownDoNotOpenTheBreaker(t *testing.T) {
	for _, status := range []int{http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity} {
		var fine atomic.Bool
		o := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
			if !fine.Load() {
				w.WriteHeader(status)
				return
			}
			says(`{"result":true}`)(w, r)
		})
		h, s := with(t, o.spec(nil), webhook.Options{Trip: 2, Rest: time.Hour})
		for range 10 {
			refusedFor(t, ask(t, h, s, change()), "status "+strconv.Itoa(status))
		}
		fine.Store(true)
		if reasons := ask(t, h, s, change()); reasons != nil {
			t.Errorf("after %d: %q", status, reasons)
		}
	}
}

func TestTheBreakerOpensAndCloses(t *testing.T) {
	var healthy atomic.Bool
	o := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
		if !healthy.Load() {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		says(`{"result":true}`)(w, r)
	})
	h, s := with(t, o.spec(nil), webhook.Options{Trip: 3, Rest: 100 * time.Millisecond})
	opened := false
	for range 100 {
		if reasons := ask(t, h, s, change()); strings.Contains(reasons[0], "not asked for a while") {
			opened = true
			break
		}
	}
	if !opened || o.calls.Load() < 3 {
		t.Fatalf("opened: %v, after %d calls", opened, o.calls.Load())
	}
	healthy.Store(true)
	for deadline := time.Now().Add(time.Minute); ask(t, h, s, change()) != nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the breaker never closed again")
		}
	}
	if err := testutil.CollectAndCompare(h.Collectors()[2], strings.NewReader(`
# HELP muster_webhook_breaker_state State of a webhook's circuit breaker on this node: 0 closed, 1 half open, 2 open.
# TYPE muster_webhook_breaker_state gauge
muster_webhook_breaker_state{webhook="opa"} 0
`)); err != nil {
		t.Error(err)
	}
}

func TestAChangedSettingTakesEffectAndARemovedOneIsForgotten(t *testing.T) {
	yes, no := endpoint(t, says(`{"result":true}`)), endpoint(t, says(`{"result":false}`))
	h, s := with(t, yes.spec(nil), webhook.Options{})
	if reasons := ask(t, h, s, change()); reasons != nil {
		t.Error(reasons)
	}
	s.put("opa", no.spec(nil))
	refusedFor(t, ask(t, h, s, change()), "without a reason")
	// A restore brings back an earlier state, at revisions that were before, or
	// another cluster's at the same ones.
	s.table, s.revision = setting.NewTable(), 0
	s.put("opa", yes.spec(nil))
	if reasons := ask(t, h, s, change()); reasons != nil {
		t.Errorf("after a restore: %q", reasons)
	}
	s.table, s.revision = setting.NewTable(), 0
	s.put("opa", no.spec(nil))
	refusedFor(t, ask(t, h, s, change()), "without a reason")
	s.remove("opa")
	if reasons := ask(t, h, s, change()); reasons != nil {
		t.Error(reasons)
	}
	if n := testutil.CollectAndCount(h.Collectors()[0]); n != 0 {
		t.Errorf("%d figures are left of a webhook that is no more", n)
	}
}

func TestAddressesThatMustNotBeReached(t *testing.T) {
	o := endpoint(t, says(`{"result":true}`))
	h, s := with(t, o.spec(func(s *webhook.Spec) { s.Retry.MaxAttempts = 3 }), webhook.Options{Dialer: new(egress.Dialer)})
	refusedFor(t, ask(t, h, s, change()), "webhook.allow")
	s.put("opa", o.spec(func(s *webhook.Spec) { s.URL = strings.Replace(s.URL, "127.0.0.1", "localhost", 1) }))
	refusedFor(t, ask(t, h, s, change()), "webhook.allow")
	if n := o.calls.Load(); n != 0 {
		t.Errorf("asked %d times", n)
	}
}

// client makes a certificate and the pool that verifies it.
func client(t *testing.T) (cert, key string, pool *x509.CertPool) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "muster"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	der8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(cert))
	return cert, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der8})), pool
}

func TestMutualTLS(t *testing.T) {
	cert, key, pool := client(t)
	o := new(outside)
	o.Server = httptest.NewUnstartedServer(says(`{"result":true}`))
	o.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
	o.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	o.StartTLS()
	t.Cleanup(o.Close)

	h, s := with(t, o.spec(func(s *webhook.Spec) { s.TLS.Cert, s.TLS.Key = cert, key }), webhook.Options{})
	if reasons := ask(t, h, s, change()); reasons != nil {
		t.Error(reasons)
	}
	s.put("opa", o.spec(nil))
	if reasons := ask(t, h, s, change()); len(reasons) != 1 {
		t.Errorf("without a certificate: %q", reasons)
	}
	s.put("opa", o.spec(func(s *webhook.Spec) { s.TLS = nil }))
	refusedFor(t, ask(t, h, s, change()), "TLS")
}

func TestTheFiguresAreWellNamed(t *testing.T) {
	o := endpoint(t, says(`{"result":true}`))
	h, s := with(t, o.spec(nil), webhook.Options{})
	ask(t, h, s, change())
	reg := prometheus.NewRegistry()
	reg.MustRegister(h.Collectors()...)
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
}
