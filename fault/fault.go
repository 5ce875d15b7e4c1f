// Package fault owns the errors muster shows to callers: one stable code each,
// what to do about it, and an honest word on the outcome. It knows no other
// room; every other room may use it. It refuses to carry causes that a caller
// may not see: a cause stays on this node (see [Error.Unwrap]) and never
// crosses the wire.
package fault

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// Code is the stable name of an error, as listed in the public contract.
// Programs may compare it; it never changes its meaning.
type Code string

// The codes, grouped by the HTTP status they are answered with.
const (
	BadRequest   Code = "bad_request"
	InvalidField Code = "invalid_field"
	BadPath      Code = "bad_path"

	Unauthenticated Code = "unauthenticated"
	PolicyDenied    Code = "policy_denied"
	Forbidden       Code = "forbidden"

	ServiceNotFound  Code = "service_not_found"
	VersionNotFound  Code = "version_not_found"
	InstanceNotFound Code = "instance_not_found"
	NotFound         Code = "not_found"
	MethodNotAllowed Code = "method_not_allowed"

	Conflict               Code = "conflict"
	IncompatibleDefinition Code = "incompatible_definition"
	RevisionMismatch       Code = "revision_mismatch"
	Compacted              Code = "compacted"

	TooLarge             Code = "too_large"
	UnsupportedMediaType Code = "unsupported_media_type"
	InvalidDefinition    Code = "invalid_definition"
	InvalidPolicy        Code = "invalid_policy"
	InvalidSnapshot      Code = "invalid_snapshot"
	ForbiddenAddress     Code = "forbidden_address"
	RateLimited          Code = "rate_limited"
	DiskFull             Code = "disk_full"

	Internal                    Code = "internal"
	LoopDetected                Code = "loop_detected"
	NoLeader                    Code = "no_leader"
	NotReady                    Code = "not_ready"
	TooStale                    Code = "too_stale"
	PolicyUnavailable           Code = "policy_unavailable"
	IdentityProviderUnavailable Code = "identity_provider_unavailable"
)

var statuses = map[Code]int{
	BadRequest: http.StatusBadRequest, InvalidField: http.StatusBadRequest, BadPath: http.StatusBadRequest,
	Unauthenticated: http.StatusUnauthorized, PolicyDenied: http.StatusForbidden, Forbidden: http.StatusForbidden,
	ServiceNotFound: http.StatusNotFound, VersionNotFound: http.StatusNotFound, InstanceNotFound: http.StatusNotFound,
	NotFound: http.StatusNotFound, MethodNotAllowed: http.StatusMethodNotAllowed,
	Conflict: http.StatusConflict, IncompatibleDefinition: http.StatusConflict,
	RevisionMismatch: http.StatusPreconditionFailed, Compacted: http.StatusGone,
	TooLarge: http.StatusRequestEntityTooLarge, UnsupportedMediaType: http.StatusUnsupportedMediaType,
	InvalidDefinition: http.StatusUnprocessableEntity, InvalidPolicy: http.StatusUnprocessableEntity,
	InvalidSnapshot: http.StatusUnprocessableEntity, ForbiddenAddress: http.StatusUnprocessableEntity, RateLimited: http.StatusTooManyRequests, DiskFull: http.StatusInsufficientStorage,
	Internal: http.StatusInternalServerError, LoopDetected: http.StatusLoopDetected,
	NoLeader: http.StatusServiceUnavailable, NotReady: http.StatusServiceUnavailable, TooStale: http.StatusServiceUnavailable,
	PolicyUnavailable: http.StatusServiceUnavailable, IdentityProviderUnavailable: http.StatusServiceUnavailable,
}

// Status returns the HTTP status the code is answered with; 500 for a code
// that is not in the list.
func (c Code) Status() int {
	if s, ok := statuses[c]; ok {
		return s
	}
	return http.StatusInternalServerError
}

// Outcome says what is known about a change that failed.
type Outcome uint8

