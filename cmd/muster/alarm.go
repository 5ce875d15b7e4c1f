package main

import (
	"fmt"
	"time"
)

// raised is an alarm in the cluster's status.
type raised struct {
	Alarm  string    `json:"alarm"`
	Node   string    `json:"node"`
	Detail string    `json:"detail"`
	Since  time.Time `json:"since"`
}

// tell writes the alarms down, beside the table.
func (a *app) tell(alarms []raised) {
	for _, r := range alarms {
		text := clean([]string{r.Alarm, r.Node, r.Detail})
		fmt.Fprintf(a.err, "alarm: %s on %s since %s: %s\n", text[0], text[1], r.Since.Local().Format(time.DateTime), text[2])
	}
	if len(alarms) > 0 {
		fmt.Fprintln(a.err, "what to do about each: docs/operations.md")
	}
}
