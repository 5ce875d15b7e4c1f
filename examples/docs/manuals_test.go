package docs

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestCommandsOfTheManuals walks the commands by which the two manuals verify
// and look for trouble: each stands in docs/sre.md, and what is said to be used
// here does what the page says.
func TestCommandsOfTheManuals(t *testing.T) {
	page, err := os.ReadFile("../../docs/sre.md")
	if err != nil {
		t.Fatal(err)
	}
	r := start(t)
	var cluster struct {
		Nodes []struct{ Control, Policy string } `json:"nodes"`
	}
	b, err := os.ReadFile(filepath.Join(r.dir, "cluster.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &cluster); err != nil {
		t.Fatal(err)
	}
	control, policy := cluster.Nodes[0].Control, cluster.Nodes[0].Policy
	host := strings.TrimPrefix(control, "https://")
	curl := `curl -sS --cacert "$MUSTER_CACERT" -H "Authorization: Bearer $MUSTER_TOKEN" `
	for _, c := range []struct{ manual, run, gives string }{
		{"", "muster policy push --activate examples/policies/registry.rego", "active"},
		{"curl localhost:8443/v1/discovery", curl + control + "/v1/discovery", `"items":[]`},
		{"curl localhost:8443/v1/discovery", "curl -sS http://" + host + "/v1/discovery", "HTTP request to an HTTPS server"},
		{"", curl + control + "/v1/namespaces/default/services/nothing", "service_not_found"},
		{"openssl s_client -connect service-name:443 -showcerts", `openssl s_client -connect ` + host + ` -showcerts -CAfile "$MUSTER_CACERT" </dev/null 2>&1`, "Verify return code: 0 (ok)"},
		{"openssl x509 -in cert.pem -text", `openssl x509 -in "$MUSTER_CACERT" -noout -text`, "CA:TRUE"},
		{"curl -X POST … /v1/data/…", curl + "-X POST " + policy + `/v1/data/api/registry/authz -d '{"input":{}}'`, `"allow":false`},
		{"opa run --server --log-level debug", curl + "-X POST " + policy + `/v1/data/no/such/name -d '{"input":{}}'; for i in $(seq 600); do grep -h "is undefined" ` + r.dir + `/n1/muster.log && break; sleep 0.1; done`, "no.such.name is undefined"},
		{"journalctl -u registry | grep \"deny\"", `grep -h 'opa_eval_result="deny"' ` + r.dir + "/n1/muster.log", "decision_id="},
		{"tail -f /var/log/api-audit.log | grep \"policy_evaluation\"", "muster apply -f - <<< '{\"kind\":\"Service\",\"name\":\"cart\",\"spec\":{}}'; cat " + r.dir + "/n?/audit.log | grep policy_evaluation", `"code":"policy_denied"`},
		{"etcdctl endpoint health", "muster cluster status", "leader"},
		{"leader election count via journalctl", "cat " + r.dir + "/n?/muster.log | grep -c 'this node leads'", "1"},
		{"netstat -tulpn", "netstat -tulpn 2>/dev/null | grep " + host, "LISTEN"},
		{"ps aux | grep opa", "ps aux | grep '[m]uster server'", "muster server --config"},
		{"opa test", "muster policy test examples/policies/registry.rego examples/policies/registry_test.rego", "passed"},
		{"opa eval -i api_definition.json -d security_policy.rego", `echo '{"resource":{"kind":"service"}}' >` + r.dir + "/input.json; muster policy eval -d examples/policies/registry.rego -i " + r.dir + "/input.json data.api.registry.authz.allow", "false"},
		{"opa_perf_timer_rego_query_compile_ns", "curl -sS " + r.metrics + "/metrics", "\nopa_perf_timer_rego_query_compile_ns "},
		{"opa_http_request_duration_seconds", "curl -sS " + r.metrics + "/metrics", "\nopa_http_request_duration_seconds_count{"},
		{"opa_policy_checkpoint_failure", "curl -sS " + r.metrics + "/metrics", "\nopa_policy_checkpoint_failure "},
		{"active policy versions", "curl -sS " + r.metrics + "/metrics", "\nmuster_policy_revisions{state=\"active\"} 1"},
		{"--log-level=info --tracing-enabled=true --audit-path=/var/log/api-audit.log", "muster server --help", "--tracing-enabled"},
	} {
		if c.manual != "" && !strings.Contains(string(page), "| `"+strings.ReplaceAll(c.manual, "|", `\|`)+"` |") {
			t.Errorf("docs/sre.md has no line about %s", c.manual)
		}
		if program := strings.Fields(c.run)[0]; program != "muster" {
			if _, err := exec.LookPath(program); err != nil {
				t.Logf("LEFT OUT: %s is not installed", program)
				continue
			}
		}
		if out, _ := r.shell(t, c.run); !strings.Contains(out, c.gives) {
			t.Errorf("%s\ndoes not give %q:\n%s", c.run, c.gives, out)
		}
	}
}
