package rest

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/identity"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
)

// TokenBody asks for a token.
type TokenBody struct {
	Role       string            `json:"role"`
	Namespaces []string          `json:"namespaces,omitempty"` // none: all
	TTL        registry.Duration `json:"ttl,omitzero"`         // none: 90 days
}

// NewToken is a token on the one occasion its text is shown.
type NewToken struct {
	ID         string    `json:"id"`
	Token      string    `json:"token"`
	Role       string    `json:"role"`
	Namespaces []string  `json:"namespaces"`
	ExpiresAt  time.Time `json:"expires_at"`
}

func (b *TokenBody) check() error {
	if !slices.Contains(policy.Roles(), b.Role) {
		return fault.Invalid("/role", "must be one of %s", strings.Join(policy.Roles(), ", "))
	}
	for i, ns := range b.Namespaces {
		if err := checkName("/namespaces/"+strconv.Itoa(i), ns, registry.ValidName); err != nil {
			return err
		}
	}
	slices.Sort(b.Namespaces)
	b.Namespaces = slices.Compact(b.Namespaces)
	return nil
}

func createToken(c *call) error {
	body, err := c.body(c.api.opt.MaxBody)
	if err != nil {
		return err
	}
	var ask TokenBody
	if err := registry.DecodeStrict(body, &ask); err != nil {
		return err
	}
	if err := ask.check(); err != nil {
		return err
	}
	minted, err := identity.Mint(ask.Role, ask.Namespaces, time.Duration(ask.TTL), time.Now())
	if err != nil {
		return err
	}
	receipt, err := c.submit(&command.Command{Op: &command.Command_Put{Put: &command.Put{
		Kind: command.Kind_TOKEN, Name: minted.ID, Spec: minted.Spec,
	}}}, body, nil)
	if err != nil {
		return err
	}
	var stored identity.Token
	if err := json.Unmarshal(receipt.Record, &stored); err != nil {
		return fault.Wrap(fault.Internal, err, "the stored token cannot be read")
	}
	if stored.ID != minted.ID {
		return fault.New(fault.Conflict, "this Idempotency-Key made the token %s already, and its text was shown then; revoke it if it was lost, and use a new key", stored.ID)
	}
	c.Header().Set("Location", c.R.URL.Path+"/"+stored.ID)
	c.Header().Set("Cache-Control", "no-store")
	return c.json(http.StatusCreated, NewToken{
		ID: stored.ID, Token: minted.Text, Role: stored.Role, Namespaces: stored.Namespaces, ExpiresAt: stored.ExpiresAt,
	})
}

func listTokens(c *call) error {
	after, limit, err := c.page()
	if err != nil {
		return err
	}
	if err := c.view(nil); err != nil {
		return err
	}
	page, next, err := items(after, limit, c.State.Tokens.List, func(t *identity.Token) ([]byte, error) { return t.JSON, nil })
	if err != nil {
		return err
	}
	c.list(page, next)
	return nil
}

func revokeToken(c *call) error {
	id := c.R.PathValue("token")
	if !identity.ValidID(id) {
		return fault.Invalid("/id", "the id of a token is 16 hex digits")
	}
	wait, err := c.waitInForce()
	if err != nil {
		return err
	}
	receipt, err := c.submit(&command.Command{Op: &command.Command_Delete{Delete: &command.Delete{Kind: command.Kind_TOKEN, Name: id}}}, nil, nil)
	if err != nil {
		return err
	}
	if status, o := c.outstanding(receipt.Revision, wait); len(o.Pending) > 0 {
		return c.json(status, o)
	}
	c.empty()
	return nil
}
