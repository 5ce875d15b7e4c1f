package provider

import (
	"math"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/fault"
)

const (
	maxSubject = 255 // bytes; OpenID Connect has the same for sub
	maxDepth   = 32  // of nested claims
)

// claims are a token's JSON object.
type claims map[string]any

// decodeClaims is strict: the same name twice, or anything behind the object,
// is refused, since what it means would depend on who reads it.
func decodeClaims(payload []byte) (claims, error) {
	var c claims
	if err := json.Unmarshal(payload, &c); err != nil || c == nil {
		return nil, fault.Wrap(fault.Unauthenticated, err, "the token's claims are not one JSON object with each name once")
	}
	if deeper(map[string]any(c), maxDepth) {
		return nil, refused("the token's claims are nested deeper than %d levels", maxDepth)
	}
	return c, nil
}

func deeper(v any, than int) bool {
	switch v := v.(type) {
	case map[string]any:
		for _, e := range v {
			if than == 0 || deeper(e, than-1) {
				return true
			}
		}
	case []any:
		return than == 0 || slices.ContainsFunc(v, func(e any) bool { return deeper(e, than-1) })
	}
	return false
}

// text is the claim as a string; "" where it is none.
func (c claims) text(name string) string {
	s, _ := c[name].(string)
	return s
}

// time reads a NumericDate (RFC 7519).
func (c claims) time(name string) (time.Time, bool) {
	f, ok := c[name].(float64)
	if !ok || f <= 0 || f > 1<<40 {
		return time.Time{}, false
	}
	whole, part := math.Modf(f)
	return time.Unix(int64(whole), int64(part*1e9)).UTC(), true
}

// contains reports whether the claim, a string or a list of them, has one of
// the values.
func (c claims) contains(name string, values []string) bool {
	switch v := c[name].(type) {
	case string:
		return slices.Contains(values, v)
	case []any:
		return slices.ContainsFunc(v, func(e any) bool {
			s, ok := e.(string)
			return ok && slices.Contains(values, s)
		})
	}
	return false
}

func printable(s string) bool {
	return s != "" && len(s) <= maxSubject && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsGraphic(r) })
}
