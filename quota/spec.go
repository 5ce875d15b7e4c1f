package quota

import (
	"fmt"
	"math"
	"net/url"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/registry"
)

// The bounds of the document.
const (
	maxOverrides = 10_000
	maxRate      = 10_000_000
	maxName      = 512
	maxURL       = 1024
)

// Spec is what the quotas document holds under quota_management.
type Spec struct {
	Backend    string     `json:"backend"`
	Connection string     `json:"redis_connection,omitempty"` // redis://host:port/db, rediss:// for TLS; never a password
	Defaults   *Rate      `json:"defaults,omitempty"`         // of each service; none: services have the limits of overrides only
	Overrides  []Override `json:"overrides,omitempty"`

	index map[Key]Rate
}

// Override is the limit of one service, one namespace or one principal.
type Override struct {
	ServiceID string `json:"service_id,omitempty"`
	Namespace string `json:"namespace,omitempty"` // with a service_id: of the service
	Principal string `json:"principal,omitempty"`
	Rate
}

// Document is the quotas as they are stored and answered.
type Document struct {
	Management *Spec `json:"quota_management"`
}

// sent is what a caller sends: a document, or what a GET returned.
type sent struct {
	Management *draft         `json:"quota_management"`
	Name       jsontext.Value `json:"name"`
	Revision   jsontext.Value `json:"revision"`
	CreatedAt  jsontext.Value `json:"created_at"`
	CreatedBy  jsontext.Value `json:"created_by"`
	UpdatedAt  jsontext.Value `json:"updated_at"`
	UpdatedBy  jsontext.Value `json:"updated_by"`
}

// draft is a Spec whose numbers may be missing.
type draft struct {
	Backend    string          `json:"backend"`
	Connection string          `json:"redis_connection"`
	Defaults   *draftRate      `json:"defaults"`
	Overrides  []draftOverride `json:"overrides"`
}

type draftRate struct {
	RequestsPerSecond *float64 `json:"requests_per_second"`
	BurstCapacity     *int64   `json:"burst_capacity"`
}

type draftOverride struct {
	ServiceID string `json:"service_id"`
	Namespace string `json:"namespace"`
	Principal string `json:"principal"`
	draftRate
}

// mistakes collects what is wrong with a document.
type mistakes []fault.Field

func (m *mistakes) add(pointer, format string, args ...any) {
	if len(*m) < 16 {
		*m = append(*m, fault.Field{Pointer: pointer, Message: fmt.Sprintf(format, args...)})
	}
}

func (m mistakes) err() error {
	if len(m) == 0 {
		return nil
	}
	e := fault.Invalid(m[0].Pointer, "%s", m[0].Message)
	e.Fields = m
	return e
}

// Canonical reads the document that a caller sends, as JSON, and gives the one
// to store, with every default in it. A limit without a burst_capacity has that
// of the defaults or the hits of one second, whichever is more. Errors are
// bad_request and invalid_field.
func Canonical(body []byte) ([]byte, error) {
	var in sent
	if err := registry.DecodeStrict(body, &in); err != nil {
		return nil, err
	}
	if in.Management == nil {
		return nil, fault.Invalid("/quota_management", "is missing; everything stands below it")
	}
	var m mistakes
	s := in.Management.spec(&m)
	if err := m.err(); err != nil {
		return nil, err
	}
	return json.Marshal(Document{Management: s}, json.Deterministic(true))
}

func (d *draft) spec(m *mistakes) *Spec {
	const at = "/quota_management"
	s := &Spec{Backend: d.Backend, Connection: d.Connection}
	switch d.Backend {
	case "":
		s.Backend = Embedded
	case Embedded, Redis:
	default:
		m.add(at+"/backend", "%q is neither embedded nor redis", clip(d.Backend))
	}
	connection(m, at+"/redis_connection", s)
	if d.Defaults != nil {
		r := d.Defaults.rate(m, at+"/defaults", nil)
		s.Defaults = &r
	}
	if len(d.Overrides) > maxOverrides {
		m.add(at+"/overrides", "has %d entries, and %d is the most", len(d.Overrides), maxOverrides)
		return s
	}
	seen := map[Key]bool{}
	for i, o := range d.Overrides {
		here := fmt.Sprintf("%s/overrides/%d", at, i)
		key, ok := o.key()
		switch {
		case !ok:
			m.add(here, "must name one of: a service_id, with its namespace if that is not %s; a namespace; a principal", DefaultNamespace)
		case !named(o.ServiceID) || !named(o.Namespace) || !named(o.Principal):
			m.add(here, "has a name of more than %d bytes, or one with control characters or typographic quotes; write it in plain quotes", maxName)
		case strings.Contains(o.ServiceID, "/") || strings.Contains(o.Namespace, "/"):
			m.add(here, "has a slash in its service_id or namespace; give the namespace beside the service_id")
		case seen[key]:
			m.add(here, "is the second limit for the same %s; keep one", key.Kind())
		}
		seen[key] = true
		if key.Kind() == OfService && o.Namespace == DefaultNamespace {
			o.Namespace = ""
		}
		s.Overrides = append(s.Overrides, Override{ServiceID: o.ServiceID, Namespace: o.Namespace, Principal: o.Principal, Rate: o.rate(m, here, s.Defaults)})
	}
	return s
}

