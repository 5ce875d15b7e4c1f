package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestFIPSMode goes the way of the README with Go's FIPS 140-3 module switched
// on: keys, mutual TLS, gossip, tokens, snapshots, policies.
func TestFIPSMode(t *testing.T) {
	t.Setenv("GODEBUG", "fips140=on")
	d := startDev(t, filepath.Join(t.TempDir(), "dev"), "--port-base", "0")
	for _, n := range d.Nodes {
		if log := string(read(t, filepath.Join(n.Dir, "muster.log"))); !strings.Contains(log, "fips140=true") {
			t.Errorf("%s does not run in the mode: %s", n.ID, log)
		}
	}
	s := d.shell()
	file := write(t, "cart.yaml", manifestText)
	contains(t, s.ok(t, "apply", "-f", file), "service/cart created", "instance/cart/i1 created")
	contains(t, s.ok(t, "discover", "cart", "-n", "shop", "--consistency", "linearizable"), "10.0.0.1")
	tokens(t, s)
	policies(t, s, file)
	snapshots(t, s)
	env := map[string]string{"MUSTER_ADDR": s.env["MUSTER_ADDR"], "MUSTER_CACERT": d.CA, "MUSTER_CLIENT_CERT": d.ClientCert, "MUSTER_CLIENT_KEY": d.ClientKey}
	contains(t, shell{env: env}.ok(t, "cluster", "status"), "n1", "n2", "n3")
	contains(t, s.ok(t, "tls", "verify", strings.TrimPrefix(d.Nodes[0].Control, "https://")), "TLS 1.3", "All is well")
}
