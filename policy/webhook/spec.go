package webhook

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/net/http/httpguts"

	"github.com/muster-registry/muster/egress"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
)

// The events that a webhook may be asked about.
const (
	OnRegister = "on_register"
	OnUpdate   = "on_update"
	OnDelete   = "on_delete"
)

// The failure policies: what counts when the endpoint gives no usable answer.
const (
	FailClosed = "fail_closed"
	FailOpen   = "fail_open"
)

// The kinds of back-off between attempts.
const (
	Exponential = "exponential"
	Constant    = "constant"
)

// Hidden stands in answers where a secret is stored.
const Hidden = "(hidden)"

// The limits and the defaults of a webhook.
const (
	maxURL      = 2048
	minTimeout  = 10 * time.Millisecond
	maxTimeout  = 30 * time.Second
	maxAttempts = 10
	maxHeaders  = 20
	maxHeader   = 4096
	maxPEM      = 64 << 10
	maxScopes   = 100
	minSecret   = 24 // bytes, as Standard Webhooks has it
	maxSecret   = 64

	defaultTimeout  = "500ms"
	defaultAttempts = 3
	defaultInterval = "50ms"
)

// secretPrefix begins a secret of Standard Webhooks.
const secretPrefix = "whsec_"

// Spec is a webhook as it is stored.
type Spec struct {
	URL           string            `json:"webhook_url"`
	Events        []string          `json:"events"`
	Timeout       string            `json:"timeout"` // of one question with all its attempts
	Retry         Retry             `json:"retry_policy"`
	FailurePolicy string            `json:"failure_policy"`
	Namespaces    []string          `json:"namespaces,omitempty"` // asked about these only; none: about all
	Headers       map[string]string `json:"headers,omitempty"`    // sent along; their values are secret
	Secret        string            `json:"secret,omitempty"`     // whsec_… : requests are signed with it
	TLS           *TLS              `json:"tls,omitempty"`
	Insecure      bool              `json:"insecure,omitzero"` // http:// is meant
}

// Retry says how often and when the endpoint is asked again after a failure.
type Retry struct {
	MaxAttempts int    `json:"max_attempts"` // the first included
	Backoff     string `json:"backoff"`
	Interval    string `json:"interval"` // before the second attempt; doubled for each that follows where back-off is exponential
}

// TLS says whom to believe and who to be. All are PEM.
type TLS struct {
	CA   string `json:"ca,omitempty"` // of the endpoint; none: the system's
	Cert string `json:"cert,omitempty"`
	Key  string `json:"key,omitempty"`
}

// body is what a caller sends: a spec, or what a GET returned.
type body struct {
	Spec
	Name      *string        `json:"name"`
	Revision  jsontext.Value `json:"revision"`
	CreatedAt jsontext.Value `json:"created_at"`
	CreatedBy jsontext.Value `json:"created_by"`
	UpdatedAt jsontext.Value `json:"updated_at"`
	UpdatedBy jsontext.Value `json:"updated_by"`
}

// Canonical reads what a caller sends and gives the spec to store, with every
// default in it. The dialer refuses addresses that must not be reached, as far
// as they can be told from the URL. Errors are bad_request, invalid_field, and
// forbidden_address for such an address, whatever else is wrong.
func Canonical(name string, sent []byte, dialer *egress.Dialer) ([]byte, error) {
	var b body
	if err := registry.DecodeStrict(sent, &b); err != nil {
		return nil, err
	}
	var m mistakes
	if b.Name != nil && *b.Name != name {
		m.add("/name", "is %q in the body and %q in the path", *b.Name, name)
	}
	s := &b.Spec
	m.url(s, dialer)
	m.events(s)
	m.timing(s)
	switch s.FailurePolicy {
	case "":
		s.FailurePolicy = FailClosed
	case FailClosed, FailOpen:
	default:
		m.add("/failure_policy", "must be %s or %s", FailClosed, FailOpen)
	}
	m.namespaces(s)
	m.headers(s)
	m.secret(s)
	m.tls(s)
	if err := m.err(); err != nil {
		return nil, err
	}
	return json.Marshal(s, json.Deterministic(true))
}

// mistakes gathers what is wrong with a spec.
type mistakes struct {
	fields  []fault.Field
	refused *fault.Field // the address, if it is one that is never connected to
}

func (m *mistakes) add(pointer, format string, args ...any) {
	m.fields = append(m.fields, fault.Field{Pointer: pointer, Message: fmt.Sprintf(format, args...)})
}

