package main

import (
	"encoding/xml"
	"fmt"
	"maps"
	"net/url"
	"path/filepath"
	"slices"

	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/rego"
)

// The types below are the parts of SARIF 2.1.0 (OASIS) that code scanners read.
type (
	sarifLog struct {
		Schema  string     `json:"$schema"`
		Version string     `json:"version"`
		Runs    []sarifRun `json:"runs"`
	}
	sarifRun struct {
		Tool       sarifTool     `json:"tool"`
		ColumnKind string        `json:"columnKind"`
		Results    []sarifResult `json:"results"`
	}
	sarifTool struct {
		Driver sarifDriver `json:"driver"`
	}
	sarifDriver struct {
		Name    string      `json:"name"`
		Version string      `json:"version"`
		Rules   []sarifRule `json:"rules"`
	}
	sarifRule struct {
		ID      string        `json:"id"`
		Short   sarifText     `json:"shortDescription"`
		Help    sarifText     `json:"help"`
		Default sarifDefaults `json:"defaultConfiguration"`
	}
	sarifDefaults struct {
		Level string `json:"level"`
	}
	sarifText struct {
		Text string `json:"text"`
	}
	sarifResult struct {
		RuleID    string          `json:"ruleId"`
		RuleIndex int             `json:"ruleIndex"`
		Level     string          `json:"level"`
		Message   sarifText       `json:"message"`
		Locations []sarifLocation `json:"locations,omitempty"`
	}
	sarifLocation struct {
		Physical sarifPhysical `json:"physicalLocation"`
	}
	sarifPhysical struct {
		Artifact sarifArtifact `json:"artifactLocation"`
		Region   *sarifRegion  `json:"region,omitempty"`
	}
	sarifArtifact struct {
		URI string `json:"uri"`
	}
	sarifRegion struct {
		StartLine   int `json:"startLine"`
		StartColumn int `json:"startColumn,omitzero"`
	}
)

// sarifLevels are SARIF's words for severities.
var sarifLevels = map[string]string{policy.SeverityInfo: "note", policy.SeverityWarning: "warning", policy.SeverityError: "error"}

// sarif writes findings for code scanners.
func sarif(findings []policy.Finding) sarifLog {
	driver := sarifDriver{Name: "muster", Version: version, Rules: []sarifRule{}}
	index := map[string]int{}
	for _, r := range rego.Rules() {
		if !slices.ContainsFunc(findings, func(f policy.Finding) bool { return f.Rule == r.ID }) {
			continue
		}
		help := r.Summary
		if r.Remedy != "" {
			help += " Remedy: " + r.Remedy + "."
		}
		driver.Rules = append(driver.Rules, sarifRule{r.ID, sarifText{r.Summary}, sarifText{help}, sarifDefaults{sarifLevels[r.Severity]}})
		index[r.ID] = len(driver.Rules) - 1
	}
	run := sarifRun{Tool: sarifTool{driver}, ColumnKind: "unicodeCodePoints", Results: []sarifResult{}}
	for _, f := range findings {
		message := f.Message
		if f.Remedy != "" {
			message += ": " + f.Remedy
		}
		r := sarifResult{RuleID: f.Rule, RuleIndex: index[f.Rule], Level: sarifLevels[f.Severity], Message: sarifText{message}}
		if f.File != "" {
			at := sarifPhysical{Artifact: sarifArtifact{fileURI(f.File)}}
			if f.Row > 0 {
				at.Region = &sarifRegion{f.Row, f.Col}
			}
			r.Locations = []sarifLocation{{at}}
		}
		run.Results = append(run.Results, r)
	}
	return sarifLog{"https://json.schemastore.org/sarif-2.1.0.json", "2.1.0", []sarifRun{run}}
}

func fileURI(name string) string {
	u := url.URL{Path: filepath.ToSlash(name)}
	if filepath.IsAbs(name) {
		u.Scheme = "file"
	}
	return u.String()
}

// The types below are JUnit's XML, as far as build servers agree on it.
type (
	junitSuites struct {
		XMLName  xml.Name     `xml:"testsuites"`
		Tests    int          `xml:"tests,attr"`
		Failures int          `xml:"failures,attr"`
		Skipped  int          `xml:"skipped,attr"`
		Time     string       `xml:"time,attr"`
		Suites   []junitSuite `xml:"testsuite"`
	}
	junitSuite struct {
		Name     string      `xml:"name,attr"`
		Tests    int         `xml:"tests,attr"`
		Failures int         `xml:"failures,attr"`
		Skipped  int         `xml:"skipped,attr"`
		Time     string      `xml:"time,attr"`
		Cases    []junitCase `xml:"testcase"`
		took     float64
	}
	junitCase struct {
		Class   string        `xml:"classname,attr"`
		Name    string        `xml:"name,attr"`
		File    string        `xml:"file,attr"`
		Line    int           `xml:"line,attr"`
		Time    string        `xml:"time,attr"`
		Failure *junitFailure `xml:"failure"`
		Skipped *struct{}     `xml:"skipped"`
		Output  string        `xml:"system-out,omitempty"`
	}
	junitFailure struct {
		Message string `xml:"message,attr"`
		Text    string `xml:",chardata"`
	}
)

// junit writes a run of tests for build servers: one suite for each package.
func junit(run *rego.TestRun) junitSuites {
	seconds := func(s float64) string { return fmt.Sprintf("%.6f", s) }
	suites := map[string]*junitSuite{}
	all := junitSuites{Tests: len(run.Cases), Failures: run.Tests.Failed}
	total := 0.0
	for _, t := range run.Cases {
		s := suites[t.Package]
		if s == nil {
			s = &junitSuite{Name: t.Package}
			suites[t.Package] = s
		}
		c := junitCase{Class: t.Package, Name: t.Name, File: t.File, Line: t.Row, Time: seconds(t.Took.Seconds()), Output: t.Output}
		s.Tests++
		switch {
		case t.Failed:
			s.Failures++
			c.Failure = &junitFailure{t.Message, fmt.Sprintf("%s:%d: %s", t.File, t.Row, t.Message)}
		case t.Skipped:
			s.Skipped++
			all.Skipped++
			c.Skipped = &struct{}{}
		}
		s.took += t.Took.Seconds()
		total += t.Took.Seconds()
		s.Time = seconds(s.took)
		s.Cases = append(s.Cases, c)
	}
	all.Time = seconds(total)
	for _, name := range sortedKeys(suites) {
		all.Suites = append(all.Suites, *suites[name])
	}
	return all
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

type testResult struct {
	Package string `json:"package"`
	Name    string `json:"name"`
	File    string `json:"file"`
	Row     int    `json:"row"`
	Result  string `json:"result"` // pass, fail, skip
	Message string `json:"message,omitempty"`
	Output  string `json:"output,omitempty"`
	TookNS  int64  `json:"took_ns"`
}

func testJSON(run *rego.TestRun) any {
	results := []testResult{}
	for _, t := range run.Cases {
		r := testResult{t.Package, t.Name, t.File, t.Row, "pass", t.Message, t.Output, t.Took.Nanoseconds()}
		if t.Failed {
			r.Result = "fail"
		} else if t.Skipped {
			r.Result = "skip"
		}
		results = append(results, r)
	}
	return struct {
		Tests    policy.Tests     `json:"tests"`
		Coverage *policy.Coverage `json:"coverage,omitempty"`
		Results  []testResult     `json:"results"`
	}{run.Tests, run.Coverage, results}
}
