// Package git owns the signed source of policies: a branch of a Git
// repository, from which the leader takes what the cluster is to decide by. It
// fetches the newest commit, checks who signed it and that history only went
// forward, and hands the files to the cluster as the bundle they would be
// pushed as. It runs no git, writes nothing to disk and keeps nothing between
// two pulls but what the cluster has replicated, so whoever leads next goes on.
//
// A repository is somebody else's: everything that is received is bounded in
// size, count and time before it is unpacked. The room refuses submodules,
// symbolic links and files kept outside of Git, names that are not plain, a
// commit without a trusted signature unless that is allowed, and a commit that
// does not descend from the last one accepted.
package git

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/transport"

	"github.com/muster-registry/muster/egress"
)

// Mode says how far a new commit goes by itself.
type Mode string

// The modes. What a mode does not do is left to a policy administrator.
const (
	ModeStage    Mode = "stage"    // it becomes a staged revision
	ModeShadow   Mode = "shadow"   // and is evaluated beside the active one
	ModeActivate Mode = "activate" // it becomes the active revision
)

// Config says where the policies are and what is demanded of them.
type Config struct {
	URL    string // https://host/path, ssh://user@host/path or user@host:path; without a password
	Branch string
	Path   string // the folder that holds the policies; "": the whole repository

	Interval time.Duration // between two pulls
	Timeout  time.Duration // of what one pull fetches
	Mode     Mode
	Unsigned bool // a commit needs no signature
	Rewrites bool // history need not go forward

	// Credentials are files, read anew at each pull; "" for none.
	Username   string // beside the token; default "git"
	TokenFile  string // a token or a password, for https
	CAFile     string // PEM: who signs the certificate of the server; default: the system's
	KeyFile    string // PEM: a private key, for ssh
	KnownHosts string // as ssh's known_hosts, for ssh

	Egress *egress.Dialer // where connections may lead

	MaxSize    int64 // bytes of what is fetched as sent, and of any one file; four times as much unpacked
	MaxObjects int   // commits, folders and files in what is fetched
}

const depthFirst = 50 // commits that are fetched to find the last accepted one

func (c *Config) setDefaults() {
	if c.Branch == "" {
		c.Branch = "main"
	}
	if c.Interval <= 0 {
		c.Interval = time.Minute
	}
	if c.Timeout <= 0 {
		c.Timeout = time.Minute
	}
	if c.Mode == "" {
		c.Mode = ModeStage
	}
	if c.Username == "" {
		c.Username = "git"
	}
	if c.Egress == nil {
		c.Egress = new(egress.Dialer)
	}
	if c.MaxSize <= 0 {
		c.MaxSize = 32 << 20
	}
	if c.MaxObjects <= 0 {
		c.MaxObjects = 100_000
	}
}

// Check says everything that is wrong with the configuration, one error each.
// It connects to nothing.
func (c *Config) Check() (errs []error) {
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	ep, err := endpoint(c.URL)
	if err != nil {
		return append(errs, fmt.Errorf("url: %w", err))
	}
	if c.Egress != nil {
		if err := c.Egress.CheckHost(host(ep)); err != nil {
			wrong("url: %w; list it in allow if it is meant", err)
		}
	}
	switch ep.Protocol {
	case "https":
		if c.KeyFile != "" || c.KnownHosts != "" {
			wrong("ssh_key_file, known_hosts_file: are for ssh, and the url is https")
		}
	case "ssh":
		if c.KeyFile == "" || c.KnownHosts == "" {
			wrong("ssh_key_file, known_hosts_file: an ssh url needs both; ssh-keyscan prints lines for known_hosts")
		}
		if c.TokenFile != "" || c.CAFile != "" {
			wrong("token_file, ca_file: are for https, and the url is ssh")
		}
	}
	if c.Branch != "" && (plumbing.NewBranchReferenceName(c.Branch).Validate() != nil || strings.HasPrefix(c.Branch, "refs/")) {
		wrong("branch: %q is not the name of a branch; write it like main", c.Branch)
	}
	if c.Path != "" && (!plain(c.Path) || path.Clean(c.Path) != c.Path) {
		wrong("path: %q is not a plain folder; write it like policies/prod", c.Path)
	}
	switch c.Mode {
	case "", ModeStage, ModeShadow, ModeActivate:
	default:
		wrong("mode: %q is none of stage, shadow, activate", c.Mode)
	}
	return errs
}

var scpForm = regexp.MustCompile(`^[A-Za-z0-9._-]+@[^:/\s]+:[^/\s].*$`)

// endpoint reads a URL. It must lead to another machine by https or ssh, and
// carry no password, since it is shown and replicated.
func endpoint(raw string) (*transport.Endpoint, error) {
	if raw == "" {
		return nil, errors.New("is needed: https://host/path.git or ssh://git@host/path.git")
	}
	if !scpForm.MatchString(raw) {
		u, err := url.Parse(raw)
		if err != nil || u.Scheme != "https" && u.Scheme != "ssh" || u.Host == "" {
			return nil, errors.New("is neither https://host/path.git nor ssh://git@host/path.git")
		}
		if _, has := u.User.Password(); has || u.Scheme == "https" && u.User != nil {
			return nil, errors.New("carries credentials, which everyone could read; put them into token_file, and the name into username")
		}
		if u.RawQuery != "" || u.Fragment != "" || u.Path == "" || u.Path == "/" {
			return nil, errors.New("must name a repository by a path, and have neither ? nor #")
		}
	}
	ep, err := transport.NewEndpoint(raw)
	if err != nil {
		return nil, fmt.Errorf("cannot be read: %w", err)
	}
	if ep.Protocol != "https" && ep.Protocol != "ssh" {
		return nil, fmt.Errorf("has the scheme %s; it must be https or ssh", ep.Protocol)
	}
	return ep, nil
}

// host is the host of an endpoint, an IPv6 address without its brackets.
func host(ep *transport.Endpoint) string { return strings.Trim(ep.Host, "[]") }
