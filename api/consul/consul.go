// Package consul owns the edge that speaks Consul's HTTP API: agent, catalog,
// health and status, so that programs written for Consul find and register
// services here by another address. Calls go through the door like those of
// every edge, and policies see them as what they would be over REST.
//
// One cluster is one agent: what a client registers at one node it finds at
// every other, and any node takes its heartbeats. The room keeps nothing that
// could be lost: what Consul has and muster does not (the id as it was given,
// the node, tagged addresses) stands in the instance's metadata, under names
// that begin with consul-.
//
// It refuses what muster has no like of, and says so: key-value store,
// sessions, ACLs, the service mesh, checks of nodes.
package consul

import (
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/klauspost/compress/gzhttp"

	"github.com/muster-registry/muster/api/door"
)

// Backend is the node, as this edge needs it.
type Backend interface {
	door.Backend
	// Peers lists the members of the cluster in order of their ids, and names
	// the leader, "" where this node knows none. It asks nobody.
	Peers() (peers []Peer, leader string)
}

// Peer is one member of the cluster.
type Peer struct {
	ID      string
	Address string // of its peer port, host:port
	Role    string // leader, voter, non-voter
	Alive   bool   // as gossip has it
}

// Options are the limits and names. The zero value of a field means its
// default.
type Options struct {
	Logger      *slog.Logger
	Datacenter  string        // the name clients get to see; dc1
	Version     string        // of the program
	MaxBody     int64         // bytes; 4 MiB
	BodyTimeout time.Duration // for a body to arrive; 1 min
	Traced      bool          // requests may belong to a trace, whose step the edge names
	// Observe is told of every answer; operation is "" where no route matched.
	Observe func(operation string, status int, elapsed time.Duration)
}

// DefaultDatacenter is what Consul itself calls it.
const DefaultDatacenter = "dc1"

// API is the handler of Consul's paths.
type API struct {
	backend Backend
	door    *door.Door
	opt     Options
	mux     *http.ServeMux
	zipped  http.Handler
	origins *http.CrossOriginProtection
	homes   homes
}

// New builds the edge.
func New(backend Backend, d *door.Door, opt Options) (*API, error) {
	if opt.Logger == nil {
		opt.Logger = slog.Default()
	}
	if opt.Datacenter == "" {
		opt.Datacenter = DefaultDatacenter
	}
	if opt.Version == "" {
		opt.Version = "dev"
	}
	if opt.MaxBody == 0 {
		opt.MaxBody = 4 << 20
	}
	if opt.BodyTimeout == 0 {
		opt.BodyTimeout = time.Minute
	}
	if opt.Observe == nil {
		opt.Observe = func(string, int, time.Duration) {}
	}
	a := &API{backend: backend, door: d, opt: opt, mux: http.NewServeMux(), origins: http.NewCrossOriginProtection()}
	for _, route := range routes() {
		a.mux.HandleFunc(route.Method+" "+route.Path, func(w http.ResponseWriter, r *http.Request) {
			c := w.(*call)
			c.R = r
			c.serve(&route)
		})
	}
	a.mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { w.(*call).unmatched() })
	wrap, err := gzhttp.NewWrapper(gzhttp.MinSize(1024), gzhttp.CompressionLevel(1))
	if err != nil {
		return nil, err
	}
	a.zipped = wrap(http.HandlerFunc(a.answer))
	return a, nil
}

// ServeHTTP answers one request.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if _, ok := r.Header["Accept-Encoding"]; ok {
		a.zipped.ServeHTTP(w, r)
		return
	}
	a.answer(w, r)
}

// segments are the first ones of Consul's paths behind /v1, and whether
// anything below is answered here; the others get a word on it.
var segments = map[string]bool{
	"agent": true, "catalog": true, "health": true, "status": true,
	"kv": false, "session": false, "acl": false, "event": false, "query": false, "txn": false, "connect": false, "config": false,
	"coordinate": false, "operator": false, "discovery-chain": false, "exported-services": false, "imported-services": false,
	"peering": false, "peerings": false, "namespace": false, "partition": false, "partitions": false, "internal": false,
}

// Owns reports whether a path of the control port belongs to this edge.
func Owns(path string) bool {
	_, is := owned(path)
	return is
}

func owned(path string) (answered, is bool) {
	rest, ok := strings.CutPrefix(path, "/v1/")
	if !ok {
		return false, false
	}
	first, _, _ := strings.Cut(rest, "/")
	answered, is = segments[first]
	return answered, is
}
