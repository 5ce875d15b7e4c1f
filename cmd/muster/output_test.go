package main

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/muster-registry/muster/fault"
)

func TestForms(t *testing.T) {
	for form, want := range map[string]string{
		"":     "NAME   PORT\ncart   -\nx�y    80\n",
		"wide": "NAME   PORT   EXTRA\ncart   -      e\nx�y    80     -\n",
		"name": "service/cart\nservice/x\n",
		"json": "{\n  \"b\": \"1\",\n  \"a\": [\n    true,\n    1.50\n  ]\n}\n",
		"yaml": "b: \"1\"\na:\n  - true\n  - 1.50\n",
	} {
		var out bytes.Buffer
		a := &app{out: &out, output: form}
		var err error
		if form == "json" || form == "yaml" {
			err = a.raw([]byte(`{"b":"1","a":[true,1.50]}`))
		} else {
			err = a.show(nil, func() table {
				return table{
					head: []string{"NAME", "PORT", "EXTRA"}, wideFrom: 2, names: []string{"service/cart", "service/x"},
					rows: [][]string{{"cart", "", "e"}, {"x\x1by", "80", ""}},
				}
			})
		}
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, out.String()); d != "" {
			t.Errorf("-o %q: %s", form, d)
		}
	}
}

func TestExitCodes(t *testing.T) {
	for code, errs := range map[int][]error{
		exitDone:        {nil},
		exitError:       {errors.New("x"), fault.New(fault.InvalidPolicy, "x"), fault.New(fault.BadRequest, "x"), fault.New(fault.Internal, "x"), silent(1)},
		exitUsage:       {usage("x")},
		exitDenied:      {fault.New(fault.PolicyDenied, "x"), fault.New(fault.Forbidden, "x"), fault.New(fault.Unauthenticated, "x")},
		exitNotFound:    {fault.New(fault.ServiceNotFound, "x"), fault.New(fault.NotFound, "x")},
		exitConflict:    {fault.New(fault.Conflict, "x"), fault.New(fault.RevisionMismatch, "x")},
		exitUnavailable: {fault.New(fault.NoLeader, "x"), fault.New(fault.NotReady, "x"), fault.New(fault.TooStale, "x"), errors.Join(fault.New(fault.RateLimited, "x"), nil)},
	} {
		for _, err := range errs {
			if got := exitCode(err); got != code {
				t.Errorf("%v: exit code %d, want %d", err, got, code)
			}
		}
	}
}

func TestErrorsSayAllTheyKnow(t *testing.T) {
	repeated := fault.Wrap(fault.InvalidPolicy, errors.New("1 error occurred: a.rego:3: unsafe"), "no")
	repeated.Places = []fault.Place{{File: "a.rego", Row: 3, Col: 5, Message: "unsafe"}}
	for _, c := range []struct {
		err  error
		want string
	}{
		{&fault.Error{Code: fault.PolicyDenied, Detail: "no", Reasons: []string{"owner is missing"}, DecisionID: "d1", PolicyRevision: 7},
			"error: policy_denied: no\n  reason: owner is missing\n  decision d1, by policy revision 7; muster policy explain tells which rule\n"},
		{&fault.Error{Code: fault.InvalidPolicy, Detail: "no", Places: []fault.Place{{File: "a.rego", Row: 3, Col: 5, Message: "unsafe"}}},
			"error: invalid_policy: no\n  a.rego:3:5: unsafe\n"},
		{repeated, "error: invalid_policy: no\n  a.rego:3:5: unsafe\n"},
		{&fault.Error{Code: fault.InvalidPolicy, Detail: "a.rego: was added", Places: []fault.Place{{File: "a.rego", Message: "was added"}}},
			"error: invalid_policy: a.rego: was added\n"},
		{&fault.Error{Code: fault.InvalidPolicy, Detail: "no", Places: []fault.Place{{File: "a.rego", Message: "is not UTF-8"}}},
			"error: invalid_policy: no\n  a.rego: is not UTF-8\n"},
		{&fault.Error{Code: fault.NoLeader, Detail: "lost", Outcome: fault.Unknown},
			"error: no_leader: lost\n  the outcome is unknown: the change may have been made\n"},
		{&fault.Error{Code: fault.RevisionMismatch, Detail: "changed", Current: 9}, "error: revision_mismatch: changed\n  the record's revision is 9\n"},
		{fault.Invalid("/port", "too high"), "error: invalid_field: /port: too high\n"},
		{usage("say what"), "error: say what\nhelp: muster --help, or muster COMMAND --help\n"},
		{silent(1), ""},
	} {
		var out bytes.Buffer
		(&app{err: &out}).explain(c.err)
		if d := cmp.Diff(c.want, out.String()); d != "" {
			t.Error(d)
		}
	}
}
