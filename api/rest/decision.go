package rest

import (
	"net/http"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

// maxDecisionID bounds the id of a decision that is asked for.
const maxDecisionID = 64

// DecisionReport is the record of a decision, masked.
type DecisionReport struct {
	DecisionID     string         `json:"decision_id"`
	Time           string         `json:"time"`
	Node           string         `json:"node"`
	PolicyRevision uint64         `json:"policy_revision"`
	PolicyDigest   string         `json:"policy_digest"` // of its content
	Revision       uint64         `json:"revision"`
	Engine         string         `json:"engine"`
	EntryPoint     string         `json:"entrypoint"`
	Input          jsontext.Value `json:"input"`
	Masked         []string       `json:"masked"`
	Result         struct {
		Allow    bool           `json:"allow"`
		Reasons  []string       `json:"reasons"`
		Filtered jsontext.Value `json:"filtered"`
	} `json:"result"`
	RequestedBy string `json:"requested_by"`
	Principal   string `json:"principal"`
	RequestID   string `json:"request_id"`
	TraceID     string `json:"trace_id"`
	SpanID      string `json:"span_id"`
	TookNS      int64  `json:"took_ns"`
	Explanation *struct {
		Same       bool          `json:"same"` // the replay gave the result on record
		EntryPoint string        `json:"entrypoint"`
		Rules      []policy.Rule `json:"rules"`
	} `json:"explanation,omitempty"`
}

func decisionRoutes() []Route {
	return []Route{
		{Method: http.MethodGet, Path: "/v1/decisions/{decision}", ID: "getDecision", Summary: "Get a decision that any node made, and why it came out so",
			Action: policy.Read, Kind: "decision", Status: 200, Answer: DecisionReport{}, Refusals: []fault.Code{fault.NotFound},
			Query:  []Param{{Name: "explain", Type: "string", Description: "rules: replay it, and tell what became of each rule"}},
			handle: getDecision},
	}
}

func getDecision(c *call) error {
	q, err := c.query()
	if err != nil {
		return err
	}
	rules := false
	switch v := q.Get("explain"); v {
	case "":
	case "rules":
		rules = true
	default:
		return fault.New(fault.BadRequest, "explain must be rules, not %q", door.Clip(v))
	}
	id := c.R.PathValue("decision")
	if len(id) > maxDecisionID || !door.Harmless(id) {
		return fault.New(fault.BadRequest, "a decision id is what an answer's Muster-Decision-Id says, such as 01a206f8-fefb-70ff-b5b3-526bbdbeae57")
	}
	b, err := c.api.backend.Decision(c.context(), id, rules)
	if err != nil {
		return err
	}
	c.send(http.StatusOK, mediaJSON, b)
	return nil
}
