package mirror

import (
	"bytes"
	"hash/maphash"
	"maps"
	"net/textproto"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"unicode/utf8"

	"github.com/muster-registry/muster/audit"
)

// Masked stands where a value has been taken out.
const Masked = "***"

// What of one request is carried.
const (
	maxHeaders = 64
	maxValue   = 512 // bytes
	maxPath    = 1024
)

// secretWords are in the names of headers whose values are never carried.
var secretWords = []string{"auth", "token", "secret", "key", "cookie", "passw", "credential", "session", "signature", "cert", "assertion", "jwt", "saml"}

// harmless are names that have such a word in them and say nothing secret.
var harmless = []string{"Idempotency-Key", ":authority"}

// credential looks for what is one whatever the header is called. What holds none
// of the hints is not looked at so closely: most values do not.
var credential = regexp.MustCompile(`(?i)\b(bearer|basic|digest|negotiate|splunk)\s+\S|eyJ[A-Za-z0-9_-]{8,}|muster_[0-9a-f]{16}_|-----BEGIN|://[^/\s]*@`)

// restless are names of headers whose value is another one in most requests. They
// stand behind the others.
var restless = []string{"Content-Length", "Idempotency-Key", "If-Match", "If-None-Match", "Last-Event-Id", "Traceparent", "Tracestate", "X-Request-Id"}

// Masker says which headers are carried without their value.
type Masker struct {
	names map[string]bool

	seed   maphash.Seed
	judged atomic.Pointer[map[string]judgement] // by name; the map is never changed
	sets   [maxSets]atomic.Pointer[set]         // by their sum
	seen   [maxSets]atomic.Uint64               // sums of sets that came lately
	latest [maxSets]atomic.Pointer[set]         // of sets, the one that a client sent last, by its User-Agent
	drafts sync.Pool                            // of *draft
}

// judgement is what is known of a header by its name.
type judgement struct {
	secret, restless bool
	sum              uint64 // of the name
}

// set is headers as they came and as they are carried: a client sends the same
// again and again. It holds no value that is not carried.
type set struct {
	sum     uint64
	headers []header
	text    []byte
}

// draft is room that is used again.
type draft struct {
	steady, moving, merged []header
	text                   []byte
}

// What is remembered.
const (
	maxJudged  = 1000 // names
	maxSets    = 256
	maxSet     = 24      // headers of one
	maxSetSize = 2 << 10 // bytes of those
)

// NewMasker masks the headers of these names too, beside those that hold
// credentials.
func NewMasker(names []string) *Masker {
	m := &Masker{names: map[string]bool{}, seed: maphash.MakeSeed()}
	m.judged.Store(&map[string]judgement{})
	for _, n := range names {
		m.names[textproto.CanonicalMIMEHeaderKey(n)] = true
	}
	return m
}

// hinted reports whether a value has in it what every credential has some of:
// white space, "eyJ", "muster_", "-----" or "://".
func hinted(v string) bool {
	if len(v) < 8 {
		return false
	}
	for i := range len(v) {
		switch v[i] {
		case ' ', '\t', '\n', '\v', '\f', '\r':
			return true
		case 'J', 'j':
			if i >= 2 && strings.EqualFold(v[i-2:i], "ey") {
				return true
			}
		case '_':
			if i >= 6 && strings.EqualFold(v[i-6:i], "muster") {
				return true
			}
		case '-':
			if strings.HasPrefix(v[i:], "-----") {
				return true
			}
		case ':':
			if strings.HasPrefix(v[i:], "://") {
				return true
			}
		}
	}
	return false
}

func (m *Masker) judge(name string) judgement {
	judged := m.judged.Load()
	if j, ok := (*judged)[name]; ok {
		return j
	}
	j := judgement{secret: m.secret(name), restless: slices.Contains(restless, name), sum: maphash.String(m.seed, name)}
	if len(name) <= 64 && len(*judged) < maxJudged {
		next := maps.Clone(*judged)
		next[strings.Clone(name)] = j
		m.judged.CompareAndSwap(judged, &next) // who loses judges it again
	}
	return j
}

func (m *Masker) secret(name string) bool {
	if m.names[textproto.CanonicalMIMEHeaderKey(name)] {
		return true
	}
	if slices.Contains(harmless, name) {
		return false
	}
	name = strings.ToLower(name)
	return slices.ContainsFunc(secretWords, func(w string) bool { return strings.Contains(name, w) })
}

// carried gives what of a header's value is carried: no credential, and no query.
func (h *header) carried() string {
	if h.secret || hinted(h.value) && credential.MatchString(h.value) {
		return Masked
	}
	v := h.value
	if before, _, ok := strings.Cut(v, "?"); ok {
		v = before + "?" + Masked
	}
	return clip(v, maxValue)
}

// Request is what a mirrored line says of the call behind it.
type Request struct {
	Method, Path, Host, Scheme, Source string
	Headers                            func(yield func(name, value string) bool) // a name may come more than once

	// Fields are the headers of who has them by their canonical names; Headers is
	// not asked then.
	Fields map[string][]string
}

// Render writes a request as JSON, without its query and without credentials.
func (m *Masker) Render(r *Request) []byte {
	d := m.draft()
	d.text = m.append(d.text[:0], r, d)
	rendered := bytes.Clone(d.text)
	m.keep(d)
	return rendered
}

// Append is Render into what is there.
func (m *Masker) Append(to []byte, r *Request) []byte {
	d := m.draft()
	to = m.append(to, r, d)
	m.keep(d)
	return to
}

func (m *Masker) draft() *draft {
	if d, ok := m.drafts.Get().(*draft); ok {
		return d
	}
	return new(draft)
}

// keep gives a draft back, unless it has become large.
func (m *Masker) keep(d *draft) {
	if cap(d.steady) > 1<<10 {
		return
	}
	for _, all := range []*[]header{&d.steady, &d.moving, &d.merged} {
		clear(*all)
		*all = (*all)[:0]
	}
	m.drafts.Put(d)
}

func (m *Masker) append(b []byte, r *Request, d *draft) []byte {
	path, _, _ := strings.Cut(r.Path, "?")
	b = append(b, '{')
	b = member(b, `"method":`, clip(r.Method, 32))
	b = member(b, `"path":`, clip(path, maxPath))
	b = member(b, `"host":`, clip(r.Host, 255))
	b = member(b, `"scheme":`, clip(r.Scheme, 32))
	b = member(b, `"source":`, clip(r.Source, 255))
	b = append(b, `"headers":{`...)
	b, more := m.headers(b, r, d)
	b = append(b, '}')
	if more > 0 {
		b = strconv.AppendInt(append(b, `,"more_headers":`...), int64(more), 10)
	}
	return append(b, '}')
}

// member appends one, of a name that is written out, where there is a value.
func member(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	return append(audit.AppendText(append(b, name...), value), ',')
}

func clip(s string, most int) string {
	if len(s) <= most {
		return s
	}
	for most > 0 && !utf8.RuneStart(s[most]) {
		most--
	}
	return s[:most] + "…"
}
