package main

import "testing"

// What a checked program answers does not steer the terminal of who looks.
func TestOutputsDoNotSteerTheTerminal(t *testing.T) {
	for in, want := range map[string]string{
		"HTTP 503\nno \x1b[31mdatabase\x1b[0m\r\n\x07": "HTTP 503 no [31mdatabase[0m",
		"": "", "ünï\u202ecode\u009b": "ünïcode",
	} {
		if got := printable(in); got != want {
			t.Errorf("%q prints as %q, not %q", in, got, want)
		}
	}
	if got := printable(string(make([]rune, 9000)) + "é"); got != "é" {
		t.Errorf("%q", got)
	}
}
