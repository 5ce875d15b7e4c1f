package opa

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/server/types"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/topdown"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/fault"
)

// refusal is an error in OPA's own form, with the status OPA gives it.
type refusal struct {
	status int
	body   *types.ErrorV1
}

// Error implements error.
func (r *refusal) Error() string { return r.body.Error() }

// invalid is OPA's answer to what a caller got wrong.
func invalid(format string, args ...any) error {
	return &refusal{http.StatusBadRequest, types.NewErrorV1(types.CodeInvalidParameter, format, args...)}
}

// uncompiled is OPA's answer to Rego that does not compile; other errors pass.
func uncompiled(code, message string, err error) error {
	if errs, ok := errors.AsType[ast.Errors](err); ok {
		return &refusal{http.StatusBadRequest, types.NewErrorV1(code, "%s", message).WithASTErrors(errs)}
	}
	if one, ok := errors.AsType[*ast.Error](err); ok {
		return &refusal{http.StatusBadRequest, types.NewErrorV1(code, "%s", message).WithASTErrors(ast.Errors{one})}
	}
	if f, ok := errors.AsType[*fault.Error](err); ok && len(f.Places) > 0 {
		return &refusal{http.StatusBadRequest, types.NewErrorV1(code, "%s", message).WithASTErrors(placed(f.Places))}
	}
	return err
}

// failed is OPA's answer to a question that could not be evaluated: in its
// words, since they are about the question. Faults pass.
func failed(message string, err error) error {
	if errs, ok := err.(ast.Errors); ok && message != "" { //nolint:errorlint // OPA looks no deeper
		return uncompiled(types.CodeInvalidParameter, message, errs)
	}
	if _, ok := errors.AsType[*fault.Error](err); ok || topdown.IsError(err) {
		return err
	}
	return &refusal{http.StatusInternalServerError, types.NewErrorV1(types.CodeInternal, "%s", err.Error())}
}

// placed gives the places of a refused policy the form of OPA's own errors.
func placed(places []fault.Place) ast.Errors {
	errs := make(ast.Errors, len(places))
	for i, p := range places {
		errs[i] = &ast.Error{Code: ast.CompileErr, Message: p.Message, Location: ast.NewLocation(nil, p.File, p.Row, p.Col)}
	}
	return errs
}

// refuse finds the form in which OPA would put the error. What OPA does not
// know (a node that is not ready, a leader that is missing) has its own code.
func refuse(err error) *refusal {
	if r, ok := errors.AsType[*refusal](err); ok {
		return r
	}
	if types.IsBadRequest(err) || storage.IsInvalidPatch(err) {
		return &refusal{http.StatusBadRequest, types.NewErrorV1(types.CodeInvalidParameter, "%s", err.Error())}
	}
	if storage.IsWriteConflictError(err) {
		return &refusal{http.StatusNotFound, types.NewErrorV1(types.CodeResourceConflict, "%s", err.Error())}
	}
	if storage.IsNotFound(err) {
		return &refusal{http.StatusNotFound, types.NewErrorV1(types.CodeResourceNotFound, "%s", err.Error())}
	}
	if topdown.IsError(err) {
		return &refusal{http.StatusInternalServerError, types.NewErrorV1(types.CodeInternal, types.MsgEvaluationError).WithError(err)}
	}
	f := fault.From(err)
	code := string(f.Code)
	switch f.Code.Status() {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity:
		code = types.CodeInvalidParameter
	case http.StatusUnauthorized, http.StatusForbidden:
		code = types.CodeUnauthorized
	case http.StatusNotFound:
		code = types.CodeResourceNotFound
	case http.StatusInternalServerError:
		code = types.CodeInternal
	}
	status := f.Code.Status()
	if status == http.StatusUnprocessableEntity {
		status = http.StatusBadRequest
	}
	message := f.Detail
	if f.Outcome == fault.Unknown {
		message += " (the outcome is unknown: the change may have happened)"
	}
	return &refusal{status, types.NewErrorV1(code, "%s", message)}
}

// fail answers with an error. When the answer has begun already, there is no
// honest way to end it but to break the connection off.
func (c *call) fail(err error) {
	r := refuse(err)
	if r.body.Code == types.CodeInternal && !topdown.IsError(err) {
		c.api.opt.Logger.Error("request failed", "request_id", c.id(), "method", c.r.Method, "path", c.r.URL.Path, "err", err)
	}
	if c.status != 0 {
		panic(http.ErrAbortHandler)
	}
	h := c.Header()
	h.Set("X-Request-Id", c.id())
	if r.status == http.StatusUnauthorized || r.status == http.StatusForbidden || r.status == http.StatusTooManyRequests || c.changes() {
		handler := "catchall"
		if c.route != nil {
			handler = c.route.handler
		}
		c.api.opt.Refused(c.r, c.who, handler, c.id(), fault.From(err))
	}
	switch r.status {
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", `Bearer realm="muster"`)
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		h.Set("Retry-After", door.RetryAfter(fault.From(err).RetryAfter))
	}
	if l := fault.From(err).Limit; l != nil {
		rates, rate := l.Fields()
		h.Set("RateLimit-Policy", rates)
		h.Set("RateLimit", rate)
	}
	c.send(r.status, append(r.body.Bytes(), '\n'))
}

// send writes a whole answer of JSON.
func (c *call) send(status int, body []byte) {
	h := c.w.Header()
	h["Content-Type"] = contentType
	c.header(h, 3, "Content-Length", strconv.Itoa(len(body)))
	c.WriteHeader(status)
	c.visit.Pause()        // the caller may take its time
	_, _ = c.w.Write(body) // the caller has gone; nobody is left to tell
}

var contentType = []string{"application/json"}

// ok answers 200 with v as OPA encodes it.
func (c *call) ok(v any, pretty bool) error {
	var b []byte
	var err error
	if pretty {
		b, err = json.MarshalIndent(v, "", "  ")
	} else {
		b, err = json.Marshal(v)
	}
	if err != nil {
		return err
	}
	c.send(http.StatusOK, append(b, '\n'))
	return nil
}
