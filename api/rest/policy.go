package rest

import (
	"encoding/base64"
	"net/http"
	"strconv"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/sign"
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
	push, err := c.push()
	if err != nil {
		return err
	}
	in, err := c.intent(push.Encode())
	if err != nil {
		return err
	}
	from := policy.Origin{Signature: push.Signature}
	var rev *policy.Revision
	if shadow > 0 {
		rev, err = c.api.backend.StageShadow(c.context(), in, &push.Content, from, shadow)
	} else {
		rev, err = c.api.backend.StagePolicy(c.context(), in, &push.Content, from, activate)
	}
	if err != nil {
		return err
	}
	c.Header().Set("Location", c.R.URL.Path+"/"+strconv.FormatUint(rev.Number, 10))
	return c.revision(http.StatusCreated, rev)
}

// signatureHeader carries a detached OpenPGP signature over the body, in
// base64.
const signatureHeader = "Muster-Signature"

// push reads the policy in the body, and verifies what is signed of it.
func (c *call) push() (*policy.Push, error) {
	signature, err := c.signature()
	if err != nil {
		return nil, err
	}
	body, bundle, err := c.pushed()
	if err != nil {
		return nil, err
	}
	var signer *policy.Signature
	if bundle || signature != nil {
		// A key that was revoked anywhere before this call does not sign any more.
		if err := c.api.backend.ReadIndex(c.context()); err != nil {
			return nil, err
		}
	}
	if signature != nil {
		key, err := c.api.opt.Signatures.Detached(body, signature)
		if err != nil {
			return nil, err
		}
		signer = &policy.Signature{Key: key.Name, Kind: string(key.Kind), Fingerprint: key.Fingerprint}
	}
	parse := policy.ParsePush
	if bundle {
		parse = c.api.opt.ParseBundle
	}
	push, err := parse(body)
	if err != nil {
		return nil, err
	}
	switch {
	case push.Signature != nil && signer != nil:
		return nil, sign.Refused("the bundle is signed within and by the header %s; send one of the two", signatureHeader)
	case push.Signature == nil:
		push.Signature = signer
	}
	if push.Signature != nil {
		push.Signature.Number = push.Number
	} else if push.Number != 0 && !bundle {
		return nil, fault.Invalid("/number", "means something in a signed policy only; sign it, or leave the number out")
	}
	return push, nil
}

// pushed reads the body and says whether it is a bundle.
func (c *call) pushed() (body []byte, bundle bool, err error) {
	switch c.media() {
	case "application/gzip", "application/x-gzip":
		if c.api.opt.ParseBundle == nil {
			return nil, true, fault.New(fault.UnsupportedMediaType, "this node does not take bundles; send the modules as JSON")
		}
		body, err = c.read(c.api.opt.MaxDefinition)
		return body, true, err
	}
	body, err = c.body(c.api.opt.MaxDefinition)
	return body, false, err
}

// signature reads the detached signature; nil where there is none.
func (c *call) signature() ([]byte, error) {
	values := c.R.Header[signatureHeader]
	if len(values) == 0 {
		return nil, nil
	}
	if c.api.opt.Signatures == nil {
		return nil, fault.New(fault.BadRequest, "this node does not take signatures; send the policy without %s", signatureHeader)
	}
	b, err := base64.StdEncoding.DecodeString(values[0])
	if err != nil || len(values) > 1 || len(b) == 0 {
		return nil, fault.New(fault.BadRequest, "%s must be one detached OpenPGP signature in base64", signatureHeader)
	}
	return b, nil
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
	n, err := strconv.ParseUint(c.R.PathValue("revision"), 10, 64)
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
		revisions, next := c.State.Policy.List(number, n)
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
	rev, ok := c.State.Policy.Get(number)
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
	rev, err := c.api.backend.ActivatePolicy(c.context(), in, number)
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
	rev, err := c.api.backend.RollbackPolicy(c.context(), in)
	if err != nil {
		return err
	}
	return c.revision(http.StatusOK, rev)
}
