package command

import "strings"

// TraceID takes the id of the trace out of a traceparent (W3C Trace Context);
// "" where it is not well formed.
func TraceID(traceparent string) string {
	if traceparent == "" {
		return ""
	}
	parts := strings.Split(traceparent, "-")
	if len(parts) < 4 || len(parts[0]) != 2 || len(parts[1]) != 32 {
		return ""
	}
	if id := parts[1]; strings.Trim(id, "0123456789abcdef") == "" && strings.Trim(id, "0") != "" {
		return id
	}
	return ""
}
