package issuer

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/identity"
	"github.com/muster-registry/muster/pki"
	"github.com/muster-registry/muster/policy"
)

// Kind is what policies know a certificate as, in input.resource.kind.
const Kind = "certificate"

// What can be asked for in one request.
const (
	maxCSR   = 32 << 10
	maxHosts = 32
	maxID    = 2048 // as the standard has it
)

var (
	label    = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	hostForm = regexp.MustCompile(`^([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\.)+[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
)

// Ask is what a caller wants.
type Ask struct {
	CSR string        // PKCS #10, PEM
	ID  string        // SPIFFE id; "": that of the CSR, or the caller's own
	TTL time.Duration // 0: as long as may be
}

// Order is a certificate that may be had by its form. Who may have it is for
// [Order.Permit], and the policy.
type Order struct {
	ID        *url.URL
	Namespace string // of an id /ns/NAMESPACE/…; else ""
	Service   string // of an id /ns/NAMESPACE/svc/SERVICE; else ""
	Own       bool   // the id is the one that its caller has proved
	Hosts     []string
	TTL       time.Duration

	csr      *pki.CSR
	template *x509.Certificate
	request  pki.Request
}

// Order reads what a caller asks for, and refuses with invalid_field or
// forbidden what nobody could have. caller is the id that the caller has proved.
func (i *Issuer) Order(ask Ask, caller string) (*Order, error) {
	if len(ask.CSR) > maxCSR {
		return nil, fault.Invalid("/csr", "has %d bytes; %d are enough for every signing request that can be granted", len(ask.CSR), maxCSR)
	}
	csr, err := pki.ParseCSR([]byte(ask.CSR))
	if err != nil {
		return nil, fault.Invalid("/csr", "%s", err)
	}
	o := &Order{csr: csr, TTL: cmp.Or(ask.TTL, i.cfg.TTL)}
	if ask.TTL < 0 || o.TTL < MinTTL || o.TTL > i.cfg.TTL {
		return nil, fault.Invalid("/ttl", "must be from %s to %s, as long as certificates are issued for here", MinTTL, i.cfg.TTL)
	}
	own := ""
	if id, err := pki.WorkloadID(caller); err == nil && id.Host == i.cfg.TrustDomain {
		own = caller
	}
	if err := i.identify(o, ask.ID, own); err != nil {
		return nil, err
	}
	o.request = pki.Request{ID: o.ID.String(), CSR: csr, Validity: o.TTL}
	if o.template, err = o.request.Template(i.cfg.TrustDomain); err != nil {
		return nil, fault.Invalid("/csr", "%s", err)
	}
	o.template.RawSubjectPublicKeyInfo = csr.RawPublicKey()
	return o, i.hosts(o)
}

// identify settles the id.
func (i *Issuer) identify(o *Order, asked, own string) error {
	pointer, id := "/id", asked
	if uris := o.csr.IDs(); id == "" && len(uris) > 0 {
		pointer, id = "/csr", uris[0].String()
	}
	if id = cmp.Or(id, own); id == "" {
		return fault.Invalid("/id", "say for which SPIFFE id, here or in the signing request, such as spiffe://%s/ns/shop/svc/cart", i.cfg.TrustDomain)
	}
	if u, err := url.Parse(id); err == nil && u.Scheme == "spiffe" && u.Host == i.cfg.TrustDomain && strings.HasPrefix(u.Path+"/", "/muster/") {
		return fault.New(fault.Forbidden, "%s stands for a node or a role of muster: certificates of those are made by whoever has the CA, with muster tls issue", clip(id))
	}
	u, err := pki.WorkloadID(id)
	if err != nil || len(id) > maxID {
		return fault.Invalid(pointer, "%q is not a SPIFFE id of a workload; write spiffe://%s/PATH, such as spiffe://%[2]s/ns/shop/svc/cart", clip(id), i.cfg.TrustDomain)
	}
	if u.Host != i.cfg.TrustDomain {
		return fault.New(fault.Forbidden, "%s is not of the trust domain %s, and only its own authority can vouch for it", clip(id), i.cfg.TrustDomain)
	}
	o.ID, o.Own = u, id == own
	if parts := strings.Split(u.Path, "/"); len(parts) > 3 && parts[1] == "ns" && label.MatchString(parts[2]) {
		o.Namespace = parts[2]
		if len(parts) == 5 && parts[3] == "svc" && label.MatchString(parts[4]) {
			o.Service = parts[4]
		}
	}
	return nil
}

// hosts refuses names that do not follow from the id.
func (i *Issuer) hosts(o *Order) error {
	t := o.template
	for n, h := range t.DNSNames {
		t.DNSNames[n] = strings.ToLower(h)
	}
	o.Hosts = slices.Clone(t.DNSNames)
	for _, ip := range t.IPAddresses {
		o.Hosts = append(o.Hosts, ip.String())
	}
	if len(o.Hosts) > maxHosts {
		return fault.Invalid("/csr", "asks for %d names and addresses; at most %d", len(o.Hosts), maxHosts)
	}
	var allowed []string
	if o.Service != "" {
		fill := strings.NewReplacer("{service}", o.Service, "{namespace}", o.Namespace)
		for _, pattern := range i.cfg.Hosts {
			allowed = append(allowed, fill.Replace(pattern))
		}
	}
	for _, h := range t.DNSNames {
		if !slices.Contains(allowed, h) {
			can := "none can be had"
			if len(allowed) > 0 {
				can = "what can be had is " + strings.Join(allowed, ", ")
			}
			return fault.New(fault.Forbidden, "the name %q does not follow from %s: %s", clip(h), clip(o.ID.String()), can)
		}
	}
	for _, ip := range t.IPAddresses {
		if !slices.ContainsFunc(i.addresses, func(r *net.IPNet) bool { return r.Contains(ip) }) {
			return fault.New(fault.Forbidden, "the address %s is not in the ranges that certificates may name here", ip)
		}
	}
	if n := slices.IndexFunc(o.Hosts, i.opt.Reserved); n >= 0 {
		return fault.New(fault.Forbidden, "%q is a node's own: a certificate for it could pass for the cluster", clip(o.Hosts[n]))
	}
	return nil
}

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}

// Permit says whether the caller's roles allow the certificate: one of its own
// id to whoever has a role there, and one of another id in a namespace to
// whoever may register instances in it. A certificate never has more roles, by
// the rules of access, than its caller has, and none but viewer and publisher.
// The error is forbidden.
func (o *Order) Permit(caller policy.Principal, access *identity.Access) error {
	if err := policy.Permit(caller, policy.Issue, Kind, o.Namespace); err != nil {
		return err
	}
	if !o.Own {
		if o.Namespace == "" {
			return fault.New(fault.Forbidden, "%s is in no namespace (/ns/NAMESPACE/…), so only who has proved to be it gets a certificate for it", clip(o.ID.String()))
		}
		if err := policy.Permit(caller, policy.Register, "instance", o.Namespace); err != nil {
			return fault.New(fault.Forbidden, "a certificate for another id than the caller's own takes what registering instances in its namespace does: %s", fault.From(err).Detail)
		}
	}
	if access == nil {
		return nil
	}
	grants, ok := access.Foretell(o.template)
	if !ok {
		return fault.New(fault.Forbidden, "the id or the key has been revoked; ask an operator")
	}
	for _, g := range grants {
		if role := slices.IndexFunc(g.Roles, func(r string) bool { return r != policy.Viewer && r != policy.Publisher }); role >= 0 {
			return fault.New(fault.Forbidden, "a role rule makes %s %s: certificates with more than viewer and publisher are made with muster tls issue", clip(o.ID.String()), g.Roles[role])
		}
		if !caller.Covers(policy.Grant(g)) {
			return fault.New(fault.Forbidden, "role rules give %s more than its caller has: %s", clip(o.ID.String()), describe(g))
		}
	}
	return nil
}

func describe(g identity.Grant) string {
	if len(g.Namespaces) == 0 {
		return strings.Join(g.Roles, ", ") + " in all namespaces"
	}
	return strings.Join(g.Roles, ", ") + " in " + strings.Join(g.Namespaces, ", ")
}

// Resource is the order as policies see it: of the payload, what the
// certificate would say.
func (o *Order) Resource() (policy.Resource, error) {
	sum := sha256.Sum256(o.csr.RawPublicKey())
	payload, err := json.Marshal(struct {
		ID        string   `json:"id"`
		Own       bool     `json:"own"`
		Service   string   `json:"service"`
		DNSNames  []string `json:"dns_names"`
		Addresses []string `json:"ip_addresses"`
		TTL       float64  `json:"ttl_seconds"`
		Algorithm string   `json:"key_algorithm"`
		Key       string   `json:"key_sha256"`
	}{o.ID.String(), o.Own, o.Service, o.template.DNSNames, o.Hosts[len(o.template.DNSNames):], o.TTL.Seconds(), o.csr.KeyAlgorithm(), hex.EncodeToString(sum[:])}, json.Deterministic(true))
	return policy.Resource{Kind: Kind, Namespace: o.Namespace, Name: cmp.Or(o.Service, o.template.Subject.CommonName), Payload: payload}, err
}

// asOrdered says what is wrong with a certificate, whoever signed it, and gives
// the trusted authority that leads to it.
func (i *Issuer) asOrdered(c *Certificate, o *Order, now time.Time) (*x509.Certificate, error) {
	leaf := c.Leaf
	names := slices.Clone(leaf.DNSNames)
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	want := slices.Sorted(slices.Values(o.Hosts))
	slices.Sort(names)
	switch {
	case !bytes.Equal(leaf.RawSubjectPublicKeyInfo, o.csr.RawPublicKey()):
		return nil, errors.New("it is for another key")
	case len(leaf.URIs) != 1 || leaf.URIs[0].String() != o.ID.String():
		return nil, fmt.Errorf("it is for %v instead of %s", leaf.URIs, o.ID)
	case !slices.Equal(names, want) || len(leaf.EmailAddresses) > 0:
		return nil, fmt.Errorf("it names %q instead of %q", append(names, leaf.EmailAddresses...), want)
	case leaf.Subject.CommonName != "" && leaf.Subject.CommonName != o.template.Subject.CommonName:
		return nil, fmt.Errorf("its common name is %q", leaf.Subject.CommonName)
	case leaf.IsCA || leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return nil, errors.New("it is a CA's")
	case leaf.NotAfter.After(now.Add(o.TTL + time.Minute)):
		return nil, fmt.Errorf("it lasts until %s, longer than was asked for", leaf.NotAfter.UTC().Format(time.RFC3339))
	case leaf.SerialNumber.Sign() <= 0:
		return nil, errors.New("it has no serial number by which it could be revoked")
	}
	chains, err := leaf.Verify(x509.VerifyOptions{Roots: i.opt.Trusted(), Intermediates: pki.Pool(c.Chain), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return nil, fmt.Errorf("the authorities in tls.ca and tls.workload_ca do not lead to it: %w", err)
	}
	return chains[0][len(chains[0])-1], nil
}
