package node_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// outputs is everything that nodes say while a test drives them.
type outputs struct {
	mu   sync.Mutex
	said map[string]*bytes.Buffer // by what it is
}

func (o *outputs) note(what string, b []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.said == nil {
		o.said = map[string]*bytes.Buffer{}
	}
	if o.said[what] == nil {
		o.said[what] = new(bytes.Buffer)
	}
	o.said[what].Write(append(b, '\n'))
}

// TestNoSecretInAnyOutput plants a secret in every place of the configuration
// and of requests that takes one, drives all edges, errors too, on the most
// talkative log level, and looks for each in all that comes out: logs, metrics,
// audit trails, decision logs, spans, answers, what is sent to log services.
func TestNoSecretInAnyOutput(t *testing.T) {
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
	var out outputs
	secrets := map[string]string{} // what it is, to the secret
	plant := func(what, secret string) string {
		secrets[what] = secret
		return secret
	}
	traces := &spans{}
	collector := httptest.NewServer(traces)
	t.Cleanup(collector.Close)
	var uploads, mirrored sync.Map
	sink := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(unzipped(r))
		if r.URL.Path == "/mirror" {
			mirrored.Store(time.Now().UnixNano(), b)
			return
		}
		uploads.Store(time.Now().UnixNano(), b)
	}))
	t.Cleanup(sink.Close)
	repository := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("WWW-Authenticate", "Basic")
		w.WriteHeader(http.StatusUnauthorized)
	}))
	t.Cleanup(repository.Close)

	tr := newTrial(t, 2)
	tr.write(t, "git.ca", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: repository.Certificate().Raw})))
	tr.write(t, "git.token", plant("token of the Git source", "ghp_plantedgittoken000000000000000001"))
	tr.write(t, "git.hook", plant("secret of Git's webhook", "planted-git-webhook-secret-0001"))
	tr.write(t, "redis.password", plant("password of the Redis", "planted-redis-password-0001"))
	tr.write(t, "collector.key", "X-Collector-Key: "+plant("header for the collector", "planted-collector-key-0001"))
	tr.write(t, "mirror.headers", "X-Mirror-Key: "+plant("header for the sink of the audit mirror", "planted-mirror-key-0001"))
	tr.write(t, "sink.token", plant("token of the log service", "planted-log-service-token-0001"))
	tr.write(t, "vault.token", plant("token for Vault", "hvs.plantedvaulttoken0000000001"))
	gossip := make([]byte, 32)
	copy(gossip, "planted-gossip-key-0123456789abc")
	must(t, os.WriteFile(tr.file("gossip.key"), []byte(plant("gossip key", base64.StdEncoding.EncodeToString(gossip))), 0o600))
	secrets["gossip key, decoded"] = string(gossip)
	secrets["operator's token"] = operatorToken
	for _, n := range tr.nodes {
		b, err := os.ReadFile(tr.file(n.id + ".key"))
		must(t, err)
		block, _ := pem.Decode(b)
		secrets["key of "+n.id] = strings.Split(string(b), "\n")[1]
		secrets["key of "+n.id+", raw"] = string(block.Bytes[20:60])
	}
	tr.configure(t, steady+fmt.Sprintf(`
log: {level: debug}
webhook: {allow: [127.0.0.0/8]}
tracing: {enabled: true, endpoint: %[1]q, protocol: http/protobuf, headers_file: collector.key}
quota: {redis_password_file: redis.password}
audit: {lookups: all, mirror: {type: http, url: "%[2]s/mirror?key=%[4]s", insecure: true, allow: [127.0.0.0/8], headers_file: mirror.headers}}
certificates: {signer: vault, vault: {address: "http://127.0.0.1:1", role: planted, token_file: vault.token}}
policy:
  decision_log: {stderr: all, stdout: true, file: decisions.log, http: {url: %[2]q, insecure: true, token_file: sink.token}}
  git: {url: "https://127.0.0.1:%[3]s/p", token_file: git.token, webhook_secret_file: git.hook, ca_file: git.ca, allow: [127.0.0.1], interval: 1s}
`, collector.URL, sink.URL, repository.URL[strings.LastIndex(repository.URL, ":")+1:], plant("query of the sink's URL", "planted-mirror-query-0001")))
	for _, n := range tr.nodes { // each its own file of decisions
		b, err := os.ReadFile(n.config)
		must(t, err)
		must(t, os.WriteFile(n.config, bytes.Replace(b, []byte("file: decisions.log"), []byte("file: "+n.id+"/decisions.log"), 1), 0o600))
	}
	tr.startAll()
	e := newEdge(t, tr)
	leader := e.leader(t)

	ask := func(node int, port, method, path, body string, header ...string) *answer {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, port+path, strings.NewReader(body))
		must(t, err)
		req.Header.Set("Authorization", "Bearer "+tr.token)
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		res, err := e.http["HTTP/2.0"].Do(req)
		must(t, err)
		a := read(t, res)
		head, _ := json.Marshal(a.header)
		out.note(fmt.Sprintf("answer of node %d to %s %s", node+1, method, path), append(head, a.body...))
		return a
	}
	jwt := plant("a JWT", "eyJhbGciOiJIUzI1NiJ9."+base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"alice","exp":9999999999}`))+".cGxhbnRlZC1zaWduYXR1cmUtMDAwMQ")
	secrets["a JWT's signature"] = "cGxhbnRlZC1zaWduYXR1cmUtMDAwMQ"
	wrong := plant("a token that is not known", "muster_0123456789abcdef_plantedplantedplantedplantedplantedplanted0")
	basic := plant("a password in Basic", base64.StdEncoding.EncodeToString([]byte("alice:planted-basic-password")))
	cookie := plant("a cookie", "planted-session-cookie-0001")
	proxy := plant("a proxy's credentials", "cGxhbnRlZC1wcm94eS1hdXRoLTAwMDE=")
	query := plant("a token in a query", "planted-query-token-0001")
	order := signingRequest(t)
	sent := plant("a key sent instead of a signing request", "TUlJcGxhbnRlZHByaXZhdGVrZXkwMDAx")
	common := []string{"Cookie", "session=" + cookie, "Proxy-Authorization", "Basic " + proxy}

	const policy = `{"modules":{"w.rego":"package api.registry.authz\n\nimport rego.v1\n\ndefault allow := false\n\nallow if input.resource.payload.owner == \"shop\"\n\ndeny contains msg if {\n\tinput.resource.payload.owner == \"bank\"\n\tmsg := \"not the bank\"\n}\n","l.rego":"package api.security.authz\n\nimport rego.v1\n\ndefault allow := true\n"}}`
	if a := ask(leader, tr.nodes[leader].control, "POST", "/v1/policy/revisions?activate=true", policy); a.status != 201 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if r.Header.Get("X-Fail") == "" {
			_, _ = io.WriteString(w, `{"result":true}`)
		}
	}))
	t.Cleanup(s.Close)
	ca, err := json.Marshal(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})))
	must(t, err)
	whsec := plant("secret of a webhook", "whsec_cGxhbnRlZC13ZWJob29rLXNlY3JldC0wMDAxLTAwMDE=")
	hookHeader := plant("header of a webhook", "planted-webhook-header-0001")
	hook := func(url string) string {
		return fmt.Sprintf(`{"webhook_url":%q,"events":["on_register","on_update"],"timeout":"5s","failure_policy":"fail_open","secret":%q,"headers":{"X-Key":%q,"Authorization":"Bearer %[3]s"},"tls":{"ca":%[4]s}}`, url, whsec, hookHeader, ca)
	}
	if a := ask(leader, tr.nodes[leader].control, "PUT", "/v1/webhooks/good", hook(s.URL+"/v1/data")); a.status != 201 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	ask(leader, tr.nodes[leader].control, "PUT", "/v1/webhooks/away", hook("https://127.0.0.1:1/x?key="+plant("query of a webhook", "planted-webhook-query-0001")))
	ask(leader, tr.nodes[leader].control, "PUT", "/v1/webhooks/bad", hook("https://user:"+plant("password in a webhook's URL", "planted-url-password-0001")+"@a.example/"))
	ask(leader, tr.nodes[leader].control, "PUT", "/v1/quotas", "quota_management:\n  backend: redis\n  redis_connection: \"redis://127.0.0.1:1\"\n  defaults: {requests_per_second: 5}\n", "Content-Type", "application/yaml")
	ask(leader, tr.nodes[leader].control, "PUT", "/v1/quotas", "quota_management:\n  backend: redis\n  redis_connection: \"redis://u:"+plant("password in a Redis address", "planted-redis-url-password-0001")+"@127.0.0.1:1\"\n  defaults: {requests_per_second: 5}\n", "Content-Type", "application/yaml")

	for i, n := range tr.nodes {
		for _, c := range [][]string{
			{"PUT", "/v1/namespaces/default/services/cart", `{"owner":"shop"}`},
			{"PUT", "/v1/namespaces/default/services/cart", `{"owner":"bank"}`},
			{"PUT", "/v1/namespaces/default/services/cart?access_token=" + query, `{"owner":"shop"}`},
			{"PUT", "/v1/namespaces/default/services/cart", `{"owner":`},
			{"GET", "/v1/namespaces/default/services/cart?token=" + query, ""},
			{"GET", "/v1/namespaces/default/services/nothing", ""},
			{"GET", "/v1/discovery/default/cart", ""},
			{"GET", "/v1/%2e%2e/x?token=" + query, ""},
			{"POST", "/v1/authorize", fmt.Sprintf(`{"input":{"action":"register","token":%q,"headers":{"Authorization":"Bearer %s","Cookie":%q},"attributes":{"request":{"http":{"headers":{"authorization":"Bearer %s","cookie":%q}}}}}}`, jwt, jwt, cookie, jwt, cookie)},
			{"GET", "/v1/webhooks", ""}, {"GET", "/v1/quotas", ""}, {"GET", "/v1/cluster/status", ""}, {"GET", "/v1/nothing/at/all", ""},
			{"POST", "/v1/quota/check", `{"service_id":"cart"}`},
			{"GET", "/readyz?verbose", ""},
			{"POST", "/v1/certificates", order}, {"POST", "/v1/certificates", `{"csr":"-----BEGIN PRIVATE KEY-----\n` + sent + `\n-----END PRIVATE KEY-----\n"}`},
		} {
			ask(i, n.control, c[0], c[1], c[2], common...)
			for _, credential := range []string{"Bearer " + jwt, "Bearer " + wrong, "Basic " + basic, "Digest " + jwt} {
				ask(i, n.control, c[0], c[1], c[2], append([]string{"Authorization", credential}, common...)...)
			}
		}
		ask(i, n.control, "POST", "/v1/policy/sync", `{}`, "X-Hub-Signature-256", "sha256=00", "X-GitHub-Event", "push")
		for _, c := range [][]string{
			{"POST", "/v1/data/api/registry/authz/allow", fmt.Sprintf(`{"input":{"token":%q,"headers":{"Authorization":"Bearer %s"},"attributes":{"request":{"http":{"headers":{"authorization":"Bearer %s","cookie":%q}}}}}}`, jwt, jwt, jwt, cookie)},
			{"POST", "/v1/data/api/registry/authz", `{"input":`}, {"GET", "/v1/data/nothing?token=" + query, ""}, {"PUT", "/v1/policies/x", "package x\n\np := "}, {"GET", "/v1/config", ""}, {"GET", "/v1/status", ""},
		} {
			ask(i, n.policy, c[0], c[1], c[2], common...)
			ask(i, n.policy, c[0], c[1], c[2], append([]string{"Authorization", "Bearer " + wrong}, common...)...)
		}
		made := map[string]string{}
		a := e.send(t, i, "HTTP/2.0", call{method: "POST", path: "/v1/tokens", body: strings.NewReader(`{"role":"viewer","namespaces":["default"],"ttl":"1h"}`)})
		if a.status == 201 && json.Unmarshal(a.body, &made) == nil || made["token"] != "" {
			plant("a token made by node "+n.id, made["token"])
			ask(i, n.control, "GET", "/v1/namespaces/default/services/cart", "", "Authorization", "Bearer "+made["token"])
			ask(i, n.control, "DELETE", "/v1/tokens/"+made["token"], "") // instead of its id
			ask(i, n.control, "DELETE", "/v1/revocations/"+made["token"], "")
			ask(i, n.control, "PUT", "/v1/namespaces/default/services/cart", "{}", "Authorization", "Bearer "+made["token"])
		} else {
			t.Errorf("no token was made: %d %s", a.status, a.body)
		}
		for _, d := range strings.Fields("readyz?verbose metrics") {
			res, err := http.Get(n.metrics + "/" + d)
			must(t, err)
			b, err := io.ReadAll(res.Body)
			must(t, err)
			_ = res.Body.Close()
			out.note("metrics port of "+n.id+", "+d, b)
		}
	}
	for i := range tr.nodes {
		tr.stop(i)
	}
	must(t, filepath.WalkDir(tr.dir, func(path string, d fs.DirEntry, err error) error {
		if name := filepath.Base(path); err == nil && !d.IsDir() && (strings.HasSuffix(name, ".log") || strings.Contains(path, "audit")) && !strings.Contains(path, "/raft/") {
			b, err := os.ReadFile(path)
			must(t, err)
			out.note(strings.TrimPrefix(path, tr.dir), b)
		}
		return nil
	}))
	out.note("spans", traces.raw.Bytes())
	uploads.Range(func(_, b any) bool { out.note("upload of decisions", b.([]byte)); return true })
	mirrored.Range(func(_, b any) bool { out.note("mirrored audit trail", b.([]byte)); return true })

	for _, needed := range []string{"/n1.log", "/n2.log", "/n1/audit/audit.log", "/n1/decisions.log", "spans", "upload of decisions", "mirrored audit trail", "metrics port of n1, metrics"} {
		if out.said[needed] == nil || out.said[needed].Len() < 100 {
			t.Errorf("nothing was looked at of %s", needed)
		}
	}
	for what, b := range out.said {
		for which, secret := range secrets {
			if which == "query of a webhook" && strings.Contains(what, "/v1/webhooks") {
				continue // the operator sees the address as it was set; what is to stay hidden goes into headers
			}
			if i := bytes.Index(b.Bytes(), []byte(secret)); secret != "" && i >= 0 {
				from, to := max(0, i-160), min(b.Len(), i+len(secret)+40)
				t.Errorf("%s stands in %s: …%s…", which, what, b.Bytes()[from:to])
			}
		}
	}
}
