package admit_test

import (
	"encoding/pem"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/admit"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/egress"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/rego"
	"github.com/muster-registry/muster/policy/webhook"
	"github.com/muster-registry/muster/setting"
)

// outside is a policy endpoint that keeps what it was asked.
type outside struct {
	mu     sync.Mutex // guards what follows
	asked  []question
	answer string

	set func() // sets the webhook, again where it is there
}

type question struct {
	Input struct {
		Action   string
		Resource struct {
			Kind, Name string
			Metadata   map[string]any
			Payload    map[string]any
		}
	}
}

func (o *outside) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var q question
	err := json.UnmarshalRead(r.Body, &q, json.MatchCaseInsensitiveNames(true))
	o.mu.Lock()
	defer o.mu.Unlock()
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	o.asked = append(o.asked, q)
	_, _ = io.WriteString(w, o.answer)
}

func (o *outside) says(answer string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.answer = answer
}

// since gives what was asked since the last call.
func (o *outside) since() []question {
	o.mu.Lock()
	defer o.mu.Unlock()
	asked := o.asked
	o.asked = nil
	return asked
}

// told notes which decisions of webhooks were told of.
type told struct{ l *leader }

// Decided implements policy.Observer.
func (o told) Decided(_ *policy.Revision, q *policy.Question, d *policy.Decision, _ time.Duration) {
	o.l.mu.Lock()
	defer o.l.mu.Unlock()
	if q.Entrypoint == admit.WebhookEntryPoint && q.Input != nil && d.Why() == policy.ByWebhook {
		o.l.told = append(o.l.told, d.ID)
	}
}

// outside sets a webhook that the gate asks about everything.
func (l *leader) outside() *outside {
	l.t.Helper()
	o := &outside{answer: `{"result":true}`}
	s := httptest.NewTLSServer(o)
	l.t.Cleanup(s.Close)
	dialer := &egress.Dialer{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	asker := webhook.New(webhook.Options{Dialer: dialer, Logger: slog.New(slog.DiscardHandler)})
	l.gate.Webhooks(l.override.Webhooks(asker), rego.NewID, told{l})
	sent, err := json.Marshal(webhook.Spec{URL: s.URL, Events: []string{"on_register", "on_update", "on_delete"}, Timeout: "30s",
		TLS: &webhook.TLS{CA: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))}})
	if err == nil {
		sent, err = webhook.Canonical("opa", sent, dialer)
	}
	if err != nil {
		l.t.Fatal(err)
	}
	o.set = func() {
		l.t.Helper()
		l.set(setting.Webhook, "", "opa", string(sent))
	}
	o.set()
	return o
}

func TestWebhooksAreAskedLastAndAboutWhatIsStored(t *testing.T) {
	l := newLeader(t)
	o := l.outside()
	l.enforce(`
default allow := true
deny contains "not eve" if input.resource.payload.owner == "eve"
filtered := object.remove(input.resource.payload, ["description"]) if input.action != "delete"
`)
	l.do(l.service("cart", `{"owner":"shop","description":"secret","metadata":{"level":"open"}}`))
	asked := o.since()
	if len(asked) != 1 || asked[0].Input.Action != "register" || asked[0].Input.Resource.Kind != "service" || asked[0].Input.Resource.Payload["owner"] != "shop" ||
		asked[0].Input.Resource.Metadata["level"] != "open" {
		t.Fatalf("asked %+v", asked)
	}
	if d := asked[0].Input.Resource.Payload["description"]; d != "" {
		t.Errorf("asked about a description %v that is not stored", d)
	}

	// What does not get past the gate is not asked about.
	l.refused(t, fault.PolicyDenied, l.service("cart", `{"owner":"eve"}`))
	l.refused(t, fault.RevisionMismatch, l.service("cart", `{"owner":"bob"}`), createOnly)
	l.refused(t, fault.ServiceNotFound, remove(command.Kind_SERVICE, "", "nothing"))
	l.refused(t, fault.Forbidden, l.service("cart", `{"owner":"bob"}`), as("token:v", "viewer"))
	if asked := o.since(); len(asked) != 0 {
		t.Errorf("asked %+v", asked)
	}

	o.says(`{"result":{"allow":false,"reasons":["not on a Friday"]}}`)
	f := l.refused(t, fault.PolicyDenied, l.service("cart", `{"owner":"bob"}`))
	if len(f.Reasons) != 1 || f.Reasons[0] != "webhook opa: not on a Friday" || f.PolicyRevision != 1 || len(l.told) != 1 || f.DecisionID != l.told[0] {
		t.Errorf("%+v", f)
	}
	l.refused(t, fault.PolicyDenied, remove(command.Kind_SERVICE, "", "cart"))
	asked = o.since()
	if len(asked) != 2 || asked[0].Input.Action != "update" || asked[1].Input.Action != "delete" {
		t.Errorf("asked %+v", asked)
	}
}

func TestAnInstanceAndTheServiceMadeForItAreBothAskedAbout(t *testing.T) {
	l := newLeader(t)
	o := l.outside()
	l.do(l.instance("cart", "a", 80, true))
	var kinds []string
	for _, q := range o.since() {
		kinds = append(kinds, q.Input.Resource.Kind)
	}
	if got := strings.Join(kinds, " "); got != "service instance" {
		t.Errorf("asked about %s", got)
	}
	l.do(status("cart", "a", "maintenance"))
	l.do(l.version("cart", "v1", openAPI), payload(openAPI))
	asked := o.since()
	if len(asked) != 2 || asked[0].Input.Action != "update" || asked[1].Input.Resource.Payload["openapi"] != "3.1.0" {
		t.Errorf("asked %+v", asked)
	}
}

func TestAWebhookIsAskedOnceHoweverOftenTheChangeIsAdmitted(t *testing.T) {
	l := newLeader(t)
	o := l.outside()
	// Another policy, the same record: decided anew, asked no more.
	l.enforce(`default allow := true`)
	l.ahead(func(*command.Command) { l.enforce(`default allow := true`) })
	if r := l.do(l.service("cart", `{"owner":"shop"}`)); r.PolicyRevision != 2 {
		t.Errorf("admitted under policy revision %d", r.PolicyRevision)
	}
	if n := len(o.since()); n != 1 {
		t.Errorf("asked %d times about one change", n)
	}
	// Another record underneath: another question.
	at := l.machine.View().Revision
	l.ahead(func(*command.Command) {
		c := l.service("cart", `{"owner":"other"}`)
		r, _ := l.machine.View().Registry.Service("default", "cart")
		c.GetPut().Observed = r.Revision
		if _, err := l.apply(c); err != nil {
			t.Error(err)
		}
	})
	l.do(l.service("cart", `{"owner":"bank"}`))
	if n := len(o.since()); n != 2 || l.machine.View().Revision < at+2 {
		t.Errorf("asked %d times about a change whose record changed in between", n)
	}
	// A refusal is given after the state was confirmed, not after asking twice.
	o.says(`{"result":false}`)
	l.refused(t, fault.PolicyDenied, l.service("cart", `{"owner":"bob"}`))
	if n := len(o.since()); n != 1 {
		t.Errorf("asked %d times for one refusal", n)
	}
	o.says(`{"result":true}`)
	l.do(l.service("till", `{}`), keyed("key", "1"))
	if r := l.do(l.service("till", `{}`), keyed("key", "1")); !r.Repeated {
		t.Error("not a repeat")
	}
	if n := len(o.since()); n != 1 {
		t.Errorf("asked %d times about a change and its repeat", n)
	}
}