const (
	// Definite: nothing was changed and nothing will be.
	Definite Outcome = iota
	// Unknown: the change may have happened, or may still happen.
	Unknown
)

// Field is one mistake in a request body, at an RFC 6901 JSON pointer.
type Field struct {
	Pointer string `json:"pointer"`
	Message string `json:"message"`
}

// Place is one mistake in a file, such as a policy module. Row and Col count
// from 1; 0 means unknown.
type Place struct {
	File    string `json:"file,omitempty"`
	Row     int    `json:"row,omitempty"`
	Col     int    `json:"col,omitempty"`
	Message string `json:"message"`
}

// Error is an error a caller may see. The zero Outcome is Definite. Which of
// the optional fields are set depends on the code; see the public contract.
// It is treated as immutable once returned.
type Error struct {
	Code       Code
	Detail     string // one sentence: what is wrong and what to do
	Outcome    Outcome
	RetryAfter time.Duration // 0: no advice (edges answer 1 s for 503 and 429)

	Fields []Field // invalid_field, invalid_definition, forbidden_address
	Places []Place // invalid_policy

	Reasons        []string // policy_denied
	DecisionID     string   // policy_denied
	PolicyRevision uint64   // policy_denied

	Current uint64 // revision_mismatch: the record's revision, 0 when it does not exist

	Limit *Limit // rate_limited, where it was a limit that protects this node; not sent between nodes

	cause error
}

// Limit is what a rate_limited error is about, in the terms of
// draft-ietf-httpapi-ratelimit-headers-10.
type Limit struct {
	Name   string
	Quota  int64
	Window time.Duration // in which the quota comes in; 0: the limit is about what there is at one time
	Unit   string        // of the quota; "": requests
	Reset  time.Duration // after which there may be room again
}

// Fields gives the values of the HTTP fields RateLimit-Policy and RateLimit.
// Nothing is left, or there would be no error.
func (l *Limit) Fields() (policy, limit string) {
	seconds := func(d time.Duration) string { return strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10) }
	policy = `"` + l.Name + `";q=` + strconv.FormatInt(l.Quota, 10)
	if l.Unit != "" {
		policy += `;qu="` + l.Unit + `"`
	}
	if l.Window > 0 {
		policy += ";w=" + seconds(l.Window)
	}
	return policy, `"` + l.Name + `";r=0;t=` + seconds(l.Reset)
}

// New makes a definite error. The detail is formatted like fmt.Sprintf.
func New(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Detail: fmt.Sprintf(format, args...)}
}

// Wrap is New with a cause that is kept for the node's own log only.
func Wrap(code Code, cause error, format string, args ...any) *Error {
	return &Error{Code: code, Detail: fmt.Sprintf(format, args...), cause: cause}
}

// Invalid is an invalid_field error about one place in a body.
func Invalid(pointer, format string, args ...any) *Error {
	m := fmt.Sprintf(format, args...)
	return &Error{Code: InvalidField, Detail: pointer + ": " + m, Fields: []Field{{Pointer: pointer, Message: m}}}
}

// Lost is an error with an unknown outcome: the change was handed on, and
// whether it happened cannot be told.
func Lost(code Code, cause error, format string, args ...any) *Error {
	e := Wrap(code, cause, format, args...)
	e.Outcome = Unknown
	return e
}

// Error implements error with the code and the detail.
func (e *Error) Error() string {
	if e.cause != nil {
		return string(e.Code) + ": " + e.Detail + ": " + e.cause.Error()
	}
	return string(e.Code) + ": " + e.Detail
}

// Unwrap gives the cause, if one was kept.
func (e *Error) Unwrap() error { return e.cause }

// From returns err as an *Error. What is not one already becomes internal,
// definite, with a detail that reveals nothing; the cause stays for the log.
func From(err error) *Error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return Wrap(Internal, err, "the node failed to handle the request; its log says why")
}

// Is reports whether err carries the code.
func Is(err error, code Code) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Code == code
}
