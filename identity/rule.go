package identity

import (
	"crypto/x509"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/fault"
)

// Rule gives a role to whoever meets its Match.
type Rule struct {
	Role            string   `json:"role"`
	Namespaces      []string `json:"namespaces,omitempty"`       // none, and no claim: all
	NamespacesClaim string   `json:"namespaces_claim,omitempty"` // a claim that names further ones
	Match           Match    `json:"match"`
}

// Match says which credentials a rule is about. All that is given must hold.
// Claims and subject mean nothing without who vouches for them, so they need a
// provider or an issuer beside them.
type Match struct {
	Provider string            `json:"provider,omitempty"`  // by its name in the configuration
	Issuer   string            `json:"issuer,omitempty"`    // iss, exactly
	Subject  string            `json:"subject,omitempty"`   // sub, exactly
	Claims   map[string]Values `json:"claims,omitempty"`    // by name, or by path with dots; a list matches by any of its members
	SPIFFEID string            `json:"spiffe_id,omitempty"` // * stands for one segment, a last ** for any number
	CN       string            `json:"cn,omitempty"`        // common name of a certificate without a SPIFFE id, exactly
	SAN      string            `json:"san,omitempty"`       // DNS name, mail address or URI of such a certificate, exactly
	Token    string            `json:"token,omitempty"`     // id of one of muster's tokens
}

// Values are what a claim may be: in JSON one string, or a list of them.
type Values []string

// UnmarshalJSON reads one string or a list of strings.
func (v *Values) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*v = Values{one}
		return nil
	}
	var many []string
	if err := json.Unmarshal(b, &many); err != nil {
		return err
	}
	*v = many
	return nil
}

const maxRuleNames = 100 // of namespaces, claims and values in a rule

// Check refuses with invalid_field a rule that could not do what it says.
// roles are those that there are; namespace checks a name.
func (r *Rule) Check(roles []string, namespace func(string) error) error {
	if !slices.Contains(roles, r.Role) {
		return fault.Invalid("/role", "must be one of %s", strings.Join(roles, ", "))
	}
	for i, ns := range r.Namespaces {
		if namespace(ns) != nil || i >= maxRuleNames {
			return fault.Invalid("/namespaces/"+strconv.Itoa(i), "must be the name of a namespace; at most %d of them", maxRuleNames)
		}
	}
	slices.Sort(r.Namespaces)
	r.Namespaces = slices.Compact(r.Namespaces)
	return r.Match.check(r.NamespacesClaim != "")
}

func (m *Match) check(claimed bool) error {
	vouched := m.Provider != "" || m.Issuer != ""
	if (m.Subject != "" || len(m.Claims) > 0 || claimed) && !vouched {
		return fault.Invalid("/match", "subject, claims and namespaces_claim mean nothing without who vouches for them: give the provider or the issuer as well")
	}
	if vouched && m.Subject == "" && len(m.Claims) == 0 && m.SPIFFEID == "" && !claimed {
		return fault.Invalid("/match", "this would give the role to everybody whom the provider knows: give a subject or claims as well")
	}
	if !vouched && m.SPIFFEID == "" && m.CN == "" && m.SAN == "" && m.Token == "" {
		return fault.Invalid("/match", "give at least one of spiffe_id, cn, san, token, or claims of a provider")
	}
	if len(m.Claims) > maxRuleNames {
		return fault.Invalid("/match/claims", "at most %d claims", maxRuleNames)
	}
	for name, values := range m.Claims {
		if name == "" || len(values) == 0 || len(values) > maxRuleNames || slices.Contains(values, "") {
			return fault.Invalid("/match/claims", "%s needs a value, or a list of up to %d", name, maxRuleNames)
		}
	}
	if m.SPIFFEID != "" {
		return checkPattern(m.SPIFFEID)
	}
	return nil
}

// checkPattern refuses what could match more than it seems to.
func checkPattern(pattern string) error {
	rest, ok := strings.CutPrefix(pattern, "spiffe://")
	parts := strings.Split(rest, "/")
	ok = ok && parts[0] != "" && !strings.Contains(parts[0], "*") && len(parts) > 1
	for i, p := range parts {
		wild := p == "*" || (p == "**" && i == len(parts)-1)
		ok = ok && p != "" && (wild || !strings.Contains(p, "*"))
	}
	if !ok {
		return fault.Invalid("/match/spiffe_id", "must be spiffe://TRUST-DOMAIN/PATH, where * stands for one whole segment of the path and a last ** for one or more")
	}
	return nil
}

