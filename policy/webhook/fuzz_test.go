package webhook

import (
	"strings"
	"testing"

	"github.com/muster-registry/muster/egress"
	"github.com/muster-registry/muster/fault"
)

// FuzzSpec: a webhook as an operator sends it.
func FuzzSpec(f *testing.F) {
	for _, s := range []string{
		`{"webhook_url":"https://policy.example/v1/data/a","events":["on_register"],"timeout":"500ms","retry_policy":{"max_attempts":3,"backoff":"exponential"}}`,
		`{"webhook_url":"https://127.0.0.1/"}`, `{"webhook_url":"https://user:pass@a.example/"}`, `{"webhook_url":"https://a.example/","headers":{"A\r\nB":"c"}}`,
		`{"webhook_url":"https://a.example/","secret":"whsec_AAAA","tls":{"ca":"-----BEGIN CERTIFICATE-----"}}`, `{"webhook_url":"https://0x7f.1/"}`,
	} {
		f.Add([]byte(s))
	}
	dialer := new(egress.Dialer)
	f.Fuzz(func(t *testing.T, b []byte) {
		spec, err := Canonical("a", b, dialer)
		if err != nil {
			if fault.From(err).Code == fault.Internal {
				t.Fatalf("not a refusal: %v", err)
			}
			return
		}
		if _, err := Canonical("a", spec, dialer); err != nil {
			t.Fatalf("%s was taken, and is refused the second time: %v", spec, err)
		}
	})
}

// FuzzAnswer: what an endpoint answers. Only a plain true without any reason
// against it is a yes.
func FuzzAnswer(f *testing.F) {
	for _, s := range []string{`{"result":true}`, `{"result":{"allow":true,"deny":["x"]}}`, `{"allow":true}`, `{"result":"true"}`, `{"allow":true,"allow":false}`, `{}`, `[`, `{"result":{"allow":true,"reasons":[1]}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := readAnswer(b)
		if a.allow && (err != nil || len(a.reasons) > 0 || !strings.Contains(string(b), "true")) {
			t.Fatalf("%q is a yes: %+v, %v", b, a, err)
		}
	})
}