func (m *mistakes) err() error {
	if len(m.fields) == 0 {
		return nil
	}
	f := fault.Invalid(m.fields[0].Pointer, "%s", m.fields[0].Message)
	if m.refused != nil {
		f = fault.New(fault.ForbiddenAddress, "%s: %s", m.refused.Pointer, m.refused.Message)
	}
	f.Fields = m.fields
	return f
}

func (m *mistakes) url(s *Spec, dialer *egress.Dialer) {
	const at = "/webhook_url"
	u, err := url.Parse(s.URL)
	switch {
	case s.URL == "":
		m.add(at, "is required")
		return
	case len(s.URL) > maxURL:
		m.add(at, "must be at most %d characters", maxURL)
		return
	case err != nil || u.Hostname() == "" || u.Opaque != "":
		m.add(at, "must be a URL such as https://policy-engine.internal:8181/v1/data/api/registry/authz/allow")
		return
	}
	switch {
	case u.User != nil:
		m.add(at, "must not hold a user or a password; send them in headers")
	case u.Fragment != "" || strings.HasSuffix(s.URL, "#"):
		m.add(at, "must not hold a fragment")
	case u.Scheme == "http" && !s.Insecure:
		m.add(at, "must begin with https://; set insecure to send what callers want stored, and their tokens, in plain text")
	case u.Scheme == "https" && s.Insecure:
		m.add("/insecure", "is for http:// only; leave it out with https://")
	case u.Scheme != "https" && u.Scheme != "http":
		m.add(at, "must begin with https://")
	case u.Scheme == "http" && s.TLS != nil:
		m.add("/tls", "has no use with http://")
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.Atoi(p); err != nil || n < 1 || n > 65535 {
			m.add(at, "has no port from 1 to 65535")
		}
	}
	if err := dialer.CheckHost(u.Hostname()); err != nil {
		m.add(at, "%v (webhook.allow lists what may be reached beside public addresses)", err)
		m.refused = &m.fields[len(m.fields)-1]
	}
}

func (m *mistakes) events(s *Spec) {
	all := []string{OnRegister, OnUpdate, OnDelete}
	for i, e := range s.Events {
		if !slices.Contains(all, e) {
			m.add(fmt.Sprintf("/events/%d", i), "must be one of %s", strings.Join(all, ", "))
		} else if slices.Contains(s.Events[:i], e) {
			m.add(fmt.Sprintf("/events/%d", i), "stands twice")
		}
	}
	if len(s.Events) == 0 {
		m.add("/events", "must name at least one of %s", strings.Join(all, ", "))
	}
}

func (m *mistakes) timing(s *Spec) {
	if s.Timeout == "" {
		s.Timeout = defaultTimeout
	}
	limit, ok := m.duration("/timeout", s.Timeout, minTimeout, maxTimeout)
	r := &s.Retry
	if r.MaxAttempts == 0 {
		r.MaxAttempts = defaultAttempts
	}
	if r.MaxAttempts < 1 || r.MaxAttempts > maxAttempts {
		m.add("/retry_policy/max_attempts", "must be from 1 to %d", maxAttempts)
	}
	switch r.Backoff {
	case "":
		r.Backoff = Exponential
	case Exponential, Constant:
	default:
		m.add("/retry_policy/backoff", "must be %s or %s", Exponential, Constant)
	}
	if r.Interval == "" {
		r.Interval = defaultInterval
		if ok && limit < 4*50*time.Millisecond {
			r.Interval = (limit / 4).String()
		}
	}
	if ok {
		m.duration("/retry_policy/interval", r.Interval, time.Millisecond, limit)
	}
}

func (m *mistakes) duration(pointer, s string, least, most time.Duration) (time.Duration, bool) {
	d, err := time.ParseDuration(s)
	if err != nil {
		m.add(pointer, `must be a duration such as "500ms"`)
		return 0, false
	}
	if d < least || d > most {
		m.add(pointer, "must be from %v to %v", least, most)
		return 0, false
	}
	return d, true
}

func (m *mistakes) namespaces(s *Spec) {
	if len(s.Namespaces) > maxScopes {
		m.add("/namespaces", "must be at most %d", maxScopes)
		return
	}
	for i, ns := range s.Namespaces {
		if registry.ValidName(ns) != nil {
			m.add(fmt.Sprintf("/namespaces/%d", i), "is not the name of a namespace")
		}
	}
	slices.Sort(s.Namespaces)
	s.Namespaces = slices.Compact(s.Namespaces)
}

