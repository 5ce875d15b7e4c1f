package main

import (
	"strings"
	"testing"
)

// emergencies opens a namespace and ends that, as the role for it alone may.
func emergencies(t *testing.T, s shell) {
	open := []string{"policy", "break-glass", "payments", "--ttl", "30m", "--reason", "INC-1207"}
	if _, err, code := s.do(t, open...); code != exitDenied || !strings.Contains(err, "break-glass") {
		t.Errorf("as an operator: exit code %d: %s", code, err)
	}
	for _, args := range [][]string{{"policy", "break-glass", "payments", "--reason", "x"}, {"policy", "break-glass", "payments", "--ttl", "1m"}} {
		if _, err, code := s.do(t, args...); code != exitUsage {
			t.Errorf("%v: exit code %d: %s", args, code, err)
		}
	}
	contains(t, s.ok(t, "policy", "break-glass", "list"), "NAMESPACE")
}

// webhooks sets an outside policy endpoint and takes it back.
func webhooks(t *testing.T, s shell) {
	manifest := write(t, "webhook.yaml", `kind: Webhook
name: opa
spec:
  webhook_url: https://policy-engine.internal:8181/v1/data/api/registry/authz/allow
  events: [on_delete]
  timeout: 500ms
  retry_policy: {max_attempts: 3, backoff: exponential}
  failure_policy: fail_open
`)
	contains(t, s.ok(t, "apply", "-f", manifest), "webhook/opa created")
	contains(t, s.ok(t, "apply", "-f", manifest), "webhook/opa unchanged")
	contains(t, s.ok(t, "get", "webhooks"), "opa", "https://policy-engine.internal:8181", "on_delete", "fail_open", "500ms")
	secret := "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
	signed := write(t, "signed.yaml", strings.Replace(`kind: Webhook
name: opa
spec: {webhook_url: "https://policy-engine.internal:8181/", events: [on_delete], failure_policy: fail_open, secret: SECRET}
`, "SECRET", secret, 1))
	contains(t, s.ok(t, "apply", "-f", signed), "webhook/opa configured")
	out, _, code := s.do(t, "diff", "-f", signed)
	if code != exitError || strings.Contains(out, secret) || !strings.Contains(out, "secrets") {
		t.Errorf("diff: exit code %d: %s", code, out)
	}
	if out := s.ok(t, "get", "webhook", "opa", "-o", "json"); strings.Contains(out, secret) {
		t.Errorf("a secret is shown: %s", out)
	}
	contains(t, s.ok(t, "delete", "webhook", "opa"), "deleted")
}
