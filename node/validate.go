package node

import (
	"errors"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"time"

	"github.com/muster-registry/muster/egress"
	"github.com/muster-registry/muster/identity/spiffe"
	"github.com/muster-registry/muster/registry"
)

var (
	label  = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	domain = regexp.MustCompile(`^[a-z0-9]([-._a-z0-9]{0,253}[a-z0-9])?$`)
)

// validate completes the advertised addresses and reports every mistake.
func (c *Config) validate() error {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	if !label.MatchString(c.NodeID) {
		wrong("node_id: %q is not a name; give each node its own, of lower-case letters, digits and dashes, at most 63", c.NodeID)
	}
	if c.DataDir == "" {
		wrong("data_dir: say where the node keeps its data, such as /var/lib/muster")
	}
	if !domain.MatchString(c.Cluster.TrustDomain) {
		wrong("cluster.trust_domain: %q is not one; use lower-case letters, digits, dots and dashes, as in the certificates' spiffe://<trust domain>/…", c.Cluster.TrustDomain)
	}
	if n := c.Cluster.BootstrapExpect; n < 0 || n > 9 {
		wrong("cluster.bootstrap_expect: %d is out of range; say how many nodes form the cluster (1 to 9, odd is best), or 0 for a node that joins one", n)
	}
	if c.Cluster.BootstrapExpect != 1 && len(c.Cluster.Join) == 0 {
		wrong("cluster.join: name the gossip address of at least one other node (or set cluster.bootstrap_expect: 1 for a cluster of one)")
	}
	for i, a := range c.Cluster.Join {
		if _, err := splitAddress(a); err != nil {
			wrong("cluster.join[%d]: %w", i, err)
		}
	}
	errs = append(errs, c.validateAddresses()...)
	if host, err := splitAddress(c.Listen.Metrics); c.Pprof && (err != nil || !net.ParseIP(host).IsLoopback()) {
		wrong("pprof: profiles show the node's memory, so they need listen.metrics on a loopback address such as 127.0.0.1:9090")
	}
	errs = append(errs, c.validateTLS()...)
	if err := spiffe.Validate(c.Cluster.TrustDomain, c.Identity.SPIFFE.domains(), c.Identity.SPIFFE.Audiences); err != nil {
		wrong("identity.spiffe: %w", err)
	}
	errs = append(errs, c.validateLimits()...)
	errs = append(errs, c.validateGit()...)
	errs = append(errs, c.validateCertificates()...)
	errs = append(errs, c.Policy.DecisionLog.validate()...)
	errs = append(errs, c.Audit.validate()...)
	errs = append(errs, c.Tracing.validate()...)
	errs = append(errs, c.Cluster.validate()...)
	errs = append(errs, c.Discovery.validate()...)
	errs = append(errs, c.validateSnapshots()...)
	errs = append(errs, c.DNS.validate()...)
	if err := c.Health.validate(); err != nil {
		errs = append(errs, err)
	}
	if _, err := egress.Prefixes(c.Webhook.Allow); err != nil {
		wrong("webhook.allow: %w", err)
	}

	switch len(c.Secrets.GossipKey) {
	case 16, 24, 32:
	case 0:
		wrong("gossip_key: gossip is always encrypted; make a key with: head -c 32 /dev/urandom | base64, and give all nodes the same, best in a gossip_key_file")
	default:
		wrong("gossip_key: has %d bytes; it takes 16, 24 or 32, in base64", len(c.Secrets.GossipKey))
	}
	if t := c.Secrets.OperatorToken; t != "" && len(t) < 32 {
		wrong("operator_token_file: the token has %d characters; use 32 or more that nobody can guess", len(t))
	}
	if registry.ValidName(c.Consul.Datacenter) != nil {
		wrong("consul.datacenter: %q is not a name; use lower-case letters, digits and dashes, at most 63", c.Consul.Datacenter)
	}
	switch c.Log.Level {
	case "debug", "info", "warn", "error":
	default:
		wrong("log.level: %q is none of debug, info, warn, error", c.Log.Level)
	}
	if c.Log.Format != "json" && c.Log.Format != "text" {
		wrong("log.format: %q is neither json nor text", c.Log.Format)
	}
	return errors.Join(errs...)
}

// validateAddresses also makes the advertised addresses those listened on.
func (c *Config) validateAddresses() (errs []error) {
	for _, l := range []struct {
		name      string
		listen    string
		advertise *string
		optional  bool
	}{
		{"control", c.Listen.Control, &c.Advertise.Control, false},
		{"peer", c.Listen.Peer, &c.Advertise.Peer, false},
		{"gossip", c.Listen.Gossip, &c.Advertise.Gossip, false},
		{"policy", c.Listen.Policy, nil, true},
		{"metrics", c.Listen.Metrics, nil, true},
		{"dns", c.Listen.DNS, nil, true},
	} {
		if l.listen == Off {
			if !l.optional {
				errs = append(errs, fmt.Errorf("listen.%s: a node cannot do without it; give an address", l.name))
			}
			continue
		}
		host, err := splitAddress(l.listen)
		if err != nil {
			errs = append(errs, fmt.Errorf("listen.%s: %w", l.name, err))
			continue
		}
		if l.advertise == nil {
			continue
		}
		if *l.advertise != "" {
			if to, err := splitAddress(*l.advertise); err != nil {
				errs = append(errs, fmt.Errorf("advertise.%s: %w", l.name, err))
			} else if unspecified(to) {
				errs = append(errs, fmt.Errorf("advertise.%s: %q cannot be dialled by others; give this node's own address", l.name, *l.advertise))
			}
			continue
		}
		if unspecified(host) {
			errs = append(errs, fmt.Errorf("advertise.%s: listen.%s is %s, which others cannot dial; say which address they reach this node by", l.name, l.name, l.listen))
			continue
		}
		*l.advertise = l.listen
	}
	return errs
}

