package door

import (
	"net/url"
	"strings"
	"unicode/utf8"

	"github.com/muster-registry/muster/fault"
)

// CheckPath refuses a path that could be read in two ways. What passes is
// matched, authorised and served in one and the same form.
func CheckPath(u *url.URL) error {
	p := u.Path
	if p == "" || p[0] != '/' {
		return fault.New(fault.BadPath, "the path must begin with /")
	}
	for start := 1; start <= len(p); {
		end := strings.IndexByte(p[start:], '/')
		if end < 0 {
			end = len(p)
		} else {
			end += start
		}
		switch segment := p[start:end]; {
		case segment == "" && end < len(p):
			return fault.New(fault.BadPath, "the path must not contain //")
		case segment == "." || segment == "..":
			return fault.New(fault.BadPath, "the path must not contain the segments . and ..")
		case strings.IndexByte(segment, '\\') >= 0 || strings.IndexByte(segment, ';') >= 0:
			return fault.New(fault.BadPath, `the path must not contain \ and ;`)
		}
		start = end + 1
	}
	// RawPath is set only where the sender escaped otherwise than by default;
	// the default never escapes a slash or a dot.
	for raw := u.RawPath; ; {
		i := strings.IndexByte(raw, '%')
		if i < 0 {
			return nil
		}
		if code := raw[i+1:]; len(code) >= 2 {
			switch strings.ToLower(code[:2]) {
			case "2f", "5c", "2e":
				return fault.New(fault.BadPath, "the path must not contain an escaped slash, backslash or dot")
			}
		}
		raw = raw[i+1:]
	}
}

// Printable reports whether s is valid UTF-8 without control characters.
func Printable(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	for i := range len(s) {
		if s[i] < 0x20 || s[i] == 0x7f {
			return false
		}
	}
	return true
}
