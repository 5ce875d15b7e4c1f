package sim

import (
	"bytes"
	"context"
	"errors"
	"strings"

	"github.com/google/uuid"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/policy"
)

// engine decides by content whose only module lists, line by line, words that
// must not stand in what is stored. It takes no time: what OPA does with a rule
// is not what is simulated.
type engine struct{}

const moduleName = "words.rego"

// Check implements admit.Checker.
func (engine) Check(context.Context, *policy.Content) (policy.Report, error) {
	return policy.Report{}, nil
}

// Version implements admit.Checker.
func (engine) Version() string { return "sim 1" }

// Decide implements policy.Decider.
func (engine) Decide(_ context.Context, rev *policy.Revision, in *policy.Input) policy.Decision {
	d := policy.Decision{Allow: true, ID: uuid.NewString()}
	if rev == nil {
		return d
	}
	d.PolicyRevision = rev.Number
	for word := range strings.Lines(rev.Content.Modules[moduleName]) {
		if word = strings.TrimSpace(word); word != "" && bytes.Contains(in.Resource.Payload, []byte(word)) {
			d.Allow, d.Reasons = false, []string{word + " is forbidden"}
		}
	}
	return d
}

var errNoDocument = errors.New("only changes are decided here")

// DecideRaw implements policy.Decider.
func (engine) DecideRaw(context.Context, *policy.Revision, string, []byte) (policy.Decision, error) {
	return policy.Decision{}, errNoDocument
}

// DecideResponse implements policy.Decider.
func (engine) DecideResponse(context.Context, *policy.Revision, string, []byte) (policy.Decision, error) {
	return policy.Decision{}, errNoDocument
}

// words are what values begin with, and policy revisions forbid one of.
var words = []string{"amber", "birch", "cedar"}

// stage stages a policy revision that forbids a word, and gives its number; 0:
// it is not known to be there.
func (c *caller) stage(ctx context.Context, n *Node, word string) uint64 {
	content := policy.Content{Modules: map[string]string{moduleName: word}, Note: uuid.NewString()}
	stage := &command.Command{Op: &command.Command_PolicyStage{PolicyStage: &command.PolicyStage{Content: content.Encode()}}}
	receipt, err := n.Submit(ctx, &command.Intent{Principal: operator(), Command: stage})
	if err != nil {
		return 0
	}
	rev, err := policy.DecodeRevision(receipt.Record)
	if err != nil {
		c.blame("the record of a staged revision: %v", err)
		return 0
	}
	c.ledger.mu.Lock()
	defer c.ledger.mu.Unlock()
	c.ledger.words[rev.Number] = word
	return rev.Number
}
