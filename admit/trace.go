package admit

import (
	"strings"

	"github.com/muster-registry/muster/command"
)

// traceID gives the id of the trace that a request belongs to; "": of none.
func traceID(r *command.Request) string {
	h := r.GetHeaders()
	for i := 0; i+1 < len(h); i += 2 {
		if strings.EqualFold(h[i], "Traceparent") {
			return command.TraceID(h[i+1])
		}
	}
	return ""
}
