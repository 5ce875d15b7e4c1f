package node

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="

const minimal = `
node_id: n1
data_dir: data
cluster: {bootstrap_expect: 3, join: ["127.0.0.1:7956"]}
tls: {ca: ca.crt, cert: node.crt, key: node.key}
gossip_key: ` + key + "\n"

func write(t *testing.T, text string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "muster.yaml")
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestLoadFillsInDefaults(t *testing.T) {
	p := write(t, minimal)
	got, err := Load(p, os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(p)
	want := Defaults()
	want.NodeID, want.DataDir = "n1", filepath.Join(dir, "data")
	want.Cluster.BootstrapExpect, want.Cluster.Join = 3, []string{"127.0.0.1:7956"}
	want.TLS = TLSSettings{CA: filepath.Join(dir, "ca.crt"), Cert: filepath.Join(dir, "node.crt"), Key: filepath.Join(dir, "node.key"), MinVersion: "1.3"}
	want.Advertise = AdvertiseSettings{Control: "127.0.0.1:8443", Peer: "127.0.0.1:8300", Gossip: "127.0.0.1:7946"}
	want.GossipKey, want.Secrets.GossipKey = key, make([]byte, 32)
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestLoadReadsEverySetting(t *testing.T) {
	got, err := Load(write(t, minimal+`
listen: {control: "0.0.0.0:443", metrics: "off"}
advertise: {control: "muster.example:443"}
limits: {body: 1KiB, headers: 100, evaluation: 20ms}
isolation: {max_staleness: 1m}
log: {level: debug, format: text}
insecure: true
`), os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	if got.Limits.Body != 1024 || got.Limits.Headers != 100 || got.Limits.Evaluation != 20*time.Millisecond {
		t.Errorf("limits: %+v", got.Limits)
	}
	if got.Isolation.MaxStaleness != time.Minute || got.Listen.Metrics != Off || got.Advertise.Control != "muster.example:443" || !got.Insecure {
		t.Errorf("got %+v", got)
	}
}

func TestLoadRefusesWithAdvice(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"unknown key", minimal + "colour: red\n", `line 7: unknown key "colour"`},
		{"unknown nested key", minimal + "raft:\n  hearbeat_timeout: 1s\n", `line 8: unknown key "hearbeat_timeout"`},
		{"other case", minimal + "Insecure: true\n", `unknown key "Insecure"`},
		{"key twice", minimal + "node_id: n2\n", "already defined"},
		{"second document", minimal + "---\nnode_id: n2\n", "more than one YAML document"},
		{"bad duration", minimal + "isolation: {max_staleness: soon}\n", "a duration such as 30s"},
		{"bad size", minimal + "limits: {body: 4 bananas}\n", `"4 bananas" is not a size`},
		{"negative size", minimal + "limits: {body: -1}\n", `"-1" is not a size`},
		{"huge size", minimal + "limits: {body: 99999999999GiB}\n", "is not a size"},
		{"zero limit", minimal + "limits: {in_flight: 0}\n", "limits.in_flight: must be more than 0"},
		{"deeper than anything reads", minimal + "limits: {json_depth: 65}\n", "limits.json_depth: 65 is out of range; from 1 to 64"},
		{"empty file", "", "node_id:"},
		{"name", strings.Replace(minimal, "node_id: n1", "node_id: N_1", 1), "node_id: \"N_1\" is not a name"},
		{"nobody to join", strings.Replace(minimal, `, join: ["127.0.0.1:7956"]`, "", 1), "cluster.join: name the gossip address"},
		{"no key", strings.Replace(minimal, "gossip_key: "+key, "", 1), "gossip_key: gossip is always encrypted"},
		{"short key", strings.Replace(minimal, key, "AAAA", 1), "gossip_key: has 3 bytes"},
		{"key is not base64", strings.Replace(minimal, key, "???", 1), "gossip_key: not base64"},
		{"key given twice", minimal + "gossip_key_file: k\n", "gossip_key_file: the value is given as well"},
		{"no such key file", strings.Replace(minimal, "gossip_key: "+key, "gossip_key_file: nothing", 1), "gossip_key_file: the file cannot be read"},
		{"no certificate", strings.Replace(minimal, "cert: node.crt, ", "", 1), "tls.cert: name the file"},
		{"half a pair", minimal + "tls: {}\n", "already defined"},
		{"old TLS", strings.Replace(minimal, "key: node.key", `key: node.key, min_version: "1.1"`, 1), "tls.min_version"},
		{"everywhere", minimal + "listen: {peer: \"0.0.0.0:8300\"}\n", "advertise.peer: listen.peer is 0.0.0.0:8300"},
		{"advertised everywhere", minimal + "advertise: {peer: \":8300\"}\n", "advertise.peer: \":8300\" cannot be dialled"},
		{"no port", minimal + "listen: {control: localhost}\n", `listen.control: "localhost" is not host:port`},
		{"port 0", minimal + "listen: {control: \"localhost:0\"}\n", "no port between 1 and 65535"},
		{"control off", minimal + "listen: {control: \"off\"}\n", "listen.control: a node cannot do without it"},
		{"coverage", minimal + "policy: {min_coverage: 101}\n", "policy.min_coverage: 101 is out of range"},
		{"log level", minimal + "log: {level: loud}\n", "log.level"},
		{"timings", minimal + "raft: {election_timeout: 100ms}\n", "shorter than raft.heartbeat_timeout"},
		{"Git without a URL", minimal + "policy: {git: {branch: main, path: a}}\n", "policy.git.url: is needed"},
		{"Git by another way", minimal + "policy: {git: {url: \"http://git.example.org/a\"}}\n", "policy.git.url: is neither"},
		{"Git credentials", minimal + "policy: {git: {url: \"https://a:b@git.example.org/a\"}}\n", "policy.git.url: carries credentials"},
		{"Git on this machine", minimal + "policy: {git: {url: \"https://127.0.0.1/a\"}}\n", "policy.git.url: 127.0.0.1 is a loopback address"},
		{"Git at a metadata service", minimal + "policy: {git: {url: \"https://169.254.169.254/a\", allow: [127.0.0.1]}}\n", "policy.git.url: 169.254.169.254 is"},
		{"Git addresses", minimal + "policy: {git: {url: \"https://git.example.org/a\", allow: [inside]}}\n", "policy.git.allow: \"inside\" is neither"},
		{"Git mode", minimal + "policy: {git: {url: \"https://git.example.org/a\", mode: merge}}\n", "policy.git.mode"},
		{"Git interval", minimal + "policy: {git: {url: \"https://git.example.org/a\", interval: 1ms}}\n", "policy.git.interval"},
		{"Git secret", minimal + "policy: {git: {url: \"https://git.example.org/a\", webhook_secret_file: nothing}}\n", "policy.git.webhook_secret_file: the file cannot be read"},
		{"mirror without a type", minimal + "audit: {mirror: {url: \"https://siem.example.org/\"}}\n", "audit.mirror.type: is needed"},
		{"mirror of another kind", minimal + "audit: {mirror: {type: kafka}}\n", "audit.mirror.type: \"kafka\" is none of"},
		{"mirror on this machine", minimal + "audit: {mirror: {type: syslog, address: \"127.0.0.1:6514\"}}\n", "audit.mirror.address: 127.0.0.1 is a loopback address"},
		{"mirror without a port", minimal + "audit: {mirror: {type: syslog, address: siem.example.org}}\n", "audit.mirror.address: \"siem.example.org\" is not host:port"},
		{"mirror at a metadata service", minimal + "audit: {mirror: {type: otlp, url: \"https://169.254.169.254/v1/logs\"}}\n", "audit.mirror.url: 169.254.169.254 is"},
		{"mirror that everybody reads", minimal + "audit: {mirror: {type: http, url: \"http://siem.example.org/\"}}\n", "audit.mirror.url: would send lines"},
		{"mirror with credentials", minimal + "audit: {mirror: {type: http, url: \"https://a:b@siem.example.org/\"}}\n", "put the credential into audit.mirror.headers_file"},
		{"mirror addresses", minimal + "audit: {mirror: {type: http, url: \"https://siem.example.org/\", allow: [inside]}}\n", "audit.mirror.allow: \"inside\" is neither"},
		{"mirror of two kinds", minimal + "audit: {mirror: {type: syslog, address: \"siem.example.org:6514\", url: \"https://siem.example.org/\"}}\n", "audit.mirror.type: syslog takes an address"},
		{"mirror with another compression", minimal + "audit: {mirror: {type: http, url: \"https://siem.example.org/\", compression: zstd}}\n", "audit.mirror.compression: \"zstd\" is none of gzip, none"},
		{"mirror of no trail", minimal + "audit: {path: \"off\", mirror: {type: syslog, address: \"siem.example.org:6514\"}}\n", "audit.mirror: there is nothing to mirror"},
		{"mirror with no room", minimal + "audit: {mirror: {type: syslog, address: \"siem.example.org:6514\", spool: 1KiB, on_failure: panic, timeout: 1ms, cert: a.crt}}\n", "audit.mirror.spool: 1KiB is too small"},
		{"lease", minimal + "raft: {leader_lease: 1s}\n", "raft.leader_lease"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Load(write(t, c.text), os.Getenv)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("want an error with %q, got: %v", c.want, err)
			}
		})
	}
}

