package rest

import (
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
)

// ShadowBody is what is asked of a shadow; nothing at all asks for all of the
// decisions.
type ShadowBody struct {
	Share *float64 `json:"share,omitempty"` // of the decisions, above 0 and at most 1
}

// ReplayBody says which decisions are made again.
type ReplayBody struct {
	Limit int    `json:"limit,omitempty"` // of each node, the newest; 1000, at most 10 000
	Since string `json:"since,omitempty"` // how far back, such as 1h; as far as they are kept
}

const (
	replayDefault = 1000
	replayMost    = 10_000
)

func shadowRoutes() []Route {
	const revision = "/v1/policy/revisions/{revision}"
	missing := []fault.Code{fault.NotFound}
	return []Route{
		{Method: http.MethodPost, Path: revision + "/shadow", ID: "shadowPolicy", Summary: "Evaluate a policy revision beside the active one, without effect",
			Action: policy.Manage, Kind: "policy", Status: 200, Writes: true, Body: ShadowBody{}, Answer: policy.Revision{},
			Refusals: []fault.Code{fault.NotFound, fault.Conflict, fault.InvalidPolicy}, handle: shadowPolicy},
		{Method: http.MethodGet, Path: "/v1/policy/shadow", ID: "getShadow", Summary: "Get the policy revision that is evaluated beside the active one",
			Action: policy.Read, Kind: "policy", Status: 200, Reads: true, Answer: policy.Revision{}, Refusals: missing, handle: getShadow},
		{Method: http.MethodDelete, Path: "/v1/policy/shadow", ID: "stopShadow", Summary: "End the shadow; its revision is staged again",
			Action: policy.Manage, Kind: "policy", Status: 200, Writes: true, Answer: policy.Revision{}, Refusals: missing, handle: stopShadow},
		{Method: http.MethodGet, Path: "/v1/policy/shadow/report", ID: "shadowReport", Summary: "Tell how often the shadow decided differently, with examples",
			Action: policy.Read, Kind: "policy", Status: 200, Answer: policy.Impact{}, Refusals: missing, handle: shadowReport},
		{Method: http.MethodPost, Path: revision + "/replay", ID: "replayPolicy", Summary: "Tell how a policy revision would have answered recent decisions",
			Action: policy.Read, Kind: "policy", Status: 200, Body: ReplayBody{}, Answer: policy.Impact{}, Refusals: missing, handle: replayPolicy},
		{Method: http.MethodGet, Path: revision + "/diff", ID: "diffPolicies", Summary: "Tell how one policy revision differs from another, by rule",
			Action: policy.Read, Kind: "policy", Status: 200, Reads: true, Answer: policy.Diff{}, Refusals: missing,
			Query: []Param{{Name: "to", Type: "integer", Description: "the other revision; without it, the active one"}}, handle: diffPolicies},
	}
}

// share reads what part of the decisions a shadow is to see.
func share(asked *float64) (float64, error) {
	if asked == nil {
		return 1, nil
	}
	if !(*asked > 0 && *asked <= 1) {
		return 0, fault.Invalid("/share", "must be above 0 and at most 1")
	}
	return *asked, nil
}

// shadowShare reads from the query of a push what part of the decisions the new
// revision is to see as the shadow; 0: it is not to be the shadow.
func shadowShare(q url.Values) (float64, error) {
	wanted, err := flag(q, "shadow")
	if err != nil {
		return 0, err
	}
	if !q.Has("share") {
		if wanted {
			return 1, nil
		}
		return 0, nil
	}
	if !wanted {
		return 0, fault.New(fault.BadRequest, "share is of the decisions that a shadow sees; say shadow=true as well")
	}
	part, err := strconv.ParseFloat(q.Get("share"), 64)
	if err != nil {
		return 0, fault.New(fault.BadRequest, "share must be a number above 0 and at most 1, not %q", door.Clip(q.Get("share")))
	}
	return share(&part)
}

func shadowPolicy(c *call) error {
	number, err := c.policyNumber()
	if err != nil {
		return err
	}
	body, err := c.body(c.api.opt.MaxBody)
	if err != nil {
		return err
	}
	var ask ShadowBody
	if len(body) > 0 {
		if err := registry.DecodeStrict(body, &ask); err != nil {
			return err
		}
	}
	part, err := share(ask.Share)
	if err != nil {
		return err
	}
	in, err := c.intent(body)
	if err != nil {
		return err
	}
	rev, err := c.api.backend.ShadowPolicy(c.context(), in, number, part)
	if err != nil {
		return err
	}
	return c.revision(http.StatusOK, rev)
}

func stopShadow(c *call) error {
	in, err := c.intent(nil)
	if err != nil {
		return err
	}
	rev, err := c.api.backend.StopShadow(c.context(), in)
	if err != nil {
		return err
	}
	return c.revision(http.StatusOK, rev)
}

func noShadow() error {
	return fault.New(fault.NotFound, "no policy revision is the shadow; muster policy shadow N, or POST /v1/policy/revisions/{n}/shadow, makes one")
}

func getShadow(c *call) error {
	if err := c.view(nil); err != nil {
		return err
	}
	rev := c.State.Policy.Shadow()
	if rev == nil {
		return noShadow()
	}
	return c.tagged(rev.ChangedAt, mediaJSON, rev.Summary())
}

func shadowReport(c *call) error {
	impact, err := c.api.backend.ShadowReport(c.context())
	if err != nil {
		return err
	}
	if impact == nil {
		return noShadow()
	}
	return c.json(http.StatusOK, impact)
}

func replayPolicy(c *call) error {
	number, err := c.policyNumber()
	if err != nil {
		return err
	}
	body, err := c.body(c.api.opt.MaxBody)
	if err != nil {
		return err
	}
	ask := ReplayBody{Limit: replayDefault}
	if len(body) > 0 {
		if err := registry.DecodeStrict(body, &ask); err != nil {
			return err
		}
	}
	if ask.Limit < 1 || ask.Limit > replayMost {
		return fault.Invalid("/limit", "must be a number from 1 to %d", replayMost)
	}
	var since time.Duration
	if ask.Since != "" {
		if since, err = time.ParseDuration(ask.Since); err != nil || since <= 0 {
			return fault.Invalid("/since", "must be a duration above 0, such as 1h or 30m")
		}
	}
	if _, ok := c.State.Policy.Get(number); !ok {
		return fault.New(fault.NotFound, "there is no policy revision %d", number)
	}
	impact, err := c.api.backend.ReplayPolicy(c.context(), number, since, ask.Limit)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, impact)
}

func diffPolicies(c *call) error {
	from, err := c.policyNumber()
	if err != nil {
		return err
	}
	q, err := c.query()
	if err != nil {
		return err
	}
	to, err := number(q, "to")
	if err != nil {
		return err
	}
	if err := c.view(nil); err != nil {
		return err
	}
	if to == 0 {
		active := c.State.Policy.Active()
		if active == nil {
			return fault.New(fault.NotFound, "no policy is active; say which revision to compare with: to=N")
		}
		to = active.Number
	}
	var pair [2]*policy.Revision
	for i, n := range []uint64{from, to} {
		rev, ok := c.State.Policy.Get(n)
		if !ok {
			return fault.New(fault.NotFound, "there is no policy revision %d", n)
		}
		pair[i] = rev
	}
	d := c.api.opt.Diff(&pair[0].Content, &pair[1].Content)
	d.From, d.To = from, to
	return c.json(http.StatusOK, d)
}
