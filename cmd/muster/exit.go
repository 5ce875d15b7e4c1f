package main

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/muster-registry/muster/fault"
)

// The exit codes of the contract.
const (
	exitDone        = 0
	exitError       = 1
	exitUsage       = 2
	exitDenied      = 3
	exitNotFound    = 4
	exitConflict    = 5
	exitUnavailable = 6
)

// usageError is a command line that makes no sense.
type usageError struct{ error }

// exitError is an exit code without a message: the output said it all.
type silent int

func (silent) Error() string { return "" }

func usage(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func exitCode(err error) int {
	if err == nil {
		return exitDone
	}
	if s, ok := errors.AsType[silent](err); ok {
		return int(s)
	}
	if _, ok := errors.AsType[usageError](err); ok {
		return exitUsage
	}
	f, ok := errors.AsType[*fault.Error](err)
	if !ok {
		return exitError
	}
	switch f.Code.Status() {
	case http.StatusUnauthorized, http.StatusForbidden:
		return exitDenied
	case http.StatusNotFound:
		return exitNotFound
	case http.StatusConflict, http.StatusPreconditionFailed:
		return exitConflict
	case http.StatusServiceUnavailable, http.StatusTooManyRequests, http.StatusInsufficientStorage:
		return exitUnavailable
	}
	return exitError
}

// explain writes an error to standard error with all that it knows.
func (a *app) explain(err error) {
	if err == nil {
		return
	}
	if _, ok := errors.AsType[silent](err); ok {
		return
	}
	f, ok := errors.AsType[*fault.Error](err)
	if ok && len(f.Places) > 0 {
		fmt.Fprintf(a.err, "error: %s: %s\n", f.Code, f.Detail) // its cause says the same as its places
	} else {
		fmt.Fprintln(a.err, "error: "+err.Error())
	}
	if !ok {
		if _, ok := errors.AsType[usageError](err); ok {
			a.usage()
		}
		return
	}
	for _, r := range f.Reasons {
		fmt.Fprintln(a.err, "  reason: "+r)
	}
	for _, x := range f.Fields {
		if f.Code != fault.InvalidField || len(f.Fields) > 1 {
			fmt.Fprintf(a.err, "  %s: %s\n", x.Pointer, x.Message)
		}
	}
	for _, p := range f.Places {
		switch {
		case len(f.Places) == 1 && p.Row == 0 && strings.HasSuffix(f.Detail, p.Message): // it has been said
		case p.Row == 0:
			fmt.Fprintf(a.err, "  %s: %s\n", p.File, p.Message)
		default:
			fmt.Fprintf(a.err, "  %s:%d:%d: %s\n", p.File, p.Row, p.Col, p.Message)
		}
	}
	if f.DecisionID != "" {
		fmt.Fprintf(a.err, "  decision %s, by policy revision %d; muster policy explain tells which rule\n", f.DecisionID, f.PolicyRevision)
	}
	if f.Code == fault.RevisionMismatch && f.Current > 0 {
		fmt.Fprintf(a.err, "  the record's revision is %d\n", f.Current)
	}
	if f.Outcome == fault.Unknown {
		fmt.Fprintln(a.err, "  the outcome is unknown: the change may have been made")
	}
}

// usage tells how the command that ran is meant to be called.
func (a *app) usage() {
	switch {
	case a.command == nil || !a.command.HasParent():
		fmt.Fprintln(a.err, "help: muster --help, or muster COMMAND --help")
		return
	case !a.command.HasSubCommands() || strings.Contains(a.command.Use, " "): // the others only hold commands
		fmt.Fprintln(a.err, "usage: "+a.command.UseLine())
	}
	fmt.Fprintln(a.err, "help: "+a.command.CommandPath()+" --help")
}
