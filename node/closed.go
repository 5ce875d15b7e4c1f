package node

import (
	"fmt"
	"os"
)

// secretFiles are the settings that name files which others must not have.
func (c *Config) secretFiles() map[string]string {
	files := map[string]string{
		"tls.key": c.TLS.Key, "tls.control_key": c.TLS.ControlKey,
		"gossip_key_file": c.GossipKeyFile, "operator_token_file": c.OperatorTokenFile, "tracing.headers_file": c.Tracing.HeadersFile,
		"quota.redis_password_file":    c.Quota.RedisPasswordFile,
		"snapshots.s3.secret_key_file": c.Snapshots.S3.SecretKeyFile,
		"certificates.key":             c.Certificates.Key, "certificates.vault.token_file": c.Certificates.Vault.TokenFile,
		"policy.git.token_file": c.Policy.Git.TokenFile, "policy.git.ssh_key_file": c.Policy.Git.SSHKeyFile,
		"policy.git.webhook_secret_file":      c.Policy.Git.WebhookSecretFile,
		"policy.decision_log.http.key":        c.Policy.DecisionLog.HTTP.Key,
		"policy.decision_log.http.token_file": c.Policy.DecisionLog.HTTP.TokenFile,
		"audit.mirror.key":                    c.Audit.Mirror.Key, "audit.mirror.headers_file": c.Audit.Mirror.HeadersFile,
	}
	for _, p := range c.Identity.Providers {
		files["identity.providers["+p.Name+"].client_secret_file"] = p.ClientSecretFile
	}
	return files
}

// trustFiles are the settings that name files which say whom the node believes.
func (c *Config) trustFiles() map[string]string {
	files := map[string]string{"tls.ca": c.TLS.CA, "tls.workload_ca": c.TLS.WorkloadCA, "policy.git.known_hosts_file": c.Policy.Git.KnownHostsFile}
	for _, p := range c.Identity.Providers {
		files["identity.providers["+p.Name+"].jwks_file"], files["identity.providers["+p.Name+"].ca_file"] = p.JWKSFile, p.CAFile
	}
	for _, d := range c.Identity.SPIFFE.TrustDomains {
		files["identity.spiffe.trust_domains["+d.Name+"].bundle_file"], files["identity.spiffe.trust_domains["+d.Name+"].ca_file"] = d.BundleFile, d.CAFile
	}
	return files
}

// checkSecretFiles refuses files that others may change, and warns of those that
// everybody may read: mounted secrets are so where nothing else is said, so a
// node starts with them.
func (n *Node) checkSecretFiles() error {
	for setting, file := range n.cfg.secretFiles() {
		if file == "" {
			continue
		}
		info, err := os.Stat(file)
		if err != nil {
			continue // whoever reads it says so
		}
		switch mode := info.Mode().Perm(); {
		case mode&0o022 != 0:
			return fmt.Errorf("%s: %s may be changed by others (its mode is %04o): a node does not trust it; run chmod go-w, and look whether it is still yours", setting, file, mode)
		case mode&0o004 != 0:
			n.logger.Warn("everybody on this machine may read a file that holds a secret: give it mode 0600 or, with a group of the node's own, 0640", "setting", setting)
		}
	}
	for setting, file := range n.cfg.trustFiles() {
		if info, err := os.Stat(file); file != "" && err == nil && info.Mode().Perm()&0o002 != 0 {
			return fmt.Errorf("%s: everybody on this machine may change %s, and so whom this node believes: run chmod o-w, and look whether it is still yours", setting, file)
		}
	}
	return nil
}
