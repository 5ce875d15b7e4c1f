package rego

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/muster-registry/muster/policy"
)

// example reads a folder of examples/policies, without the folders in it.
func example(t testing.TB, folder string) *policy.Revision {
	t.Helper()
	dir := filepath.Join("..", "..", "examples", "policies", folder)
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	c := &policy.Content{Modules: map[string]string{}}
	for _, f := range files {
		switch filepath.Ext(f.Name()) {
		case ".rego":
			c.Modules[f.Name()] = read(t, dir, f.Name())
		case ".json":
			c.Data = []byte(read(t, dir, f.Name()))
		}
	}
	return stage(t, c)
}

func TestExamplesPassTheirTests(t *testing.T) {
	for folder, tests := range map[string]int{"": 10, "department": 3, "department-jwt": 6, "api-admin": 5, "definition-level": 7} {
		rev := example(t, folder)
		report, err := engine(t).Check(t.Context(), &rev.Content)
		if err != nil || report.Tests != (policy.Tests{Passed: tests}) {
			t.Errorf("%q: %+v, %v", folder, report, err)
		}
		for _, f := range report.Findings {
			if f.Severity != "info" {
				t.Errorf("%q: %+v", folder, f)
			}
		}
	}
}

func TestDemoPolicyDecides(t *testing.T) {
	e := engine(t)
	rev := example(t, "")
	publisher := policy.Principal{Kind: "token", Roles: []string{"publisher"}}
	service := func(payload string) policy.Resource {
		return policy.Resource{Kind: "service", Namespace: "default", Name: "cart", Payload: []byte(payload)}
	}
	version := func(metadata, url string) policy.Resource {
		return policy.Resource{Kind: "version", Namespace: "default", Name: "v1", Metadata: []byte(metadata), Payload: []byte(`{"servers":[{"url":"` + url + `"}]}`)}
	}
	for name, c := range map[string]struct {
		in     policy.Input
		reason string
	}{
		"with an owner":       {policy.Input{Action: policy.Register, Principal: publisher, Resource: service(`{"owner":"shop"}`)}, ""},
		"without an owner":    {policy.Input{Action: policy.Register, Principal: publisher, Resource: service(`{"owner":""}`)}, "owner is missing: set owner"},
		"updated without one": {policy.Input{Action: policy.Update, Principal: publisher, Resource: service(`{}`)}, "owner is missing"},
		"by nobody":           {policy.Input{Action: policy.Register, Resource: service(`{"owner":"shop"}`)}, "allow is false"},
		"https":               {policy.Input{Action: policy.Register, Principal: publisher, Resource: version(`{}`, "https://a.example")}, ""},
		"http":                {policy.Input{Action: policy.Register, Principal: publisher, Resource: version(`{}`, "HTTP://a.example")}, "not encrypted: use https"},
		"http, as agreed":     {policy.Input{Action: policy.Register, Principal: publisher, Resource: version(`{"allow_plain_http":true}`, "http://a.example")}, ""},
		"a deletion":          {policy.Input{Action: policy.Delete, Principal: publisher, Resource: policy.Resource{Kind: "service"}}, ""},
		"a look-up":           {policy.Input{Action: policy.Lookup, Principal: publisher}, ""},
		"a stranger":          {policy.Input{Action: policy.Lookup, Principal: policy.Principal{Kind: "anonymous"}}, "allow is false"},
	} {
		d := e.Decide(t.Context(), rev, &c.in)
		if got := strings.Join(d.Reasons, "|"); d.Allow != (c.reason == "") || !strings.Contains(got, c.reason) || d.Default {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

func TestDepartmentExamplesDecide(t *testing.T) {
	e := engine(t)
	plain, withJWT := example(t, "department"), example(t, "department-jwt")
	in := policy.Input{
		Action: policy.Lookup, Time: time.Unix(1700000000, 0), Protocol: "https",
		Headers: map[string]string{"X-Internal-Dept": "Engineering"}, Principal: policy.Principal{Kind: "token"},
	}
	if d := e.Decide(t.Context(), plain, &in); !d.Allow {
		t.Errorf("%+v", d)
	}
	in.Token = jwt(map[string]any{"iss": "https://login.example", "aud": "muster", "exp": 1800000000})
	if d := e.Decide(t.Context(), withJWT, &in); d.Allow {
		t.Errorf("a token that is not signed is believed: %+v", d)
	}
}
