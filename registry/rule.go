package registry

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/muster-registry/muster/fault"
)

// The limits of what a record may hold; lengths are in bytes.
const (
	maxName        = 63
	maxText        = 253
	maxDescription = 4096
	maxTags        = 64
	maxTag         = 128
	maxKeys        = 64
	maxMetadata    = 64 << 10
	minTTL         = Duration(time.Second)
	maxTTL         = Duration(24 * time.Hour)
)

// ValidName accepts lower-case DNS labels of at most 63 bytes: the names of
// namespaces, services and instances. The error is invalid_field at /name.
func ValidName(s string) error {
	if m := nameMistake(s); m != "" {
		return fault.Invalid("/name", "%s", m)
	}
	return nil
}

// ValidVersion accepts what ValidName does, and such labels joined by dots, of
// at most 63 bytes in all. The error is invalid_field at /version.
func ValidVersion(s string) error {
	if m := versionMistake(s); m != "" {
		return fault.Invalid("/version", "%s", m)
	}
	return nil
}

func nameMistake(s string) string {
	switch {
	case s == "":
		return "is required"
	case len(s) > maxName:
		return "must be at most 63 characters"
	case !label(s):
		return "must be lower-case letters, digits and inner hyphens only"
	}
	return ""
}

func versionMistake(s string) string {
	switch {
	case s == "":
		return "is required"
	case len(s) > maxName:
		return "must be at most 63 characters"
	}
	for part := range strings.SplitSeq(s, ".") {
		if !label(part) {
			return "must be lower-case letters, digits and inner hyphens, joined by single dots"
		}
	}
	return ""
}

func label(s string) bool {
	if s == "" || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// name checks a name from the path, and the one in the body against it.
func (f *fields) name(pointer, want, mistake string, got *string) {
	if mistake != "" {
		f.add(pointer, mistake)
	} else if got != nil && *got != want {
		f.add(pointer, "must be "+strconv.Quote(want)+" as in the path")
	}
}

// text checks one line of text.
func (f *fields) text(pointer, s string, limit int) {
	if len(s) > limit {
		f.add(pointer, fmt.Sprintf("must be at most %d bytes", limit))
	}
	if strings.ContainsFunc(s, control) {
		f.add(pointer, "must not contain control characters")
	}
}

func control(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 }

func (f *fields) description(s string) {
	if len(s) > maxDescription {
		f.add("/description", fmt.Sprintf("must be at most %d bytes", maxDescription))
	}
	if strings.ContainsFunc(s, func(r rune) bool { return control(r) && r != '\n' && r != '\t' && r != '\r' }) {
		f.add("/description", "must not contain control characters")
	}
}

func (f *fields) tags(tags []string) {
	if len(tags) > maxTags {
		f.add("/tags", fmt.Sprintf("must be at most %d tags", maxTags))
		return
	}
	for i, t := range tags {
		p := "/tags/" + strconv.Itoa(i)
		if t == "" {
			f.add(p, "must not be empty")
		}
		f.text(p, t, maxTag)
	}
}

func (f *fields) metadata(m map[string]string) {
	if len(m) > maxKeys {
		f.add("/metadata", fmt.Sprintf("must have at most %d keys", maxKeys))
		return
	}
	size := 0
	for _, k := range sortedKeys(m) {
		p := "/metadata/" + escape(k)
		size += len(k) + len(m[k])
		switch {
		case k == "":
			f.add(p, "must have a key that is not empty")
		case len(k) > maxTag:
			f.add("/metadata", fmt.Sprintf("must have keys of at most %d bytes", maxTag))
		default:
			if strings.ContainsFunc(k, control) || strings.ContainsRune(m[k], 0) {
				f.add(p, "must not contain control characters in the key, or NUL in the value")
			}
		}
	}
	if size > maxMetadata {
		f.add("/metadata", "must be at most 64 KiB")
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// escape makes one token of a JSON pointer.
func escape(token string) string {
	return strings.ReplaceAll(strings.ReplaceAll(token, "~", "~0"), "/", "~1")
}

func (f *fields) among(pointer, s string, allowed ...string) {
	if !slices.Contains(allowed, s) {
		f.add(pointer, "must be one of "+strings.Join(allowed, ", "))
	}
}

func (f *fields) address(s string) {
	switch {
	case s == "":
		f.add("/address", "is required")
	case !address(s):
		f.add("/address", "must be an IP address or a host name, without a port")
	}
}

func address(s string) bool {
	if ip, err := netip.ParseAddr(s); err == nil {
		return ip.Zone() == ""
	}
	return hostname(s)
}

// hostname accepts dotted labels of letters, digits, hyphens and underscores.
// The last one is not a number, so that no wrong IP address passes for a name.
func hostname(s string) bool {
	s = strings.TrimSuffix(s, ".")
	if s == "" || len(s) > maxText {
		return false
	}
	last := ""
	for last = range strings.SplitSeq(s, ".") {
		if len(last) > maxName || !label(strings.ReplaceAll(strings.ToLower(last), "_", "a")) {
			return false
		}
	}
	return strings.Trim(last, "0123456789") != ""
}

func (f *fields) number(pointer string, n, low, high int) {
	if n < low || n > high {
		f.add(pointer, fmt.Sprintf("must be %d to %d", low, high))
	}
}

func (f *fields) duration(pointer string, d, low, high Duration) {
	switch {
	case d < low:
		f.add(pointer, "must be at least "+low.String())
	case high > 0 && d > high:
		f.add(pointer, "must be at most "+high.String())
	}
}
