package rpc

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/muster-registry/muster/api/rpc/musterv1"
	"github.com/muster-registry/muster/fault"
)

// code is the status code of a fault, by what a caller can do about it.
func code(c fault.Code) codes.Code {
	switch c {
	case fault.Compacted:
		return codes.OutOfRange
	case fault.MethodNotAllowed:
		return codes.Unimplemented
	}
	switch c.Status() {
	case 400, 415, 422:
		return codes.InvalidArgument
	case 401:
		return codes.Unauthenticated
	case 403:
		return codes.PermissionDenied
	case 404:
		return codes.NotFound
	case 409, 412, 508:
		return codes.FailedPrecondition
	case 413, 429, 507:
		return codes.ResourceExhausted
	case 503:
		return codes.Unavailable
	}
	return codes.Internal
}

// Status is a fault as gRPC tells it: the detail as the message, and the same
// stable code in a [musterv1.Problem] beside it. Where trying again makes
// sense, a RetryInfo says when.
func Status(f *fault.Error, requestID string) *status.Status {
	s := status.New(code(f.Code), f.Detail)
	details := []protoadapt.MessageV1{protoadapt.MessageV1Of(Problem(f, requestID))}
	if s := f.Code.Status(); (s == 429 || s == 503 || f.RetryAfter > 0) && f.Outcome == fault.Definite {
		details = append(details, protoadapt.MessageV1Of(&errdetails.RetryInfo{RetryDelay: durationpb.New(max(time.Second, f.RetryAfter))}))
	}
	with, err := s.WithDetails(details...)
	if err != nil { // not for messages that can be marshalled
		return s
	}
	return with
}

// Problem is a fault as a message.
func Problem(f *fault.Error, requestID string) *musterv1.Problem {
	p := &musterv1.Problem{
		Code: string(f.Code), Detail: f.Detail, RequestId: requestID, OutcomeUnknown: f.Outcome == fault.Unknown,
		Reasons: f.Reasons, DecisionId: f.DecisionID, PolicyRevision: f.PolicyRevision, Current: f.Current,
	}
	for _, e := range f.Fields {
		p.Errors = append(p.Errors, &musterv1.Problem_Field{Pointer: e.Pointer, Message: e.Message})
	}
	return p
}

// known makes a fault of what the libraries around a handler say.
func known(err error) error {
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return err
	}
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, io.EOF), status.Code(err) == codes.Canceled:
		return fault.Wrap(fault.NotReady, err, "the request was cancelled; try again, or another node")
	}
	if s, ok := status.FromError(err); ok {
		switch s.Code() {
		case codes.Unimplemented:
			return fault.Wrap(fault.MethodNotAllowed, err, "there is no such method")
		case codes.NotFound:
			return fault.Wrap(fault.NotFound, err, "%s", s.Message())
		case codes.InvalidArgument:
			return fault.Wrap(fault.BadRequest, err, "%s", s.Message())
		case codes.ResourceExhausted:
			return fault.Wrap(fault.TooLarge, err, "%s", s.Message())
		case codes.Unavailable:
			return fault.Wrap(fault.NotReady, err, "%s", s.Message())
		}
	}
	return err
}
