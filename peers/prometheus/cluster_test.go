// Package prometheus runs a real Prometheus beside muster, as it is built: it
// finds what to scrape by muster's own http_sd and by consul_sd, while nodes are
// killed.
//
// Prometheus is built from its module, which takes some three minutes of
// processor time the first time. So the test runs where MUSTER_TEST_PROMETHEUS=1
// asks for it, or MUSTER_PROMETHEUS names a program that is there already.
package prometheus

import "github.com/muster-registry/muster/peers/cluster"

var (
	eventually = cluster.Eventually
	must       = cluster.Must
)
