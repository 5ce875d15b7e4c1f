package node

import (
	"fmt"
	"os"
)

// secretFiles are the settings that name files which others must not have.
func (c *Config) secretFiles() map[string]string {
	return map[string]string{
		"tls.key": c.TLS.Key, "tls.control_key": c.TLS.ControlKey,
		"gossip_key_file": c.GossipKeyFile, "operator_token_file": c.OperatorTokenFile, "tracing.headers_file": c.Tracing.HeadersFile,
		"quota.redis_password_file": c.Quota.RedisPasswordFile,
		"policy.git.token_file":     c.Policy.Git.TokenFile, "policy.git.ssh_key_file": c.Policy.Git.SSHKeyFile,
		"policy.git.webhook_secret_file":      c.Policy.Git.WebhookSecretFile,
		"policy.decision_log.http.key":        c.Policy.DecisionLog.HTTP.Key,
		"policy.decision_log.http.token_file": c.Policy.DecisionLog.HTTP.TokenFile,
	}
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
	return nil
}
