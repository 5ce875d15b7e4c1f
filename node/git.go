package node

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/muster-registry/muster/admit"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/egress"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/fsm"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/git"
	"github.com/muster-registry/muster/policy/rego"
	"github.com/muster-registry/muster/setting"
)

// methodSync has the leader pull from the Git source.
const methodSync = "policy.sync"

// syncName is the name of the record of how far the Git source has come.
const syncName = "git"

// syncWait bounds the wait for a pull that somebody asked for.
const syncWait = 2 * time.Minute

// config gives what the source needs. The errors are those of allow.
func (g *GitSettings) config() (git.Config, error) {
	allow, err := egress.Prefixes(g.Allow)
	return git.Config{
		URL: g.URL, Branch: g.Branch, Path: g.Path, Interval: g.Interval, Timeout: g.Timeout, Mode: git.Mode(g.Mode),
		Unsigned: !g.RequireSignedCommits, Rewrites: g.AllowRewrites,
		Username: g.Username, TokenFile: g.TokenFile, CAFile: g.CAFile, KeyFile: g.SSHKeyFile, KnownHosts: g.KnownHostsFile,
		Egress: &egress.Dialer{Allow: allow}, MaxSize: int64(g.MaxSize), MaxObjects: g.MaxObjects,
	}, err
}

func (c *Config) validateGit() (errs []error) {
	g := &c.Policy.Git
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf("policy.git."+format, args...)) }
	if g.URL == "" {
		if !reflect.DeepEqual(*g, Defaults().Policy.Git) {
			wrong("url: is needed where anything else of policy.git is set")
		}
		return errs
	}
	cfg, err := g.config()
	if err != nil {
		wrong("allow: %w", err)
	}
	for _, err := range cfg.Check() {
		wrong("%w", err)
	}
	if g.Interval < time.Second {
		wrong("interval: %s is too short; at least 1s", g.Interval)
	}
	if g.Timeout < time.Second {
		wrong("timeout: %s is too short; at least 1s", g.Timeout)
	}
	if g.MaxSize <= 0 || g.MaxObjects <= 0 {
		wrong("max_size, max_objects: must be more than 0; leave them out for the default")
	}
	if s := c.Secrets.GitWebhook; s != "" && len(s) < 16 {
		wrong("webhook_secret_file: the secret has %d characters; use 16 or more that nobody can guess", len(s))
	}
	return errs
}

// wireGit connects the Git source. It pulls while this node leads; each tenure
// waits for the pull of the one before to have ended.
func (n *Node) wireGit() error {
	n.gate.Setting(setting.Sync, admit.Setting{Resource: "policy", Canonical: canonicalSync})
	n.cluster.Handle(methodSync, true, n.serveSync)
	if n.cfg.Policy.Git.URL == "" {
		return nil
	}
	cfg, err := n.cfg.Policy.Git.config()
	if err != nil {
		return err
	}
	if n.git, err = git.New(cfg, gitCluster{n}, n.logger, n.metrics.gitSynced()); err != nil {
		return err
	}
	n.cluster.OnLeadership(n.git.Run)
	n.machine.OnApply(func(_ *fsm.View, ev fsm.Events) {
		// A commit that was refused may be signed by a key that is trusted now.
		if ev.Replaced || slices.ContainsFunc(ev.Settings, func(key string) bool { return strings.HasPrefix(key, string(setting.Key)+"/") }) {
			n.git.Poke()
		}
	})
	return nil
}

func canonicalSync(_ context.Context, _ admit.State, _ *command.Intent, _ *command.Command, p *command.Put) ([]byte, error) {
	if p.Name != syncName {
		return nil, fault.Invalid("/name", "the Git source is called %s", syncName)
	}
	s, err := git.Decode(p.Spec)
	if err != nil {
		return nil, fault.Wrap(fault.BadRequest, err, "the state of the Git source cannot be read")
	}
	return s.Encode(), nil
}

// gitCluster is the cluster as the Git source sees it, on the leader.
type gitCluster struct{ *Node }

// intent is by the source itself, which may do what a policy administrator may.
func (g gitCluster) intent() *command.Intent {
	return &command.Intent{Principal: &command.Principal{Id: "git:" + g.cfg.Policy.Git.URL, Kind: "node", Roles: []string{policy.PolicyAdmin}}}
}

// Status implements git.Cluster.
func (g gitCluster) Status(ctx context.Context) (*git.Status, error) {
	if err := g.cluster.ReadIndex(ctx); err != nil {
		return nil, err
	}
	r, ok := g.machine.View().Settings.Get(setting.Sync, "", syncName)
	if !ok {
		return nil, nil
	}
	return git.Decode(r.Spec)
}

// Save implements git.Cluster.
func (g gitCluster) Save(ctx context.Context, s *git.Status) error {
	in := g.intent()
	in.Command = &command.Command{Op: &command.Command_Put{Put: &command.Put{
		Kind: command.Kind_SETTING, Service: string(setting.Sync), Name: syncName, Spec: s.Encode(),
	}}}
	return g.ask(ctx, in)
}

// Verify implements git.Cluster.
func (g gitCluster) Verify(signed, armored []byte) (string, error) {
	return g.signatures.Commit(signed, armored)
}

// Parse implements git.Cluster.
func (g gitCluster) Parse(bundle []byte) (*policy.Content, error) {
	push, err := rego.ReadBundle(bundle, int64(g.cfg.Limits.Definition))
	if err != nil {
		return nil, err
	}
	return &push.Content, nil
}

// Find implements git.Cluster.
func (g gitCluster) Find(s policy.Source) (*policy.Revision, bool) {
	return g.machine.View().Policy.FromSource(s)
}

// Stage implements git.Cluster.
func (g gitCluster) Stage(ctx context.Context, c *policy.Content, o policy.Origin) (*policy.Revision, error) {
	return backend(g).StagePolicy(ctx, g.intent(), c, o, false)
}

// Shadow implements git.Cluster.
func (g gitCluster) Shadow(ctx context.Context, number uint64) error {
	_, err := backend(g).ShadowPolicy(ctx, g.intent(), number, 1)
	return err
}

// Activate implements git.Cluster.
func (g gitCluster) Activate(ctx context.Context, number uint64) error {
	_, err := backend(g).ActivatePolicy(ctx, g.intent(), number)
	return err
}

// SyncPolicy implements rest.Backend.
func (b backend) SyncPolicy(ctx context.Context, wait bool) ([]byte, error) {
	payload := []byte{0}
	if wait {
		payload[0] = 1
	}
	ctx, cancel := context.WithTimeout(ctx, syncWait)
	defer cancel()
	return b.cluster.Call(ctx, methodSync, payload)
}

// serveSync pulls at once, and gives the state of the source after it where the
// caller waits for that.
func (n *Node) serveSync(ctx context.Context, _ string, payload []byte) ([]byte, error) {
	if n.git == nil {
		return nil, fault.New(fault.NotFound, "no policies are taken from Git: policy.git.url is not set on %s, which leads", n.cfg.NodeID)
	}
	if len(payload) == 0 || payload[0] == 0 {
		n.git.Poke()
		return nil, nil
	}
	status, outcome, err := n.git.Sync(ctx)
	if err != nil {
		return nil, err
	}
	now := *status
	now.Outcome = outcome
	return now.Encode(), nil
}
