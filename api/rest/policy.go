package rest

import (
	"net/http"
	"strconv"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

// pushPolicy takes a policy as JSON or as an OPA bundle.
func pushPolicy(c *call) error {
	q, err := c.query()
	if err != nil {
		return err
	}
	activate, err := flag(q, "activate")
	if err != nil {
		return err
	}
	shadow, err := shadowShare(q)
	if err != nil {
		return err
	}
	if activate && shadow > 0 {
		return fault.New(fault.BadRequest, "a revision cannot be active and the shadow at once; leave out activate or shadow")
	}
	content, err := c.content()
	if err != nil {
		return err
	}
	in, err := c.intent(content.Encode())
	if err != nil {
		return err
	}
	var rev *policy.Revision
	if shadow > 0 {
		rev, err = c.api.backend.StageShadow(c.r.Context(), in, content, policy.Origin{}, shadow)
	} else {
		rev, err = c.api.backend.StagePolicy(c.r.Context(), in, content, policy.Origin{}, activate)
	}
	if err != nil {
		return err
	}
	c.Header().Set("Location", c.r.URL.Path+"/"+strconv.FormatUint(rev.Number, 10))
	return c.revision(http.StatusCreated, rev)
}

func (c *call) content() (*policy.Content, error) {
	switch c.media() {
	case "application/gzip", "application/x-gzip":
		if c.api.opt.ParseBundle == nil {
			return nil, fault.New(fault.UnsupportedMediaType, "this node does not take bundles; send the modules as JSON")
		}
		bundle, err := c.read(c.api.opt.MaxDefinition)
		if err != nil {
			return nil, err
		}
		return c.api.opt.ParseBundle(bundle)
	}
	body, err := c.body(c.api.opt.MaxDefinition)
	if err != nil {
		return nil, err
	}
	return policy.ParseContent(body)
}

// revision answers a change of the policies with the revision it led to.
func (c *call) revision(status int, rev *policy.Revision) error {
	c.written(rev.ChangedAt)
	c.Header().Set("ETag", entityTag(rev.ChangedAt))
	c.send(status, mediaJSON, rev.Summary())
	return nil
}

// policyNumber reads the number of a policy revision from the path.
func (c *call) policyNumber() (uint64, error) {
	n, err := strconv.ParseUint(c.r.PathValue("revision"), 10, 64)
	if err != nil || n == 0 {
		return 0, fault.Invalid("/revision", "the number of a policy revision is a whole number from 1")
	}
	return n, nil
}

func listPolicies(c *call) error {
	token, limit, err := c.page()
	if err != nil {
		return err
	}
	if err := c.view(nil); err != nil {
		return err
	}
	page, next, err := items(token, limit, func(after string, n int) ([]*policy.Revision, string) {
		number, _ := strconv.ParseUint(after, 10, 64) // "" is the beginning
		revisions, next := c.state.Policy.List(number, n)
		if next == 0 {
			return revisions, ""
		}
		return revisions, strconv.FormatUint(next, 10)
	}, func(rev *policy.Revision) ([]byte, error) { return rev.Summary(), nil })
	if err != nil {
		return err
	}
	c.list(page, next)
	return nil
}

func getPolicy(c *call) error {
	number, err := c.policyNumber()
	if err != nil {
		return err
	}
	if err := c.view(nil); err != nil {
		return err
	}
	rev, ok := c.state.Policy.Get(number)
	if !ok {
		return fault.New(fault.NotFound, "there is no policy revision %d", number)
	}
	return c.tagged(rev.ChangedAt, mediaJSON, rev.JSON)
}

func activatePolicy(c *call) error {
	number, err := c.policyNumber()
	if err != nil {
		return err
	}
	in, err := c.intent(nil)
	if err != nil {
		return err
	}
	rev, err := c.api.backend.ActivatePolicy(c.r.Context(), in, number)
	if err != nil {
		return err
	}
	return c.revision(http.StatusOK, rev)
}

func rollbackPolicy(c *call) error {
	in, err := c.intent(nil)
	if err != nil {
		return err
	}
	rev, err := c.api.backend.RollbackPolicy(c.r.Context(), in)
	if err != nil {
		return err
	}
	return c.revision(http.StatusOK, rev)
}
