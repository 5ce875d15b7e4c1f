package rest

import (
	"net/http"
	"strconv"
	"strings"
	"time"

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

// drainTime is how long what is left of a refused body may take to arrive.
const drainTime = time.Second

// fail answers with a problem. When the answer has begun already, there is no
// honest way to end it but to break the connection off.
func (c *call) fail(err error) {
	e := fault.From(err)
	if e.Code == fault.Internal {
		c.api.opt.Logger.Error("request failed", "request_id", c.ID, "method", c.r.Method, "path", c.r.URL.Path, "err", err)
	}
	if c.status != 0 {
		panic(http.ErrAbortHandler)
	}
	if c.r.ContentLength != 0 {
		// The server reads what is left of a body before it answers; whoever is
		// refused does not get to keep it waiting.
		_ = http.NewResponseController(c.w).SetReadDeadline(time.Now().Add(drainTime))
	}
	h := c.Header()
	status := e.Code.Status()
	if status == http.StatusUnauthorized || status == http.StatusForbidden || status == http.StatusTooManyRequests || c.changes() {
		action := ""
		if c.route != nil {
			action = c.route.ID
		}
		c.Refuse(action, e)
	}
	switch status {
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", `Bearer realm="muster"`)
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		h.Set("Retry-After", retryAfter(e.RetryAfter))
	}
	if e.Limit != nil {
		rates, rate := e.Limit.Fields()
		h.Set("RateLimit-Policy", rates)
		h.Set("RateLimit", rate)
	}
	body, encodeErr := json.Marshal(newProblem(e, c.ID), json.Deterministic(true))
	if encodeErr != nil {
		c.api.opt.Logger.Error("problem not encoded", "request_id", c.ID, "err", encodeErr)
	}
	if e.DecisionID != "" {
		c.Decision = e.DecisionID
	}
	c.Filtered = false
	h.Del("ETag")
	h.Del("Location")
	c.send(e.Code.Status(), "application/problem+json", body)
}

// retryAfter is in whole seconds, at least one.
func retryAfter(d time.Duration) string {
	seconds := max(1, (d+time.Second-1)/time.Second)
	return strconv.FormatInt(int64(seconds), 10)
}
