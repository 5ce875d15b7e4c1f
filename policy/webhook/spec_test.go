package webhook_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/muster-registry/muster/egress"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy/webhook"
)

func TestTheSourceDocumentIsTakenVerbatim(t *testing.T) {
	spec, err := webhook.Canonical("opa", []byte(`{
"webhook_url": "https://policy-engine.internal:8181/v1/data/api/registry/authz/allow",
"events": ["on_register", "on_update", "on_delete"],
"timeout": "500ms",
"retry_policy": {
"max_attempts": 3,
"backoff": "exponential"
}
}`), new(egress.Dialer))
	want := `{"webhook_url":"https://policy-engine.internal:8181/v1/data/api/registry/authz/allow","events":["on_register","on_update","on_delete"],` +
		`"timeout":"500ms","retry_policy":{"max_attempts":3,"backoff":"exponential","interval":"50ms"},"failure_policy":"fail_closed"}`
	if err != nil || string(spec) != want {
		t.Errorf("%v %s\nwant %s", err, spec, want)
	}
	again, err := webhook.Canonical("opa", spec, new(egress.Dialer))
	if err != nil || string(again) != want {
		t.Errorf("what is stored is stored otherwise: %v %s", err, again)
	}
}

func TestBadWebhooks(t *testing.T) {
	cert, key, _ := client(t)
	other, _, _ := client(t)
	quote := func(s string) string { return `"` + strings.ReplaceAll(s, "\n", `\n`) + `"` }
	for body, pointer := range map[string]string{
		`{"events":["on_register"]}`:                                            "/webhook_url",
		`{"webhook_url":"policy.example","events":["on_register"]}`:             "/webhook_url",
		`{"webhook_url":"http://policy.example","events":["on_register"]}`:      "/webhook_url",
		`{"webhook_url":"ftp://policy.example","events":["on_register"]}`:       "/webhook_url",
		`{"webhook_url":"https://u:p@policy.example","events":["on_register"]}`: "/webhook_url",
		`{"webhook_url":"https://policy.example/#x","events":["on_register"]}`:  "/webhook_url",
		`{"webhook_url":"https://policy.example:0/","events":["on_register"]}`:  "/webhook_url",
		`{"webhook_url":"https:///x","events":["on_register"]}`:                 "/webhook_url",

		`{"webhook_url":"https://policy.example"}`:                                                                                     "/events",
		`{"webhook_url":"https://policy.example","events":[]}`:                                                                         "/events",
		`{"webhook_url":"https://policy.example","events":["on_fire"]}`:                                                                "/events/0",
		`{"webhook_url":"https://policy.example","events":["on_update","on_update"]}`:                                                  "/events/1",
		`{"webhook_url":"https://policy.example","events":"on_update"}`:                                                                "/events",
		`{"webhook_url":"https://policy.example","events":["on_update"],"timeout":"1ns"}`:                                              "/timeout",
		`{"webhook_url":"https://policy.example","events":["on_update"],"timeout":"1h"}`:                                               "/timeout",
		`{"webhook_url":"https://policy.example","events":["on_update"],"timeout":500}`:                                                "/timeout",
		`{"webhook_url":"https://policy.example","events":["on_update"],"retry_policy":{"max_attempts":11}}`:                           "/retry_policy/max_attempts",
		`{"webhook_url":"https://policy.example","events":["on_update"],"retry_policy":{"max_attempts":-1}}`:                           "/retry_policy/max_attempts",
		`{"webhook_url":"https://policy.example","events":["on_update"],"retry_policy":{"backoff":"linear"}}`:                          "/retry_policy/backoff",
		`{"webhook_url":"https://policy.example","events":["on_update"],"retry_policy":{"interval":"1s"}}`:                             "/retry_policy/interval",
		`{"webhook_url":"https://policy.example","events":["on_update"],"failure_policy":"fail"}`:                                      "/failure_policy",
		`{"webhook_url":"https://policy.example","events":["on_update"],"namespaces":["*"]}`:                                           "/namespaces/0",
		`{"webhook_url":"https://policy.example","events":["on_update"],"headers":{"Host":"x"}}`:                                       "/headers/Host",
		`{"webhook_url":"https://policy.example","events":["on_update"],"headers":{"webhook-id":"x"}}`:                                 "/headers/webhook-id",
		`{"webhook_url":"https://policy.example","events":["on_update"],"headers":{"X-A":"a\r\nX-B: b"}}`:                              "/headers/X-A",
		`{"webhook_url":"https://policy.example","events":["on_update"],"headers":{"X-A":"a","x-a":"b"}}`:                              "/headers/x-a",
		`{"webhook_url":"https://policy.example","events":["on_update"],"headers":{"X-A":"(hidden)"}}`:                                 "/headers/X-A",
		`{"webhook_url":"https://policy.example","events":["on_update"],"secret":"(hidden)"}`:                                          "/secret",
		`{"webhook_url":"https://policy.example","events":["on_update"],"secret":"whsec_c2hvcnQ="}`:                                    "/secret",
		`{"webhook_url":"https://policy.example","events":["on_update"],"secret":"MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="}`:      "/secret",
		`{"webhook_url":"https://policy.example","events":["on_update"],"tls":{"ca":"x"}}`:                                             "/tls/ca",
		`{"webhook_url":"https://policy.example","events":["on_update"],"tls":{"cert":"x"}}`:                                           "/tls",
		`{"webhook_url":"https://policy.example","events":["on_update"],"tls":{"cert":` + quote(other) + `,"key":` + quote(key) + `}}`: "/tls/key",
		`{"webhook_url":"https://policy.example","events":["on_update"],"tls":{"cert":` + quote(cert) + `,"key":"(hidden)"}}`:          "/tls/key",
		`{"webhook_url":"http://policy.example","insecure":true,"events":["on_update"],"tls":{"ca":` + quote(cert) + `}}`:              "/tls",
		`{"webhook_url":"https://policy.example","insecure":true,"events":["on_update"]}`:                                              "/insecure",
		`{"webhook_url":"https://policy.example","events":["on_update"],"name":"other"}`:                                               "/name",
		`{"webhook_url":"https://policy.example","events":["on_update"],"url":"x"}`:                                                    "/url",
	} {
		spec, err := webhook.Canonical("opa", []byte(body), new(egress.Dialer))
		f, _ := errors.AsType[*fault.Error](err)
		if f == nil || f.Code != fault.InvalidField || f.Fields[0].Pointer != pointer {
			t.Errorf("%.160s\n%v %s, want invalid_field at %s", body, err, spec, pointer)
		}
	}
	for _, body := range []string{``, `{`, `{} x`, `{"events":[],"events":[]}`} {
		if _, err := webhook.Canonical("opa", []byte(body), new(egress.Dialer)); !fault.Is(err, fault.BadRequest) {
			t.Errorf("%s: %v", body, err)
		}
	}
}

