package prometheus

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/muster-registry/muster/peers/cluster"
)

const version = "v0.316.0"

// program gives Prometheus itself.
func program(t *testing.T) string {
	t.Helper()
	if p := os.Getenv("MUSTER_PROMETHEUS"); p != "" {
		return p
	}
	if os.Getenv("MUSTER_TEST_PROMETHEUS") != "1" {
		t.Skip("LEFT OUT: Prometheus takes three minutes of processor time to build; ask for it with MUSTER_TEST_PROMETHEUS=1")
	}
	cache, err := os.UserCacheDir()
	must(t, err)
	built := filepath.Join(cache, "muster-peers", "prometheus-"+version)
	if _, err := os.Stat(built); err == nil {
		return built
	}
	var module struct{ Dir string }
	must(t, json.Unmarshal(run(t, "", "mod", "download", "-json", "github.com/prometheus/prometheus@"+version), &module))
	must(t, os.MkdirAll(filepath.Dir(built), 0o755))
	// In its own folder, so that its own go.sum vouches for what it needs.
	run(t, module.Dir, "build", "-tags", "remove_all_sd,enable_consul_sd", "-o", built, "./cmd/prometheus")
	return built
}

func run(t *testing.T, dir string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "GOWORK=off")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

// application is something with metrics.
func application(t *testing.T, name string) (host, port string) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		fmt.Fprintf(w, "application_info{name=%q} 1\n", name)
	}))
	t.Cleanup(s.Close)
	u, err := url.Parse(s.URL)
	must(t, err)
	return u.Hostname(), u.Port()
}

// Prometheus scrapes what is registered with muster, by both ways of finding
// it, keeps scraping while nodes are killed, and follows what changes then.
func TestPrometheusScrapesWhatIsRegistered(t *testing.T) {
	built := program(t)
	c := cluster.New(t, "")
	dir := t.TempDir()
	tls := fmt.Sprintf("tls_config: {ca_file: %q}, authorization: {credentials: %q}", c.CA, c.OperatorToken)
	var http1, consul []string
	for _, n := range c.Nodes {
		http1 = append(http1, fmt.Sprintf("{url: %q, refresh_interval: 1s, %s}", n.Control+"/v1/prometheus/targets?namespace=shop", tls))
		consul = append(consul, fmt.Sprintf("{server: %q, scheme: https, refresh_interval: 1s, %s}", strings.TrimPrefix(n.Control, "https://"), tls))
	}
	config := fmt.Sprintf(`
global: {scrape_interval: 1s, scrape_timeout: 900ms}
scrape_configs:
  - job_name: http_sd
    http_sd_configs: [%s]
    relabel_configs:
      - {source_labels: [__meta_muster_service], target_label: service}
      - {source_labels: [__meta_muster_metadata_team], target_label: team}
      - {source_labels: [__meta_muster_tags], regex: '.*,hidden,.*', action: drop}
  - job_name: consul_sd
    consul_sd_configs: [%s]
    relabel_configs:
      - {source_labels: [__meta_consul_service], target_label: service}
      - {source_labels: [__meta_consul_service_metadata_team], target_label: team}
`, strings.Join(http1, ", "), strings.Join(consul, ", "))
	file := filepath.Join(dir, "prometheus.yml")
	must(t, os.WriteFile(file, []byte(config), 0o600))

	host, port := application(t, "cart")
	c.Do(0, http.MethodPut, "/v1/namespaces/shop/services/cart/instances/a?create_service=true", fmt.Sprintf(`{"address":%q,"port":%s,"ttl":"0s","metadata":{"team":"checkout"}}`, host, port))
	hostTwo, portTwo := application(t, "hidden")
	c.Do(0, http.MethodPut, "/v1/namespaces/shop/services/cart/instances/b", fmt.Sprintf(`{"address":%q,"port":%s,"ttl":"0s","tags":["hidden"]}`, hostTwo, portTwo))
	hostThree, portThree := application(t, "web")
	c.Do(1, http.MethodPut, "/v1/agent/service/register", fmt.Sprintf(`{"Name":"web","Address":%q,"Port":%s,"Meta":{"team":"front"}}`, hostThree, portThree))

	at := freeAddress(t)
	log, err := os.Create(filepath.Join(dir, "log"))
	must(t, err)
	cmd := exec.Command(built, "--config.file="+file, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+at)
	cmd.Stdout, cmd.Stderr = log, log
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			b, _ := os.ReadFile(log.Name())
			t.Logf("Prometheus' log ends:\n%s", b[max(0, len(b)-8000):])
		}
		_ = log.Close()
	})
	await := func(what string, want ...string) {
		t.Helper()
		eventually(t, what, func() error {
			got, err := query(at, `application_info * on (job, instance) group_left(service, team) up`)
			if err != nil || !slices.Equal(got, want) {
				return fmt.Errorf("%q %w", got, err)
			}
			return nil
		})
	}
	await("both find what there is", "consul_sd web web front", "http_sd cart cart checkout")
	for node := range 2 {
		c.Kill(node)
		name := fmt.Sprint("late", node)
		host, port := application(t, name)
		eventually(t, "another node takes a registration", func() error {
			_, err := c.Try(2, http.MethodPut, "/v1/agent/service/register?ns=shop", fmt.Sprintf(`{"Name":%q,"Address":%q,"Port":%s,"Meta":{"team":"x"}}`, name, host, port))
			return err
		})
		want := []string{"consul_sd web web front", "http_sd cart cart checkout", "http_sd late0 late0 x"}
		if node == 1 {
			want = append(want, "http_sd late1 late1 x")
		}
		await("it follows with a node away", want...)
		c.Revive(node)
	}
	c.Do(2, http.MethodPut, "/v1/agent/service/deregister/web", "")
	eventually(t, "what is deregistered is no target any more", func() error {
		got, err := query(at, `up{job="consul_sd"}`)
		if err != nil || len(got) != 0 {
			return fmt.Errorf("%q %w", got, err)
		}
		return nil
	})
}

// query gives job, name, service and team of each series that is not stale.
func query(at, q string) (all []string, err error) {
	res, err := http.Get("http://" + at + "/api/v1/query?query=" + url.QueryEscape(q))
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, err
	}
	var answer struct {
		Data struct {
			Result []struct{ Metric map[string]string }
		}
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		return nil, fmt.Errorf("%w: %s", err, b)
	}
	for _, r := range answer.Data.Result {
		all = append(all, strings.Join([]string{r.Metric["job"], r.Metric["name"], r.Metric["service"], r.Metric["team"]}, " "))
	}
	slices.Sort(all)
	return all, nil
}

func freeAddress(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(nil)
	defer s.Close()
	return strings.TrimPrefix(s.URL, "http://")
}
