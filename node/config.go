package node

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/muster-registry/muster/api/consul"
	"github.com/muster-registry/muster/identity/provider"
	"github.com/muster-registry/muster/policy/git"
)

// Config is everything one node is told from outside. [Load] fills in the
// defaults, reads the secrets and checks the whole; docs/configuration.md
// states every key. Paths are absolute or relative to the process once loaded.
type Config struct {
	NodeID  string          `yaml:"node_id"`  // this node's lasting name, apart from its addresses
	DataDir string          `yaml:"data_dir"` // log, state and snapshots; 0700
	Cluster ClusterSettings `yaml:"cluster"`

	Listen    ListenSettings    `yaml:"listen"`
	Advertise AdvertiseSettings `yaml:"advertise"`
	TLS       TLSSettings       `yaml:"tls"`
	Insecure  bool              `yaml:"insecure"` // control speaks plain HTTP; never the peer port
	Pprof     bool              `yaml:"pprof"`    // profiles beside the metrics, if those are on loopback

	GossipKey         string `yaml:"gossip_key"`          // base64 of 16, 24 or 32 bytes
	GossipKeyFile     string `yaml:"gossip_key_file"`     // a file with the same
	OperatorTokenFile string `yaml:"operator_token_file"` // a token that has the role operator

	Isolation    IsolationSettings   `yaml:"isolation"`
	Policy       PolicySettings      `yaml:"policy"`
	Webhook      WebhookSettings     `yaml:"webhook"`
	Health       HealthSettings      `yaml:"health"`
	Limits       LimitSettings       `yaml:"limits"`
	Identity     IdentitySettings    `yaml:"identity"`
	Certificates CertificateSettings `yaml:"certificates"`
	Watch        WatchSettings       `yaml:"watch"`
	Discovery    DiscoverySettings   `yaml:"discovery"`
	DNS          DNSSettings         `yaml:"dns"`
	Quota        QuotaSettings       `yaml:"quota"`
	Raft         RaftSettings        `yaml:"raft"`
	Snapshots    SnapshotSettings    `yaml:"snapshots"`
	Audit        AuditSettings       `yaml:"audit"`
	Tracing      TracingSettings     `yaml:"tracing"`
	Consul       ConsulSettings      `yaml:"consul"`
	Log          LogSettings         `yaml:"log"`

	Secrets Secrets `yaml:"-"`

	// Where the decision log's lines go; nil: the process's own.
	Stdout, Stderr io.Writer `yaml:"-"`
}

// ListenSettings are the addresses to listen on, host:port. "off" turns
// policy, metrics and DNS off; the others are needed.
type ListenSettings struct {
	Control string `yaml:"control"`
	Policy  string `yaml:"policy"`
	Metrics string `yaml:"metrics"`
	Peer    string `yaml:"peer"`
	Gossip  string `yaml:"gossip"`
	DNS     string `yaml:"dns"` // UDP and TCP
}

// AdvertiseSettings are the addresses that others reach this node by,
// host:port. Each is the listening address unless set.
type AdvertiseSettings struct {
	Control string `yaml:"control"`
	Peer    string `yaml:"peer"`
	Gossip  string `yaml:"gossip"`
}

// TLSSettings names PEM files. Cert and Key are the node certificate, used on
// the peer port and, unless ControlCert and ControlKey are set, on control.
type TLSSettings struct {
	CA          string `yaml:"ca"`
	Cert        string `yaml:"cert"`
	Key         string `yaml:"key"`
	ControlCert string `yaml:"control_cert"`
	ControlKey  string `yaml:"control_key"`
	WorkloadCA  string `yaml:"workload_ca"` // authorities of workloads, which can sign no node and no role
	MinVersion  string `yaml:"min_version"` // "1.3", or "1.2" for clients only
}

// IsolationSettings say what a node does without its leader.
type IsolationSettings struct {
	MaxStaleness time.Duration `yaml:"max_staleness"` // local answers older than this are refused
}

// PolicySettings say which policies are taken.
type PolicySettings struct {
	DecisionLog      DecisionLogSettings `yaml:"decision_log"`
	RequireSignature bool                `yaml:"require_signature"` // only signed ones; holds for the whole cluster once one node says so
	MinCoverage      float64             `yaml:"min_coverage"`      // percent of a revision's lines that its own tests must evaluate; 0: none

	Git GitSettings `yaml:"git"`
}

