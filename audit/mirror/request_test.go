package mirror_test

import (
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/muster-registry/muster/audit/mirror"
)

// TestNoCredentialIsCarried plants secrets wherever a request can have them.
func TestNoCredentialIsCarried(t *testing.T) {
	const secret = "S3cr3tValue"
	headers := map[string]string{"User-Agent": "curl/8", "Accept": "application/json", "Idempotency-Key": "k-1", "X-Request-Id": "r-1"}
	planted := map[string]string{
		"Authorization": "Bearer " + secret, "Proxy-Authorization": "Basic " + secret, "Cookie": "s=" + secret, "Set-Cookie": secret, "X-Api-Key": secret, "Api-Key": secret,
		"X-Consul-Token": secret, "X-Vault-Token": secret, "X-Gitlab-Token": secret, "X-Amz-Security-Token": secret, "X-Csrf-Token": secret,
		"X-Forwarded-Client-Cert": secret, "X-Hub-Signature-256": secret, "X-Session": secret, "X-My-Passwd": secret, "Dpop": "eyJhbGciOiJub25lIn0." + secret,
		"Referer": "https://x.example/a?token=" + secret, "X-Original-Url": "/a?access_token=" + secret, "X-Upstream": "https://user:" + secret + "@x.example/",
		"X-Note": "bearer " + secret, "X-Internal": secret, "x-internal": secret, "authorization": secret, "X-Muster": "muster_0123456789abcdef_" + secret,
	}
	for n, v := range planted {
		headers[n] = v
	}
	m := mirror.NewMasker([]string{"x-internal"})
	b := m.Render(&mirror.Request{Method: "PUT", Path: "/v1/a?token=" + secret, Host: "h", Headers: func(yield func(string, string) bool) {
		for n, v := range headers {
			yield(n, v)
		}
	}})
	if strings.Contains(string(b), secret) {
		t.Errorf("a secret is carried: %s", b)
	}
	var got struct {
		Method, Path string
		Headers      map[string]string
	}
	if err := json.Unmarshal(b, &got, json.MatchCaseInsensitiveNames(true)); err != nil {
		t.Fatal(err)
	}
	for n, v := range map[string]string{"User-Agent": "curl/8", "Idempotency-Key": "k-1", "X-Request-Id": "r-1", "Authorization": mirror.Masked, "Referer": "https://x.example/a?" + mirror.Masked} {
		if got.Headers[n] != v {
			t.Errorf("%s: %q, want %q", n, got.Headers[n], v)
		}
	}
	if got.Method != "PUT" || got.Path != "/v1/a" || len(got.Headers) != len(headers) {
		t.Errorf("%s", b)
	}
}

// TestRequestsAreBounded: whatever a caller sends, what is carried of it is small.
func TestRequestsAreBounded(t *testing.T) {
	b := mirror.NewMasker(nil).Render(&mirror.Request{Method: strings.Repeat("M", 1e6), Path: strings.Repeat("/ü", 1e6), Host: strings.Repeat("h", 1e6), Headers: func(yield func(string, string) bool) {
		for i := range 10_000 {
			yield(strings.Repeat("x", i), strings.Repeat("\xff", 10_000))
		}
	}})
	if len(b) > 256<<10 || !jsontext.Value(b).IsValid() || !strings.Contains(string(b), `"more_headers":9`) {
		t.Errorf("%d bytes: %.200s", len(b), b)
	}
}

// TestTheSameHeadersAgain: what is remembered of one request never shows in
// another, and what is carried is the same each time.
func TestTheSameHeadersAgain(t *testing.T) {
	m := mirror.NewMasker(nil)
	pins := mirror.NewMasker([]string{"If-Match", "X-Pin"})
	render := func(m *mirror.Masker, h []string) string {
		return string(m.Render(&mirror.Request{Method: "GET", Path: "/v1/a", Headers: func(yield func(string, string) bool) {
			for i := 0; i+1 < len(h) && yield(h[i], h[i+1]); i += 2 {
			}
		}}))
	}
	fields := func(m *mirror.Masker, h []string) string {
		all := map[string][]string{}
		for i := 0; i+1 < len(h); i += 2 {
			all[h[i]] = append(all[h[i]], h[i+1])
		}
		return string(m.Append(nil, &mirror.Request{Method: "GET", Path: "/v1/a", Fields: all}))
	}
	for n, h := range [][]string{
		{"User-Agent", "a", "Accept", "b", "Authorization", "Bearer S3cr3t", "Traceparent", "00-1", "X-Request-Id", "1"},
		{"Accept", "b", "User-Agent", "a", "Traceparent", "00-2", "Authorization", "Bearer other", "X-Request-Id", "2"},
		{"User-Agent", "b", "Accept", "a", "Authorization", ""},
		{"User-Agent", "a", "Accept", "b"},
		{"User-Agent", "a", "Accept", "b", "X-More", "c"},
		{"User-Agent", "a", "Accept", "b", "Traceparent", "00-1", "Content-Length", "2"},
		{"User-Agent", "a", "Accept", "b", "Traceparent", "00-1", "Traceparent", "00-2"},
		{"User-Agent", "a", "Authorization", "Bearer S3cr3t"},
		{"User-Agent", "a", "Authorization", "S3cr3t", "Authorization", "S3cr3t"},
		{"User-Agent", "a", "Accept", "a"},
		{"User-Agent", "a"},
		{"User-Agent", "a", "User-Agent", "a"},
		{"User-Agent", "a", "User-Agent", "b"},
		{"User-Agent", "a", "X-Note", "Bearer S3cr3t"},
		{"User-Agent", "a", "Referer", "https://x.example/?a=S3cr3t"},
		{"User-Agent", strings.Repeat("a", 4000)},
		{"X-Request-Id", "1", "X-Request-Id", "2"},
		{"Traceparent", "00-1"},
		{},
	} {
		want := render(mirror.NewMasker(nil), h)
		for range 4 {
			if got := render(m, h); got != want {
				t.Errorf("%d: %s, at first %s", n, got, want)
			}
			if got := fields(m, h); got != want {
				t.Errorf("%d: by its fields %s, not %s", n, got, want)
			}
		}
		pinned := append([]string{"If-Match", "S3cr3t", "X-Pin", "S3cr3t"}, h...)
		for range 4 {
			if got := fields(pins, pinned); strings.Contains(got, "S3cr3t") || strings.Count(got, `"***"`) < 2 || !jsontext.Value(got).IsValid() {
				t.Errorf("%d: %s", n, got)
			}
		}
		if strings.Contains(want, "S3cr3t") || !jsontext.Value(want).IsValid() {
			t.Error(want)
		}
	}
}