// own are the headers that are not the user's to set.
var own = []string{"Connection", "Content-Encoding", "Content-Length", "Content-Type", "Expect", "Host", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}

func (m *mistakes) headers(s *Spec) {
	if len(s.Headers) > maxHeaders {
		m.add("/headers", "must be at most %d", maxHeaders)
		return
	}
	seen := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(s.Headers)) {
		value := s.Headers[name]
		at := "/headers/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(name)
		canonical := http.CanonicalHeaderKey(name)
		switch {
		case !httpguts.ValidHeaderFieldName(name):
			m.add(at, "is not the name of a header")
		case slices.Contains(own, canonical) || strings.HasPrefix(canonical, "Webhook-"):
			m.add(at, "is set by muster")
		case seen[canonical]:
			m.add(at, "stands twice, in different spellings")
		case value == Hidden:
			m.add(at, "give the value itself; answers only show that there is one")
		case len(value) > maxHeader || !httpguts.ValidHeaderFieldValue(value):
			m.add(at, "must be at most %d characters of text, without line breaks", maxHeader)
		}
		seen[canonical] = true
	}
}

func (m *mistakes) secret(s *Spec) {
	if s.Secret == "" {
		return
	}
	if s.Secret == Hidden {
		m.add("/secret", "give the secret itself; answers only show that there is one")
		return
	}
	raw, ok := strings.CutPrefix(s.Secret, secretPrefix)
	key, err := base64.StdEncoding.DecodeString(raw)
	if !ok || err != nil || len(key) < minSecret || len(key) > maxSecret {
		m.add("/secret", "must be %s and the base64 of %d to %d bytes; make one with: echo %s$(head -c 32 /dev/urandom | base64)", secretPrefix, minSecret, maxSecret, secretPrefix)
	}
}

func (m *mistakes) tls(s *Spec) {
	t := s.TLS
	if t == nil {
		return
	}
	if len(t.CA)+len(t.Cert)+len(t.Key) > maxPEM {
		m.add("/tls", "must be at most %d bytes in all", maxPEM)
		return
	}
	if t.CA != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(t.CA)) {
		m.add("/tls/ca", "holds no certificate in PEM")
	}
	switch {
	case t.Cert == "" && t.Key == "":
		if t.CA == "" {
			s.TLS = nil
		}
	case t.Cert == "" || t.Key == "":
		m.add("/tls", "cert and key belong together; give both or none")
	case t.Key == Hidden:
		m.add("/tls/key", "give the key itself; answers only show that there is one")
	default:
		if _, err := tls.X509KeyPair([]byte(t.Cert), []byte(t.Key)); err != nil {
			m.add("/tls/key", "cert and key are no pair in PEM")
		}
	}
}

// asks says whether the webhook is to be asked about the action there.
func (s *Spec) asks(action policy.Action, namespace string) bool {
	event := map[policy.Action]string{policy.Register: OnRegister, policy.Update: OnUpdate, policy.Delete: OnDelete}[action]
	return slices.Contains(s.Events, event) && (len(s.Namespaces) == 0 || slices.Contains(s.Namespaces, namespace))
}

// Shown gives a webhook's record as callers may see it: where a secret is
// stored stands that there is one.
func Shown(record []byte) ([]byte, error) {
	var r map[string]jsontext.Value
	if err := json.Unmarshal(record, &r); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "the stored webhook cannot be read")
	}
	hidden := jsontext.Value(`"` + Hidden + `"`)
	if _, ok := r["secret"]; ok {
		r["secret"] = hidden
	}
	for member, secret := range map[string]func(name string) bool{
		"tls":     func(name string) bool { return name == "key" },
		"headers": func(string) bool { return true },
	} {
		raw, ok := r[member]
		if !ok {
			continue
		}
		var inner map[string]jsontext.Value
		if err := json.Unmarshal(raw, &inner); err != nil {
			return nil, fault.Wrap(fault.Internal, err, "the stored webhook cannot be read")
		}
		for name := range inner {
			if secret(name) {
				inner[name] = hidden
			}
		}
		shown, err := json.Marshal(inner, json.Deterministic(true))
		if err != nil {
			return nil, err
		}
		r[member] = shown
	}
	return json.Marshal(r, json.Deterministic(true))
}