// GitSettings say from which repository policies are taken, while this node
// leads. They should be the same on all nodes. Without a URL there is none.
type GitSettings struct {
	URL    string `yaml:"url"`    // https or ssh, without credentials
	Branch string `yaml:"branch"` // whose newest commit counts
	Path   string `yaml:"path"`   // folder in the repository; "": all of it

	Interval             time.Duration `yaml:"interval"`               // between two pulls
	Timeout              time.Duration `yaml:"timeout"`                // of what one pull fetches
	Mode                 string        `yaml:"mode"`                   // stage, shadow, activate
	RequireSignedCommits bool          `yaml:"require_signed_commits"` // by a trusted key
	AllowRewrites        bool          `yaml:"allow_rewrites"`         // a commit need not descend from the last accepted one

	Username          string `yaml:"username"`            // beside the token
	TokenFile         string `yaml:"token_file"`          // for https
	CAFile            string `yaml:"ca_file"`             // for https: another authority than the system's
	SSHKeyFile        string `yaml:"ssh_key_file"`        // for ssh
	KnownHostsFile    string `yaml:"known_hosts_file"`    // for ssh
	WebhookSecretFile string `yaml:"webhook_secret_file"` // what POST /v1/policy/sync is signed with

	Allow      []string `yaml:"allow"`       // addresses that are not public and may be connected to
	MaxSize    Size     `yaml:"max_size"`    // of what is fetched, and of any one file in it
	MaxObjects int      `yaml:"max_objects"` // commits, folders and files in what is fetched
}

// WebhookSettings say where webhooks may lead.
type WebhookSettings struct {
	Allow []string `yaml:"allow"` // addresses and ranges that are not public and may be reached
}

// LimitSettings bound what one request may cost, and all of them together.
type LimitSettings struct {
	Body       Size          `yaml:"body"`
	Definition Size          `yaml:"definition"` // body limit where a definition is sent
	JSONDepth  int           `yaml:"json_depth"` // of nested values; 64 at most
	Headers    Size          `yaml:"headers"`
	Evaluation time.Duration `yaml:"evaluation"` // of one policy decision

	// What is under way at one time, on all client ports together; see flow.Limits.
	Connections           int           `yaml:"connections"` // on one port
	ConnectionsPerAddress int           `yaml:"connections_per_address"`
	InFlight              int           `yaml:"in_flight"`            // requests
	InFlightPerCaller     int           `yaml:"in_flight_per_caller"` // 0: three quarters of in_flight
	Working               int           `yaml:"working"`              // answered from memory; 0: 4 for each processor, at least 8
	Changes               int           `yaml:"changes"`              // that take the disk or other nodes
	QueueWait             time.Duration `yaml:"queue_wait"`           // for a turn, or memory
	Blocked               int           `yaml:"blocked"`              // reads that wait for a change
	BlockedPerCaller      int           `yaml:"blocked_per_caller"`
	Bodies                Size          `yaml:"bodies"` // of all requests

	// In a second; 0: no limit. A burst of 0 is what comes in a second.
	CallerRate   float64 `yaml:"caller_rate"`
	CallerBurst  int64   `yaml:"caller_burst"`
	AddressRate  float64 `yaml:"address_rate"`
	AddressBurst int64   `yaml:"address_burst"`
	FailureRate  float64 `yaml:"failure_rate"` // calls from one address that did not prove who sent them
	FailureBurst int64   `yaml:"failure_burst"`
}

// QuotaSettings are this node's own part in the quotas whose backend is redis.
type QuotaSettings struct {
	RequestsPerSecond float64 `yaml:"requests_per_second"` // that this node allows of each limit while the Redis is away; 0: the limits themselves apply, shared by the nodes
	BurstCapacity     int64   `yaml:"burst_capacity"`      // likewise; 0: the hits of one second
	RedisPasswordFile string  `yaml:"redis_password_file"`
}

// RaftSettings tune consensus. They should be the same on all nodes.
type RaftSettings struct {
	HeartbeatTimeout  time.Duration `yaml:"heartbeat_timeout"`
	ElectionTimeout   time.Duration `yaml:"election_timeout"`
	LeaderLease       time.Duration `yaml:"leader_lease"`
	SnapshotInterval  time.Duration `yaml:"snapshot_interval"`
	SnapshotThreshold uint64        `yaml:"snapshot_threshold"` // log entries
	TrailingLogs      uint64        `yaml:"trailing_logs"`      // log entries kept after a snapshot
	DiskStall         time.Duration `yaml:"disk_stall"`         // that a write to the log may take before others are to lead; 0: any time
	DiskReserve       Size          `yaml:"disk_reserve"`       // that stays free where data_dir is; 0: none
}

