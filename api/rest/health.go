package rest

import (
	"net/http"
	"strings"
	"time"

	"github.com/klauspost/compress/gzhttp"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy/breakglass"
)

const (
	mediaText   = "text/plain; charset=utf-8"
	mediaStream = "application/octet-stream"

	noCompression = gzhttp.HeaderNoCompression
)

// isHealth tells the paths that are answered however busy the node is.
func isHealth(path string) bool { return path == "/livez" || path == "/readyz" }

// Health answers /livez and /readyz and nothing else, for the metrics port.
func (a *API) Health() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isHealth(r.URL.Path) {
			http.NotFound(w, r)
			return
		}
		a.answer(w, r)
	})
}

// livez answers as long as the process can; it says nothing of the cluster, so
// that nobody restarts a node because another is away.
func livez(c *call) error {
	c.send(http.StatusOK, mediaText, []byte("ok\n"))
	return nil
}

func readyz(c *call) error {
	if err := c.api.backend.Ready(); err != nil {
		return c.unready(err)
	}
	if err := c.Young(); err != nil { // it would refuse every read
		return c.unready(err)
	}
	// It answers reads. But who waits for it before taking the next node away
	// would take the quorum along.
	if err := c.api.backend.Votes(); err != nil {
		return c.unready(err)
	}
	if !c.R.URL.Query().Has("verbose") {
		c.send(http.StatusOK, mediaText, []byte("ok\n"))
		return nil
	}
	leader := "follower"
	if c.api.backend.IsLeader() {
		leader = "leader"
	}
	open := ""
	for o := range breakglass.All(c.State.Settings, time.Now()) {
		open += "[!] " + o.String() + "\n"
	}
	for _, line := range c.api.opt.Health() {
		open += line + "\n"
	}
	c.send(http.StatusOK, mediaText, []byte("[+] caught up since the start\n[+] state no older than "+
		c.Staleness().Round(time.Millisecond).String()+"\n[+] "+leader+"\n"+open+"ok\n"))
	return nil
}

// unready adds what else is wrong, for who asks.
func (c *call) unready(err error) error {
	f := *fault.From(err)
	if c.R.URL.Query().Has("verbose") {
		for _, line := range c.api.opt.Health() {
			if says, bad := strings.CutPrefix(line, "[!] "); bad {
				f.Detail += "; " + says
			}
		}
	}
	return &f
}

func openapiDocument(c *call) error {
	c.send(http.StatusOK, mediaJSON, c.api.openapi)
	return nil
}
