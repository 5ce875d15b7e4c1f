package main

import (
	"encoding/json"
	"encoding/xml"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares with a file in testdata; durations do not count.
func golden(t *testing.T, name, got string) {
	t.Helper()
	got = regexp.MustCompile(`time="[0-9.]+"|\([0-9.]+[mµn]?s\)|"took_ns": [0-9]+`).ReplaceAllString(got, "TIME")
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s: %s", name, d)
	}
}

func TestPolicyCheckPrints(t *testing.T) {
	for format, name := range map[string]string{"text": "check.txt", "json": "check.json", "sarif": "check.sarif"} {
		out, err, code := shell{}.do(t, "policy", "check", "testdata/policy", "--format", format)
		if code != exitError || !strings.HasPrefix(err, "error: invalid_policy: 1 of the revision's tests failed") {
			t.Errorf("%s: exit code %d: %s", format, code, err)
		}
		golden(t, name, out)
	}
}

func TestPolicyTestPrints(t *testing.T) {
	for name, args := range map[string]string{
		"test.txt": "", "test-verbose.txt": "-v", "test.json": "--format json", "test.xml": "--format junit",
	} {
		out, err, code := shell{}.do(t, append([]string{"policy", "test", "testdata/policy"}, strings.Fields(args)...)...)
		if code != exitError || err != "" {
			t.Errorf("%s: exit code %d: %s", name, code, err)
		}
		golden(t, name, out)
	}
}

func TestPolicyTestEnds(t *testing.T) {
	for args, want := range map[string]struct {
		code int
		says string
	}{
		"--run no_owner$":                   {exitDone, ""},
		"--run data.authz_test.test_no":     {exitDone, ""},
		"--run nobody":                      {exitError, "no test matches nobody"},
		"--run no_owner$ --min-coverage 99": {exitError, "99 % is the least"},
		"--run no_owner$ --min-coverage 10": {exitDone, ""},
		"--run (":                           {exitUsage, "--run"},
		"--format sarif":                    {exitUsage, "one of text, json, junit"},
		"testdata/nothing":                  {exitError, "no such file"},
	} {
		_, err, code := shell{}.do(t, append([]string{"policy", "test", "testdata/policy"}, strings.Fields(args)...)...)
		if code != want.code || !strings.Contains(err, want.says) {
			t.Errorf("%s: exit code %d: %s", args, code, err)
		}
	}
}