// LogSettings shape the node's own log on standard error.
type LogSettings struct {
	Level  string `yaml:"level"`  // debug, info, warn, error
	Format string `yaml:"format"` // json, text
}

// Secrets are the values of the settings that name secrets, read by [Load].
type Secrets struct {
	GossipKey     []byte
	OperatorToken string // empty: only certificates and stored tokens are accepted
	GitWebhook    string // empty: no webhook is believed
	RedisPassword string // of the quotas; empty: none
	// SnapshotSecretKey goes with the access key of the bucket for snapshots.
	SnapshotSecretKey string
	TracingHeaders    string // sent to the collector of spans; empty: none

	Providers []provider.Config // of identities, with theirs
}

// Off is the listening address that turns a listener off.
const Off = "off"

// Defaults returns the configuration that an empty file stands for.
func Defaults() *Config {
	return &Config{
		Cluster: clusterDefaults(),
		Listen:  ListenSettings{Control: "127.0.0.1:8443", Policy: "127.0.0.1:8181", Metrics: "127.0.0.1:9090", Peer: "127.0.0.1:8300", Gossip: "127.0.0.1:7946", DNS: Off},
		TLS:     TLSSettings{MinVersion: "1.3"},
		Policy: PolicySettings{DecisionLog: decisionLogDefaults(), Git: GitSettings{
			Branch: "main", Interval: time.Minute, Timeout: time.Minute, Mode: string(git.ModeStage), RequireSignedCommits: true,
			Username: "git", MaxSize: 32 << 20, MaxObjects: 100_000,
		}},
		Health:    healthDefaults(),
		Isolation: IsolationSettings{MaxStaleness: 30 * time.Second},
		Limits: LimitSettings{
			Body: 4 << 20, Definition: 16 << 20, JSONDepth: 64, Headers: 64 << 10,
			Evaluation:  50 * time.Millisecond,
			Connections: 20_000, ConnectionsPerAddress: 5_000, InFlight: 10_000, Changes: 1024, QueueWait: 10 * time.Second,
			Blocked: 10_000, BlockedPerCaller: 1000, Bodies: 256 << 20, FailureRate: 1000, FailureBurst: 5000,
		},
		Discovery: DiscoverySettings{ZoneShare: 0.5},
		DNS:       dnsDefaults(),
		Watch:     WatchSettings{History: 16_384, HistoryBytes: 16 << 20, Watchers: 20_000},
		Raft: RaftSettings{
			HeartbeatTimeout: 500 * time.Millisecond, ElectionTimeout: 500 * time.Millisecond, LeaderLease: 500 * time.Millisecond,
			SnapshotInterval: 30 * time.Second, SnapshotThreshold: 65_536, TrailingLogs: 16_384,
			DiskStall: 2 * time.Second, DiskReserve: 64 << 20,
		},
		Identity:     IdentitySettings{SessionCache: 64 << 20},
		Certificates: certificateDefaults(),
		Audit:        auditDefaults(), Tracing: tracingDefaults(), Snapshots: snapshotDefaults(),
		Consul: ConsulSettings{Datacenter: consul.DefaultDatacenter},
		Log:    LogSettings{Level: "info", Format: "text"},
	}
}

