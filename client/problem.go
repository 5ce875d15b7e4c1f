package client

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/fault"
)

// document is application/problem+json as muster writes it.
type document struct {
	Title          string     `json:"title"`
	Status         int        `json:"status"`
	Code           fault.Code `json:"code"`
	Detail         string     `json:"detail"`
	RequestID      string     `json:"request_id"`
	Outcome        string     `json:"outcome"`
	Reasons        []string   `json:"reasons"`
	DecisionID     string     `json:"decision_id"`
	PolicyRevision uint64     `json:"policy_revision"`
	Current        uint64     `json:"current"`
	Errors         []struct {
		fault.Field
		File string `json:"file"`
		Row  int    `json:"row"`
		Col  int    `json:"col"`
	} `json:"errors"`
}

// errForeign marks what a proxy, or something else that is not muster, has
// answered.
var errForeign = errors.New("the answer is not muster's")

// problem turns an answer that is not 2xx into the error it stands for.
func problem(res *http.Response, body []byte) error {
	var d document
	var cause error
	if err := json.Unmarshal(body, &d); err != nil || d.Code == "" {
		d, cause = document{Code: byStatus(res.StatusCode), Detail: "answered " + res.Status + said(body)}, errForeign
	}
	if d.RequestID != "" && d.Code == fault.Internal {
		cause = errors.New("request id " + d.RequestID)
	}
	e := fault.Wrap(d.Code, cause, "%s", d.Detail)
	if d.Outcome == "unknown" {
		e.Outcome = fault.Unknown
	}
	if s, err := strconv.Atoi(strings.TrimSpace(res.Header.Get("Retry-After"))); err == nil && s > 0 {
		e.RetryAfter = time.Duration(s) * time.Second
	}
	e.Reasons, e.DecisionID, e.PolicyRevision, e.Current = d.Reasons, d.DecisionID, d.PolicyRevision, d.Current
	for _, x := range d.Errors {
		if d.Code == fault.InvalidPolicy {
			e.Places = append(e.Places, fault.Place{File: x.File, Row: x.Row, Col: x.Col, Message: x.Message})
		} else {
			e.Fields = append(e.Fields, x.Field)
		}
	}
	return e
}

// said is what an answer in plain text says, if that is short.
func said(body []byte) string {
	text := strings.TrimSpace(string(body))
	plain := func(r rune) bool { return r >= ' ' && r < 0x7f }
	if text == "" || len(text) > 200 || strings.HasPrefix(text, "<") || strings.ContainsFunc(text, func(r rune) bool { return !plain(r) }) {
		return " without saying why"
	}
	return ": " + text
}

func byStatus(status int) fault.Code {
	switch status {
	case http.StatusUnauthorized:
		return fault.Unauthenticated
	case http.StatusForbidden:
		return fault.Forbidden
	case http.StatusNotFound:
		return fault.NotFound
	case http.StatusMethodNotAllowed:
		return fault.MethodNotAllowed
	case http.StatusConflict:
		return fault.Conflict
	case http.StatusRequestEntityTooLarge:
		return fault.TooLarge
	case http.StatusTooManyRequests:
		return fault.RateLimited
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return fault.NotReady
	}
	if status < 500 {
		return fault.BadRequest
	}
	return fault.Internal
}
