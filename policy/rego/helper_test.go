package rego

import (
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

// engine gives an engine with a generous limit, so that a busy machine does
// not decide tests that are not about time.
func engine(t testing.TB, change ...func(*Options)) *Engine {
	t.Helper()
	o := Options{Limit: 5 * time.Second, Logger: slog.New(slog.DiscardHandler), ValidSchema: func(x any) bool {
		m, ok := x.(map[string]any)
		return ok && m["openapi"] != nil
	}}
	for _, c := range change {
		c(&o)
	}
	e := New(o)
	t.Cleanup(e.Close)
	return e
}

// revision makes revision 7 of modules given as name, source, name, source…
func revision(t testing.TB, pairs ...string) *policy.Revision {
	t.Helper()
	c := &policy.Content{Modules: map[string]string{}}
	for i := 0; i < len(pairs); i += 2 {
		c.Modules[pairs[i]] = pairs[i+1]
	}
	return stage(t, c)
}

func stage(t testing.TB, c *policy.Content) *policy.Revision {
	t.Helper()
	if err := c.Normalize(); err != nil {
		t.Fatal(err)
	}
	return &policy.Revision{Number: 7, Digest: c.Digest(), Content: *c}
}

func read(t testing.TB, path ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// jwt makes a token of the claims; its signature is no signature.
func jwt(claims map[string]any) string {
	part := func(x any) string {
		b, _ := json.Marshal(x)
		return base64.RawURLEncoding.EncodeToString(b)
	}
	return part(map[string]any{"alg": "HS256", "typ": "JWT"}) + "." + part(claims) + "." + base64.RawURLEncoding.EncodeToString([]byte("none"))
}

// refusal checks that err is invalid_policy and gives it.
func refusal(t testing.TB, err error) *fault.Error {
	t.Helper()
	if !fault.Is(err, fault.InvalidPolicy) {
		t.Fatalf("error = %v, want %s", err, fault.InvalidPolicy)
	}
	f := fault.From(err)
	if len(f.Places) == 0 {
		t.Fatalf("%v names no place", err)
	}
	return f
}