func (c *Config) validateTLS() (errs []error) {
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, f := range []struct{ name, value, what string }{
		{"ca", c.TLS.CA, "the CA's certificate"},
		{"cert", c.TLS.Cert, "this node's certificate"},
		{"key", c.TLS.Key, "the key of this node's certificate"},
	} {
		if f.value == "" {
			wrong("tls.%s: name the file with %s; muster tls ca and muster tls issue make them", f.name, f.what)
		}
	}
	if (c.TLS.ControlCert == "") != (c.TLS.ControlKey == "") {
		wrong("tls.control_cert and tls.control_key belong together; set both or none")
	}
	if c.TLS.MinVersion != "1.3" && c.TLS.MinVersion != "1.2" {
		wrong("tls.min_version: %q is neither 1.3 nor 1.2", c.TLS.MinVersion)
	}
	return errs
}

func (c *Config) validateLimits() (errs []error) {
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, n := range []struct {
		name  string
		value int64
	}{
		{"limits.body", int64(c.Limits.Body)}, {"limits.definition", int64(c.Limits.Definition)}, {"limits.headers", int64(c.Limits.Headers)},
		{"limits.in_flight", int64(c.Limits.InFlight)}, {"limits.connections", int64(c.Limits.Connections)},
		{"limits.connections_per_address", int64(c.Limits.ConnectionsPerAddress)}, {"limits.changes", int64(c.Limits.Changes)},
		{"limits.blocked", int64(c.Limits.Blocked)}, {"limits.blocked_per_caller", int64(c.Limits.BlockedPerCaller)},
		{"watch.history", int64(c.Watch.History)}, {"watch.history_bytes", int64(c.Watch.HistoryBytes)}, {"watch.watchers", int64(c.Watch.Watchers)},
		{"raft.snapshot_threshold", int64(c.Raft.SnapshotThreshold)}, {"raft.trailing_logs", int64(c.Raft.TrailingLogs)},
	} {
		if n.value <= 0 {
			wrong("%s: must be more than 0; leave it out for the default", n.name)
		}
	}
	errs = append(errs, c.Limits.validateFlow()...)
	if p := c.Policy.MinCoverage; p < 0 || p > 100 {
		wrong("policy.min_coverage: %g is out of range; it is a percentage, from 0 to 100", p)
	}
	if d := c.Limits.JSONDepth; d < 1 || d > registry.MaxDepth {
		wrong("limits.json_depth: %d is out of range; from 1 to %d", d, registry.MaxDepth)
	}
	for _, d := range []struct {
		name       string
		value, min time.Duration
	}{
		{"limits.evaluation", c.Limits.Evaluation, time.Millisecond},
		{"limits.queue_wait", c.Limits.QueueWait, 10 * time.Millisecond},
		{"isolation.max_staleness", c.Isolation.MaxStaleness, time.Second},
		{"raft.heartbeat_timeout", c.Raft.HeartbeatTimeout, 50 * time.Millisecond},
		{"raft.election_timeout", c.Raft.ElectionTimeout, 50 * time.Millisecond},
		{"raft.leader_lease", c.Raft.LeaderLease, 25 * time.Millisecond},
		{"raft.snapshot_interval", c.Raft.SnapshotInterval, time.Second},
	} {
		if d.value < d.min {
			wrong("%s: %s is too short; at least %s", d.name, d.value, d.min)
		}
	}
	if c.Raft.ElectionTimeout < c.Raft.HeartbeatTimeout {
		wrong("raft.election_timeout: %s is shorter than raft.heartbeat_timeout, %s; make it at least as long", c.Raft.ElectionTimeout, c.Raft.HeartbeatTimeout)
	}
	if d := c.Raft.DiskStall; d != 0 && d < c.Raft.HeartbeatTimeout {
		wrong("raft.disk_stall: %s is shorter than raft.heartbeat_timeout, %s; make it longer, or 0 to wait for the disk as long as it takes", d, c.Raft.HeartbeatTimeout)
	}
	if c.Raft.LeaderLease > c.Raft.HeartbeatTimeout {
		wrong("raft.leader_lease: %s is longer than raft.heartbeat_timeout, %s; make it shorter, or two nodes could think they lead", c.Raft.LeaderLease, c.Raft.HeartbeatTimeout)
	}
	return errs
}

// splitAddress checks host:port and returns the host.
func splitAddress(a string) (host string, err error) {
	host, port, err := net.SplitHostPort(a)
	if err != nil {
		return "", fmt.Errorf("%q is not host:port", a)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return "", fmt.Errorf("%q has no port between 1 and 65535", a)
	}
	return host, nil
}

func unspecified(host string) bool {
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}