func TestAddressesThatAreNotPublicAreRefused(t *testing.T) {
	for _, body := range []string{
		`{"webhook_url":"https://127.0.0.1/","events":["on_register"]}`,
		`{"webhook_url":"https://localhost:8181/","events":["on_register"]}`,
		`{"webhook_url":"https://[::1]/","events":["on_register"]}`,
		`{"webhook_url":"https://[::ffff:127.0.0.1]/","events":["on_register"]}`,
		`{"webhook_url":"https://169.254.169.254/latest","events":["on_register"]}`,
		`{"webhook_url":"https://2130706433/","events":["on_register"]}`,
		`{"webhook_url":"https://0x7f.1/","events":["on_register"]}`,
		`{"webhook_url":"https://10.0.0.1/","events":["on_register"]}`,
		`{"webhook_url":"http://169.254.169.254/latest/meta-data/","events":["on_register"]}`, // plain HTTP is a lesser mistake
		`{"webhook_url":"https://10.0.0.1/","events":["on_fire"]}`,
	} {
		spec, err := webhook.Canonical("opa", []byte(body), new(egress.Dialer))
		f, _ := errors.AsType[*fault.Error](err)
		if f == nil || f.Code != fault.ForbiddenAddress || f.Code.Status() != 422 || f.Fields[0].Pointer != "/webhook_url" || !strings.Contains(f.Detail, "webhook.allow") {
			t.Errorf("%s\n%v %s, want 422 forbidden_address at /webhook_url", body, err, spec)
		}
	}
}

func TestListedAddressesAreTaken(t *testing.T) {
	d := &egress.Dialer{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}}
	for _, u := range []string{"https://127.0.0.1:8181/", "https://localhost:8181/"} {
		if _, err := webhook.Canonical("opa", []byte(`{"webhook_url":"`+u+`","events":["on_update"]}`), d); err != nil {
			t.Error(err)
		}
	}
	if _, err := webhook.Canonical("opa", []byte(`{"webhook_url":"http://policy.example/","insecure":true,"events":["on_update"]}`), d); err != nil {
		t.Error(err)
	}
}

func TestSecretsAreHidden(t *testing.T) {
	got, err := webhook.Shown([]byte(`{"name":"opa","webhook_url":"https://a","secret":"whsec_x","headers":{"Authorization":"Bearer y"},"tls":{"ca":"C","cert":"D","key":"z"},"revision":7}`))
	want := `{"headers":{"Authorization":"(hidden)"},"name":"opa","revision":7,"secret":"(hidden)","tls":{"ca":"C","cert":"D","key":"(hidden)"},"webhook_url":"https://a"}`
	if err != nil || string(got) != want {
		t.Errorf("%v %s\nwant %s", err, got, want)
	}
}
