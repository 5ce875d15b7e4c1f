package main

import (
	"strings"
	"testing"
)

// rateLimits sets quotas, as a file of their own and as a manifest, and takes
// them back.
func rateLimits(t *testing.T, s shell) {
	if _, err, code := s.do(t, "quota", "get"); code != exitNotFound || !strings.Contains(err, "no quotas are set") {
		t.Errorf("before: exit code %d: %s", code, err)
	}
	file := write(t, "quotas.yaml", `quota_management:
  backend: embedded
  defaults:
    requests_per_second: 500
    burst_capacity: 1000
  overrides:
    - service_id: "payment-gateway"
      requests_per_second: 2000
    - namespace: reports
      requests_per_second: 20
    - principal: "spiffe://muster/batch"
      requests_per_second: 0.5
`)
	contains(t, s.ok(t, "quota", "apply", "-f", file), "default/payment-gateway", "2000", "reports", "spiffe://muster/batch", "0.5", "embedded")
	contains(t, s.ok(t, "quota", "get", "-o", "yaml"), "requests_per_second: 2000", "burst_capacity: 2000")
	if _, err, code := s.do(t, "quota", "apply", "-f", write(t, "bad.yaml", "quota_management: {default: {}}\n")); code != exitError || !strings.Contains(err, "default") {
		t.Errorf("an unknown key: exit code %d: %s", code, err)
	}
	if _, err, code := s.do(t, "quota", "apply"); code != exitUsage {
		t.Errorf("without a file: exit code %d: %s", code, err)
	}

	manifest := write(t, "quota.yaml", "kind: Quota\nspec:\n  quota_management: {defaults: {requests_per_second: 7}}\n")
	contains(t, s.ok(t, "apply", "-f", manifest), "quota/quotas configured")
	contains(t, s.ok(t, "apply", "-f", manifest), "quota/quotas unchanged")
	contains(t, s.ok(t, "quota", "apply", "-f", manifest), "each service", "7")
	if _, err, code := s.do(t, "apply", "-f", write(t, "two.yaml", "kind: Quota\nname: mine\nspec: {quota_management: {}}\n")); code == 0 || !strings.Contains(err, "there is one quotas document") {
		t.Errorf("a second document: exit code %d: %s", code, err)
	}
	contains(t, s.ok(t, "delete", "-f", manifest), "deleted")
}
