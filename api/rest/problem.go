package rest

import (
	"strings"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/fault"
)

// Problem is the body of every refusal (RFC 9457). Which of the members below
// request_id are present depends on the code.
type Problem struct {
	Type      string     `json:"type"`
	Title     string     `json:"title"`
	Status    int        `json:"status"`
	Code      fault.Code `json:"code"`
	Detail    string     `json:"detail"`
	RequestID string     `json:"request_id"`

	Outcome        string    `json:"outcome,omitempty"`          // "unknown": the change may have happened
	Errors         any       `json:"errors,omitempty"`           // []fault.Field, invalid_policy: []fault.Place
	Reasons        *[]string `json:"reasons,omitzero"`           // policy_denied
	DecisionID     *string   `json:"decision_id,omitzero"`       // policy_denied
	PolicyRevision *uint64   `json:"policy_revision,omitzero"`   // policy_denied
	Current        *uint64   `json:"current,omitzero,omitempty"` // revision_mismatch; 0: there is no such record
}

func newProblem(e *fault.Error, requestID string) *Problem {
	p := &Problem{
		Type:      "urn:muster:problem:" + string(e.Code),
		Title:     strings.ReplaceAll(string(e.Code), "_", " "),
		Status:    e.Code.Status(),
		Code:      e.Code,
		Detail:    e.Detail,
		RequestID: requestID,
	}
	if e.Outcome == fault.Unknown {
		p.Outcome = "unknown"
	}
	if len(e.Fields) > 0 {
		p.Errors = e.Fields
	}
	if len(e.Places) > 0 {
		p.Errors = e.Places
	}
	switch e.Code {
	case fault.PolicyDenied:
		reasons := e.Reasons
		if reasons == nil {
			reasons = []string{}
		}
		p.Reasons, p.DecisionID, p.PolicyRevision = &reasons, &e.DecisionID, &e.PolicyRevision
	case fault.RevisionMismatch:
		p.Current = &e.Current
	}
	return p
}

// fail answers with a problem.
func (c *call) fail(err error) {
	e := c.Refusing(err, c.api.opt.Logger, c.operation(), c.changes())
	body, encodeErr := json.Marshal(newProblem(e, c.ID), json.Deterministic(true))
	if encodeErr != nil {
		c.api.opt.Logger.Error("problem not encoded", "request_id", c.ID, "err", encodeErr)
	}
	c.Filtered = false
	h := c.Header()
	h.Del("ETag")
	h.Del("Location")
	c.send(e.Code.Status(), "application/problem+json", body)
}
