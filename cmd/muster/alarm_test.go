package main

import (
	"bytes"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/muster-registry/muster/alarm"
)

// TestRunbooks: each alarm has a section that says what it means, what to look
// at and what to do, no section is about anything else, and its commands are
// ones that this program understands.
func TestRunbooks(t *testing.T) {
	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	intro, rest, _ := strings.Cut(string(page), "\n## ")
	var names []alarm.Name
	for _, section := range strings.Split(rest, "\n## ") {
		title, text, _ := strings.Cut(section, "\n")
		names = append(names, alarm.Name(title))
		contains(t, text, "**Means.**", "**Look at**", "**Do.**")
		contains(t, intro, "[`"+title+"`](#"+title+")")
	}
	for _, name := range alarm.Names() {
		if !slices.Contains(names, name) {
			t.Errorf("docs/operations.md has no section about %s", name)
		}
	}
	for _, name := range names {
		if !slices.Contains(alarm.Names(), name) {
			t.Errorf("docs/operations.md has a section about %s, which is no alarm", name)
		}
	}
	lines := regexp.MustCompile("(?m)^ {4}(muster .*)$").FindAllStringSubmatch(string(page), -1)
	if len(lines) < len(names) {
		t.Errorf("the sections have %d commands", len(lines))
	}
	for _, line := range lines {
		if err := understood(strings.Fields(strings.Split(line[1], " #")[0])[1:]); err != nil {
			t.Errorf("%s: %v", line[1], err)
		}
	}
}

// understood tells what is wrong with a command line, without running it.
func understood(args []string) error {
	a := &app{in: strings.NewReader(""), out: &bytes.Buffer{}, err: &bytes.Buffer{}, env: func(string) string { return "" }}
	c, rest, err := a.root().Find(args)
	if err != nil {
		return err
	}
	if c.HasSubCommands() && !strings.Contains(c.Use, " ") {
		return usage("%s only holds commands", c.CommandPath())
	}
	if err := c.ParseFlags(rest); err != nil {
		return err
	}
	return c.ValidateArgs(c.Flags().Args())
}