// What scanners and build servers insist on.
func TestReportsAreWhatMachinesRead(t *testing.T) {
	out, _, _ := shell{}.do(t, "policy", "check", "testdata/policy", "--format", "sarif")
	var log struct {
		Version string
		Runs    []struct {
			Tool struct {
				Driver struct {
					Name  string
					Rules []struct {
						ID                     string
						ShortDescription, Help struct{ Text string }
					}
				}
			}
			Results []struct {
				RuleID    string
				RuleIndex int
				Level     string
				Message   struct{ Text string }
				Locations []struct {
					PhysicalLocation struct {
						ArtifactLocation struct{ URI string }
						Region           *struct{ StartLine, StartColumn int }
					}
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &log); err != nil || log.Version != "2.1.0" || len(log.Runs) != 1 || len(log.Runs[0].Results) == 0 {
		t.Fatalf("%v: %s", err, out)
	}
	rules := log.Runs[0].Tool.Driver.Rules
	for _, r := range rules {
		if r.ShortDescription.Text == "" || r.Help.Text == "" {
			t.Errorf("rule %s has no help", r.ID)
		}
	}
	for _, r := range log.Runs[0].Results {
		if r.RuleIndex >= len(rules) || rules[r.RuleIndex].ID != r.RuleID || r.Message.Text == "" || !strings.Contains("note warning error", r.Level) {
			t.Errorf("%+v", r)
		}
		for _, l := range r.Locations {
			if _, err := os.Stat(l.PhysicalLocation.ArtifactLocation.URI); err != nil || l.PhysicalLocation.Region == nil || l.PhysicalLocation.Region.StartLine < 1 {
				t.Errorf("%+v: %v", l, err)
			}
		}
	}
	out, _, _ = shell{}.do(t, "policy", "test", "testdata/policy", "--format", "junit")
	var suites struct {
		XMLName  xml.Name `xml:"testsuites"`
		Tests    int      `xml:"tests,attr"`
		Failures int      `xml:"failures,attr"`
		Cases    []struct {
			Failure *struct{} `xml:"failure"`
		} `xml:"testsuite>testcase"`
	}
	if err := xml.Unmarshal([]byte(out), &suites); err != nil || suites.Tests != 3 || suites.Failures != 1 || len(suites.Cases) != 3 {
		t.Errorf("%v: %+v", err, suites)
	}
}

func TestPolicyEvalInFiles(t *testing.T) {
	s := shell{in: `{"action":"register","resource":{"payload":{"owner":""}}}`}
	for args, want := range map[string]struct {
		code int
		out  string
	}{
		"-i -":                                 {exitDone, `"owner is missing: set owner"`},
		"-i - --entrypoint api/registry/authz": {exitDone, `"allow": false`},
		"-i - data.api.registry.authz.allow":   {exitDone, `"value": false`},
		"data.published":                       {exitDone, `"value": "sent & <checked>"`},
		"-i - data.lib.tokens.claims":          {exitDone, "{}"},
		"--fail -i - data.lib.tokens.claims":   {exitError, "{}"},
		"--fail-defined data.published":        {exitError, "checked"},
		"--fail -i - input.action":             {exitDone, "register"},
		"x={1:2.5}":                            {exitDone, `"1": 2.5`},
		"-f raw data.published":                {exitDone, "sent & <checked>\n"},
		"-f values data.published;1":           {exitDone, "[\n  \"sent & <checked>\",\n  1\n]\n"},
		"-f pretty -I input.action":            {exitDone, "\"register\"\n"},
		"-f pretty data.nowhere":               {exitDone, "undefined\n"},
		"-f discard data.published":            {exitDone, ""},
		"-f bogus data.published":              {exitUsage, ""},
		"-f raw -I":                            {exitUsage, ""},
		"x:=":                                  {exitError, ""},
		"":                                     {exitUsage, ""},
		"--fail -i -":                          {exitUsage, ""},
		"--entrypoint a/b data.x":              {exitUsage, ""},
	} {
		out, err, code := s.do(t, append([]string{"policy", "eval", "-d", "testdata/policy"}, strings.Fields(args)...)...)
		if code != want.code || !strings.Contains(out, want.out) {
			t.Errorf("%s: exit code %d: %s %s", args, code, out, err)
		}
	}
	for _, args := range []string{"data.x", "-i - --explain", "-i - --fail"} {
		if _, _, code := s.do(t, append([]string{"policy", "eval"}, strings.Fields(args)...)...); code != exitUsage {
			t.Errorf("without files, %s: exit code %d", args, code)
		}
	}
	if out, err, code := s.do(t, "policy", "eval", "--bundle", "testdata/policy", "--format", "raw", "--stdin-input", "input.action"); code != exitDone || out != "register\n" {
		t.Errorf("exit code %d: %s %s", code, out, err)
	}
	out, steps, code := s.do(t, "policy", "eval", "-d", "testdata/policy", "-i", "-", "--explain")
	contains(t, out, `"allow": false`, "owner is missing")
	contains(t, steps, "authz.rego:12", "Enter", "Exit")
	if code != exitDone {
		t.Errorf("exit code %d", code)
	}
}

func TestPolicyBundlesAreChecked(t *testing.T) {
	bundle := filepath.Join(t.TempDir(), "policy.tar.gz")
	if err := os.WriteFile(bundle, []byte("no gzip"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err, code := (shell{}).do(t, "policy", "check", bundle); code != exitError || !strings.Contains(err, "application/gzip") {
		t.Errorf("exit code %d: %s", code, err)
	}
}
