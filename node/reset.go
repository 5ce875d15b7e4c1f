package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/identity"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/setting"
)

// resetFile asks the node whose data_dir it lies in for a new operator. Who may
// write there is the node's own user, who holds its key and its state anyway.
const resetFile = "operator-reset"

// resetEvery is how often a running node looks for the file.
const resetEvery = time.Second

// reset is what the file says. It holds no secret: of the new token only the
// hash, as it is stored.
type reset struct {
	ID     string   `json:"id"`         // of the new token
	Spec   []byte   `json:"spec"`       // of the new token, as it is stored
	Revoke []string `json:"revoke"`     // tokens that end, as a revocation names them
	All    bool     `json:"all_tokens"` // and all stored tokens with the role operator
}

// ResetOperator asks the node with this configuration for a new operator token,
// in place of the one in the configuration and, with all, of every stored one.
// The token that it gives is good as soon as the node runs and the cluster has a
// leader; from then on the others are refused on every node.
func ResetOperator(cfg *Config, ttl time.Duration, all bool, now time.Time) (token string, err error) {
	minted, err := identity.Mint(policy.Operator, nil, ttl, now)
	if err != nil {
		return "", err
	}
	r := reset{ID: minted.ID, Spec: minted.Spec, All: all}
	if old := cfg.Secrets.OperatorToken; old != "" {
		r.Revoke = []string{"sha256:" + identity.Hash(old)}
	}
	b, err := json.Marshal(r)
	if err != nil {
		return "", err
	}
	name := filepath.Join(cfg.DataDir, resetFile)
	if _, err := os.Stat(cfg.DataDir); err != nil {
		return "", fmt.Errorf("data_dir: %w: run this where the node's data is, as the node's user", err)
	}
	// A link makes the file appear whole, and never in the place of another.
	draft, err := os.CreateTemp(cfg.DataDir, resetFile+"-")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.Remove(draft.Name())) }()
	_, err = draft.Write(b)
	if err = errors.Join(err, draft.Sync(), draft.Close()); err != nil {
		return "", err
	}
	if err := os.Link(draft.Name(), name); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return "", fmt.Errorf("%s is there already: the node has not carried out the last reset yet; it needs to run, and a leader", name)
		}
		return "", err
	}
	return minted.Text, nil
}

// followReset carries out what the file asks for, as soon as the cluster can.
func (n *Node) followReset(ctx context.Context) {
	tick := time.NewTicker(resetEvery)
	defer tick.Stop()
	name := filepath.Join(n.cfg.DataDir, resetFile)
	for said := ""; ; {
		b, err := readReset(name)
		if err == nil {
			err = n.resetOperator(ctx, b)
		}
		switch {
		case err == nil:
			if err := os.Remove(name); err != nil {
				n.logger.Error("the operator was reset, and the file that asked for it cannot be removed", "file", name, "error", err)
			}
			said = ""
		case errors.Is(err, fs.ErrNotExist), ctx.Err() != nil:
		case err.Error() != said:
			said = err.Error()
			n.logger.Warn("the operator is not reset yet", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func readReset(name string) (*reset, error) {
	info, err := os.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 || info.Size() > 64<<10 {
		return nil, fmt.Errorf("%s must be a file that nobody but its owner can read or write", name)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	r := new(reset)
	if err := json.Unmarshal(b, r, json.RejectUnknownMembers(true)); err != nil {
		return nil, fmt.Errorf("%s cannot be read: %w; remove it and ask again", name, err)
	}
	return r, nil
}

// resetOperator can be done any number of times: a crash in between leaves the
// file, and with it the rest.
func (n *Node) resetOperator(ctx context.Context, r *reset) error {
	if err := n.cluster.Ready(); err != nil {
		return err
	}
	err := n.asks(ctx, &command.Command{Op: &command.Command_Put{Put: &command.Put{Kind: command.Kind_TOKEN, Name: r.ID, Spec: r.Spec}}})
	if err != nil && !fault.Is(err, fault.Conflict) { // it is there: from an attempt before this one
		return err
	}
	for _, token := range r.Revoke {
		rev := identity.Revocation{Kind: identity.RevokeToken, Value: token, Reason: "operator reset on " + n.cfg.NodeID}
		if err := rev.Canonical(); err != nil {
			return err
		}
		spec, err := json.Marshal(&rev, json.Deterministic(true))
		if err != nil {
			return err
		}
		if err := n.asks(ctx, &command.Command{Op: &command.Command_Put{Put: &command.Put{
			Kind: command.Kind_SETTING, Service: string(setting.Revocation), Name: rev.ID(), Spec: spec,
		}}}); err != nil {
			return err
		}
	}
	if r.All {
		if err := n.endOperators(ctx, r.ID); err != nil {
			return err
		}
	}
	n.logger.Warn("the operator was reset: a new operator token is good, the one before is refused on every node", "token", r.ID, "all_tokens", r.All)
	return nil
}

// endOperators ends every stored token with the role operator but one.
func (n *Node) endOperators(ctx context.Context, but string) error {
	if err := n.cluster.ReadIndex(ctx); err != nil {
		return err
	}
	tokens := n.machine.View().Tokens
	for after, more := "", true; more; more = after != "" {
		var page []*identity.Token
		page, after = tokens.List(after, 1000)
		for _, t := range page {
			if t.Role != policy.Operator || t.ID == but {
				continue
			}
			err := n.asks(ctx, &command.Command{Op: &command.Command_Delete{Delete: &command.Delete{Kind: command.Kind_TOKEN, Name: t.ID}}})
			if err != nil && !fault.Is(err, fault.NotFound) {
				return err
			}
		}
	}
	return nil
}

// asks has a change made in this node's own name.
func (n *Node) asks(ctx context.Context, c *command.Command) error {
	return n.ask(ctx, &command.Intent{
		Principal: &command.Principal{Id: "node:" + n.cfg.NodeID, Kind: "node", Roles: []string{policy.Operator}},
		Command:   c,
	})
}