// MatchSPIFFE says whether an id meets a pattern: segment by segment, the trust
// domain exactly.
func MatchSPIFFE(pattern, id string) bool {
	want, have := strings.Split(pattern, "/"), strings.Split(id, "/")
	for i, w := range want {
		if i >= len(have) || have[i] == "" && i > 2 {
			return false
		}
		if w == "**" && i == len(want)-1 {
			return !slices.Contains(have[i:], "")
		}
		if w != "*" && w != have[i] {
			return false
		}
	}
	return len(want) == len(have)
}

// grant gives what the rule grants to the principal; false: nothing.
func (r *Rule) grant(p *Principal) (Grant, bool) {
	if !r.Match.holds(p) {
		return Grant{}, false
	}
	g := Grant{Roles: []string{r.Role}, Namespaces: slices.Clone(r.Namespaces)}
	if r.NamespacesClaim == "" {
		return g, true
	}
	for _, ns := range claim(p.Claims, r.NamespacesClaim) {
		if ns != "" && !slices.Contains(g.Namespaces, ns) {
			g.Namespaces = append(g.Namespaces, ns)
		}
	}
	slices.Sort(g.Namespaces)
	// Without one named, it must not become all of them.
	return g, len(g.Namespaces) > 0
}

func (m *Match) holds(p *Principal) bool {
	c := &p.Credential
	switch {
	case p.Kind == KindNode: // a member is never a client with a role
		return false
	case m.Provider != "" && m.Provider != c.Provider,
		m.Issuer != "" && m.Issuer != c.Issuer,
		m.Subject != "" && m.Subject != c.Subject,
		m.Token != "" && m.Token != c.TokenID,
		m.SPIFFEID != "" && !MatchSPIFFE(m.SPIFFEID, m.spiffeOf(p)),
		m.CN != "" && !c.named(func(cert *x509.Certificate) bool { return cert.Subject.CommonName == m.CN }),
		m.SAN != "" && !c.named(func(cert *x509.Certificate) bool { return hasSAN(cert, m.SAN) }) && (m.SAN != p.ID || c.Certificate == nil):
		return false
	}
	for name, values := range m.Claims {
		if !slices.ContainsFunc(claim(p.Claims, name), func(v string) bool { return slices.Contains(values, v) }) {
			return false
		}
	}
	return true
}

// spiffeOf is the SPIFFE id that the credential proves: of a certificate, or of
// a JWT-SVID. What a provider says of its subject is one only for a rule that
// names the provider: else each of them could vouch for every trust domain.
func (m *Match) spiffeOf(p *Principal) string {
	switch c := &p.Credential; {
	case strings.HasPrefix(p.ID, spiffeScheme):
		return p.ID
	case strings.HasPrefix(c.Subject, spiffeScheme) && (m.Provider != "" || m.Issuer != ""):
		return c.Subject
	}
	return ""
}

const spiffeScheme = "spiffe://"

// named asks about the names in a certificate that stands for them. One with a
// SPIFFE id stands for that alone: who may sign ids of workloads, or of another
// trust domain, may write any other name beside them.
func (c *Credential) named(is func(*x509.Certificate) bool) bool {
	return c.Certificate != nil && is(c.Certificate) &&
		(c.foretold || !slices.ContainsFunc(c.Certificate.URIs, func(u *url.URL) bool { return strings.EqualFold(u.Scheme, "spiffe") }))
}

func hasSAN(cert *x509.Certificate, name string) bool {
	return slices.Contains(cert.DNSNames, name) || slices.Contains(cert.EmailAddresses, name) ||
		slices.ContainsFunc(cert.URIs, func(u *url.URL) bool { return u.String() == name })
}

// claim gives what a claim says, as text: of a list its members, of scope its
// words (RFC 8693, section 4.2). The name is tried as it is, then as a path.
func claim(claims map[string]any, name string) []string {
	v, ok := claims[name]
	if !ok {
		var at any = claims
		for _, part := range strings.Split(name, ".") {
			object, is := at.(map[string]any)
			if !is {
				return nil
			}
			if at, is = object[part]; !is {
				return nil
			}
		}
		v = at
	}
	if s, is := v.(string); is && (name == "scope" || name == "scp") {
		return strings.Fields(s)
	}
	list, is := v.([]any)
	if !is {
		list = []any{v}
	}
	var all []string
	for _, item := range list {
		switch item := item.(type) {
		case string:
			all = append(all, item)
		case bool:
			all = append(all, strconv.FormatBool(item))
		case float64:
			all = append(all, strconv.FormatFloat(item, 'f', -1, 64))
		case interface{ String() string }: // a number that was not decoded
			all = append(all, item.String())
		}
	}
	return all
}