// Load reads, completes and checks the configuration in a YAML file. Relative
// paths in it are relative to the file's folder. The secrets come from the
// file or, by env, from MUSTER_GOSSIP_KEY, MUSTER_GOSSIP_KEY_FILE, MUSTER_OPERATOR_TOKEN,
// MUSTER_OPERATOR_TOKEN_FILE, MUSTER_GIT_WEBHOOK_SECRET,
// MUSTER_GIT_WEBHOOK_SECRET_FILE, MUSTER_REDIS_PASSWORD,
// MUSTER_REDIS_PASSWORD_FILE, MUSTER_TRACING_HEADERS, MUSTER_TRACING_HEADERS_FILE, MUSTER_SNAPSHOTS_SECRET_KEY, MUSTER_SNAPSHOTS_SECRET_KEY_FILE and, for each identity provider,
// MUSTER_IDENTITY_<NAME>_CLIENT_SECRET and the same with _FILE, which win over the file, as do
// MUSTER_QUOTA_REQUESTS_PER_SECOND and MUSTER_QUOTA_BURST_CAPACITY. The error holds one
// sentence per mistake, each of which says what to do.
func Load(path string, env func(string) string) (*Config, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("the configuration cannot be read: %w", err)
	}
	c, err := parse(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	for _, p := range append(slices.Concat(c.Policy.DecisionLog.paths(), c.Identity.paths(), c.Certificates.paths(), c.Audit.Mirror.paths()),
		&c.DataDir, c.Audit.file(), &c.GossipKeyFile, &c.OperatorTokenFile, &c.Quota.RedisPasswordFile, &c.Tracing.CA, &c.Tracing.HeadersFile,
		&c.Snapshots.Folder, &c.Snapshots.S3.SecretKeyFile, &c.Snapshots.S3.CAFile,
		&c.Policy.Git.TokenFile, &c.Policy.Git.CAFile, &c.Policy.Git.SSHKeyFile, &c.Policy.Git.KnownHostsFile, &c.Policy.Git.WebhookSecretFile,
		&c.TLS.CA, &c.TLS.Cert, &c.TLS.Key, &c.TLS.ControlCert, &c.TLS.ControlKey, &c.TLS.WorkloadCA,
	) {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
	if err := errors.Join(c.readSecrets(env), c.Quota.complete(env), c.validate()); err != nil {
		return nil, fmt.Errorf("%s:\n%w", path, err)
	}
	return c, nil
}

// parse is strict: unknown and repeated keys are refused with their line.
func parse(b []byte) (*Config, error) {
	c := Defaults()
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(c); err != nil && !errors.Is(err, io.EOF) {
		if te, ok := errors.AsType[*yaml.TypeError](err); ok {
			return nil, errors.New(strings.Join(explain(te.Errors), "\n"))
		}
		return nil, err
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("the file holds more than one YAML document; keep one")
	}
	return c, nil
}

// explain rewrites the decoder's words, which name Go types, for an operator.
func explain(lines []string) []string {
	out := make([]string, len(lines))
	for i, l := range lines {
		if head, _, ok := strings.Cut(l, " not found in type "); ok {
			if line, key, ok := strings.Cut(head, ": field "); ok {
				l = fmt.Sprintf("%s: unknown key %q; docs/configuration.md lists the keys", line, key)
			}
		}
		out[i] = strings.NewReplacer("!!str ", "text ", "!!int ", "number ", "!!seq", "a list", "!!map", "a mapping",
			"node.Size", "a size such as 4MiB", "time.Duration", "a duration such as 30s").Replace(l)
	}
	return out
}

// readSecrets fills c.Secrets; the environment wins over the file.
func (c *Config) readSecrets(env func(string) string) error {
	key, err := secret(env, "MUSTER_GOSSIP_KEY", "gossip_key_file", c.GossipKey, c.GossipKeyFile)
	if err != nil {
		return err
	}
	if c.Secrets.GossipKey, err = base64.StdEncoding.DecodeString(key); err != nil {
		return errors.New("gossip_key: not base64; make one with: head -c 32 /dev/urandom | base64")
	}
	if c.Secrets.OperatorToken, err = secret(env, "MUSTER_OPERATOR_TOKEN", "operator_token_file", "", c.OperatorTokenFile); err != nil {
		return err
	}
	if c.Secrets.GitWebhook, err = secret(env, "MUSTER_GIT_WEBHOOK_SECRET", "policy.git.webhook_secret_file", "", c.Policy.Git.WebhookSecretFile); err != nil {
		return err
	}
	if c.Secrets.TracingHeaders, err = secret(env, "MUSTER_TRACING_HEADERS", "tracing.headers_file", "", c.Tracing.HeadersFile); err != nil {
		return err
	}
	if c.Secrets.RedisPassword, err = secret(env, "MUSTER_REDIS_PASSWORD", "quota.redis_password_file", "", c.Quota.RedisPasswordFile); err != nil {
		return err
	}
	if c.Secrets.SnapshotSecretKey, err = secret(env, "MUSTER_SNAPSHOTS_SECRET_KEY", "snapshots.s3.secret_key_file", "", c.Snapshots.S3.SecretKeyFile); err != nil {
		return err
	}
	c.Secrets.Providers, err = c.Identity.complete(env)
	return err
}

// secret finds one secret: environment value, environment file, configured
// value, configured file.
func secret(env func(string) string, name, setting, value, file string) (string, error) {
	if v := env(name); v != "" {
		return strings.TrimSpace(v), nil
	}
	if f := env(name + "_FILE"); f != "" {
		value, file, setting = "", f, name+"_FILE"
	}
	switch {
	case value != "" && file != "":
		return "", fmt.Errorf("%s: the value is given as well; keep one of the two", setting)
	case file == "":
		return strings.TrimSpace(value), nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("%s: the file cannot be read: %w", setting, err)
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return "", fmt.Errorf("%s: %s is empty; put the secret into it", setting, file)
	}
	return string(bytes.TrimSpace(b)), nil
}