func TestLoadReportsAllMistakesAtOnce(t *testing.T) {
	_, err := Load(write(t, "log: {level: loud}\n"), os.Getenv)
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"node_id:", "data_dir:", "tls.ca:", "tls.cert:", "tls.key:", "gossip_key:", "log.level:"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in: %v", want, err)
		}
	}
}

func TestSecretsFromTheEnvironmentWin(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("  "+strings.Repeat("t", 40)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("MUSTER_OPERATOR_TOKEN_FILE", file)
	t.Setenv("MUSTER_GOSSIP_KEY", "AQEBAQEBAQEBAQEBAQEBAQ==")
	c, err := Load(write(t, minimal+"operator_token_file: /nowhere\n"), os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	if c.Secrets.OperatorToken != strings.Repeat("t", 40) {
		t.Errorf("operator token is %q", c.Secrets.OperatorToken)
	}
	if len(c.Secrets.GossipKey) != 16 || c.Secrets.GossipKey[0] != 1 {
		t.Errorf("gossip key is %v", c.Secrets.GossipKey)
	}
}

func TestSizeText(t *testing.T) {
	for s, want := range map[Size]string{0: "0", 100: "100", 1024: "1KiB", 4 << 20: "4MiB", 3 << 30: "3GiB", 1536: "1536"} {
		if s.String() != want {
			t.Errorf("%d is %q, want %q", int64(s), s.String(), want)
		}
	}
}

// TestEverySettingIsDocumented compares docs/configuration.md with the
// settings there are, and the defaults it states with the real ones.
func TestEverySettingIsDocumented(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "docs", "configuration.md"))
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{} // key to default
	for line := range strings.Lines(string(b)) {
		cells := strings.SplitN(line, "|", 4)
		if len(cells) == 4 && strings.HasPrefix(cells[1], " `") && !strings.Contains(cells[1], "-") {
			documented[strings.Trim(cells[1], " `")] = strings.TrimSpace(cells[2])
		}
	}
	check := func(key string, v reflect.Value) {
		text, ok := documented[key]
		delete(documented, key)
		if !ok {
			t.Errorf("%s is not documented", key)
			return
		}
		if v.IsZero() && (!strings.HasPrefix(text, "`") || strings.Contains(key, "[]")) {
			return // "needed", "none", "as listen.control"
		}
		want := fmt.Sprint(v.Interface())
		if text != "`"+want+"`" {
			t.Errorf("%s: the documented default is %s, the real one %s", key, text, want)
		}
	}
	var walk func(prefix string, v reflect.Value)
	walk = func(prefix string, v reflect.Value) {
		for i := range v.NumField() {
			name := v.Type().Field(i).Tag.Get("yaml")
			switch {
			case name == "-":
			case v.Field(i).Kind() == reflect.Struct:
				walk(prefix+name+".", v.Field(i))
			case v.Field(i).Kind() == reflect.Slice && v.Field(i).Type().Elem().Kind() == reflect.Struct:
				check(prefix+name, v.Field(i))
				walk(prefix+name+"[].", reflect.New(v.Field(i).Type().Elem()).Elem())
			default:
				check(prefix+name, v.Field(i))
			}
		}
	}
	walk("", reflect.ValueOf(*Defaults()))
	for key := range documented {
		t.Errorf("%s is documented, but there is no such setting", key)
	}
}
