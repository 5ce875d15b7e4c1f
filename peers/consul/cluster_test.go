// Package consul runs programs that other people wrote for Consul beside
// muster, as it is built: Consul's own Go client and go-kit's service discovery,
// on three nodes of which one is killed meanwhile.
package consul

import (
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/muster-registry/muster/peers/cluster"
)

var (
	eventually = cluster.Eventually
	must       = cluster.Must
)

// consuls is a cluster for clients of Consul.
type consuls struct {
	*cluster.Cluster
	t *testing.T
}

func newCluster(t *testing.T) *consuls {
	t.Helper()
	return &consuls{cluster.New(t, ""), t}
}

// client is Consul's own, for one node.
func (c *consuls) client(node int) *api.Client {
	c.t.Helper()
	cfg := api.DefaultNonPooledConfig()
	cfg.Address, cfg.Token, cfg.TLSConfig.CAFile = c.Nodes[node].Control, c.OperatorToken, c.CA
	client, err := api.NewClient(cfg)
	must(c.t, err)
	return client
}