func (o *draftOverride) key() (Key, bool) {
	switch {
	case o.ServiceID != "" && o.Principal == "":
		namespace := o.Namespace
		if namespace == "" {
			namespace = DefaultNamespace
		}
		return serviceKey(namespace, o.ServiceID), true
	case o.Principal != "" && o.ServiceID == "" && o.Namespace == "":
		return Key(string(OfPrincipal) + "/" + o.Principal), true
	case o.Namespace != "" && o.ServiceID == "" && o.Principal == "":
		return Key(string(OfNamespace) + "/" + o.Namespace), true
	}
	return "", false
}

func (d *draftRate) rate(m *mistakes, at string, defaults *Rate) (r Rate) {
	if d.RequestsPerSecond == nil {
		m.add(at+"/requests_per_second", "is missing")
		return r
	}
	r.RequestsPerSecond = *d.RequestsPerSecond
	if !(r.RequestsPerSecond >= 0.001 && r.RequestsPerSecond <= maxRate) {
		m.add(at+"/requests_per_second", "is out of range; from 0.001 to %d", maxRate)
		return r
	}
	if d.BurstCapacity == nil {
		r.BurstCapacity = int64(math.Ceil(r.RequestsPerSecond))
		if defaults != nil {
			r.BurstCapacity = max(r.BurstCapacity, defaults.BurstCapacity)
		}
		return r
	}
	r.BurstCapacity = *d.BurstCapacity
	if r.BurstCapacity < 1 || r.BurstCapacity > 10*maxRate {
		m.add(at+"/burst_capacity", "is out of range; from 1 to %d", 10*maxRate)
	}
	return r
}

// connection checks the address of the Redis. What stands here is replicated
// and can be read back, so a password does not belong into it.
func connection(m *mistakes, at string, s *Spec) {
	if s.Connection == "" {
		if s.Backend == Redis {
			m.add(at, "is missing; say where the Redis is, such as redis://cache-store.internal:6379")
		}
		return
	}
	u, err := url.Parse(s.Connection)
	switch {
	case len(s.Connection) > maxURL || !named(s.Connection):
		m.add(at, "must be an address in plain quotes, of at most %d bytes", maxURL)
	case err != nil || (u.Scheme != "redis" && u.Scheme != "rediss") || u.Hostname() == "" || u.RawQuery != "" || u.Fragment != "":
		m.add(at, "must be redis://host:port or rediss://host:port, with the number of a database behind it if need be")
	case hasPassword(u):
		m.add(at, "must not hold a password: give it to each node by quota.redis_password_file or MUSTER_REDIS_PASSWORD")
	case strings.Trim(u.Path, "/0123456789") != "" || strings.Count(u.Path, "/") > 1:
		m.add(at, "has a path that is not the number of a database")
	}
}

func hasPassword(u *url.URL) bool {
	_, has := u.User.Password()
	return has
}

// named says whether a name can be one.
func named(s string) bool {
	return len(s) <= maxName && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f || strings.ContainsRune("“”„‘’", r) })
}

func clip(s string) string {
	if len(s) > 100 {
		return strings.ToValidUTF8(s[:100], "") + "…"
	}
	return s
}

// Read gives the quotas of a stored document.
func Read(document []byte) (*Spec, error) {
	var d Document
	if err := json.Unmarshal(document, &d, json.RejectUnknownMembers(true)); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "the stored quotas cannot be read")
	}
	if d.Management == nil {
		return nil, fault.New(fault.Internal, "the stored quotas are empty")
	}
	s := d.Management
	s.index = make(map[Key]Rate, len(s.Overrides))
	for _, o := range s.Overrides {
		key, _ := (&draftOverride{ServiceID: o.ServiceID, Namespace: o.Namespace, Principal: o.Principal}).key()
		s.index[key] = o.Rate
	}
	return s, nil
}

// Check refuses a call that can never be counted, and gives it its defaults.
// The error is invalid_field.
func (c *Call) Check() error {
	if c.Namespace == "" {
		c.Namespace = DefaultNamespace
	}
	var m mistakes
	if c.ServiceID == "" {
		m.add("/service_id", "is missing")
	}
	for _, n := range []struct{ at, name string }{{"/service_id", c.ServiceID}, {"/namespace", c.Namespace}, {"/principal", c.Principal}} {
		if !named(n.name) || (n.at != "/principal" && strings.Contains(n.name, "/")) {
			m.add(n.at, "is not a name")
		}
	}
	if c.Hits < 1 || c.Hits > MaxHits {
		m.add("/hits", "is %d; from 1 to %d", c.Hits, MaxHits)
	}
	return m.err()
}
