package node

import (
	"crypto/x509"
	"errors"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/muster-registry/muster/api/rest"
	"github.com/muster-registry/muster/audit"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/pki/issuer"
)

// CertificateSettings say whether this node makes certificates for workloads,
// and with which authority. Nodes can differ: each makes its own.
type CertificateSettings struct {
	Signer    string        `yaml:"signer"` // off, file, agent, vault
	Cert      string        `yaml:"cert"`   // the authority's, and what is between it and its root
	Key       string        `yaml:"key"`    // with file
	Socket    string        `yaml:"socket"` // with agent
	Vault     VaultSettings `yaml:"vault"`
	TTL       time.Duration `yaml:"ttl"`       // the longest
	Hosts     []string      `yaml:"hosts"`     // DNS names of services, made of {service} and {namespace}
	Addresses []string      `yaml:"addresses"` // ranges of IP addresses that a certificate may name
}

// VaultSettings are those of a PKI secrets engine of Vault's.
type VaultSettings struct {
	Address   string `yaml:"address"`
	Mount     string `yaml:"mount"`
	Role      string `yaml:"role"`
	TokenFile string `yaml:"token_file"`
	CAFile    string `yaml:"ca_file"`
}

func certificateDefaults() CertificateSettings {
	return CertificateSettings{Signer: Off, Vault: VaultSettings{Mount: "pki"}, TTL: 24 * time.Hour, Hosts: []string{"{service}.{namespace}.svc.muster"}}
}

func (s *CertificateSettings) paths() []*string {
	return []*string{&s.Cert, &s.Key, &s.Socket, &s.Vault.TokenFile, &s.Vault.CAFile}
}

func (s *CertificateSettings) config(trustDomain string) issuer.Config {
	return issuer.Config{
		Signer: s.Signer, Cert: s.Cert, Key: s.Key, Socket: s.Socket, Vault: issuer.VaultConfig(s.Vault),
		TrustDomain: trustDomain, TTL: s.TTL, Hosts: s.Hosts, Addresses: s.Addresses,
	}
}

func (c *Config) validateCertificates() (errs []error) {
	err := issuer.Validate(c.Certificates.config(c.Cluster.TrustDomain))
	if err == nil {
		return nil
	}
	for line := range strings.Lines(err.Error()) {
		errs = append(errs, errors.New("certificates."+strings.TrimSuffix(line, "\n")))
	}
	return errs
}

// openIssuer makes what issues certificates, where the configuration wants it.
// With an authority that nobody would believe the node starts all the same, and
// hands out nothing: the registry must not wait for it.
func (n *Node) openIssuer() (err error) {
	if s := n.cfg.Certificates.Signer; s == Off || s == "" {
		return nil
	}
	n.issuer, err = issuer.New(n.cfg.Certificates.config(n.cfg.Cluster.TrustDomain), issuer.Options{
		Trusted:  func() *x509.CertPool { return n.certs.current.Load().all },
		Reserved: n.ownHost, Logger: n.logger, Now: time.Now,
	})
	if err != nil {
		return err
	}
	n.certs.issuer = n.issuer
	if err := n.certs.authority(); err != nil {
		n.logger.Error("this node issues no certificates", "error", err)
	}
	n.metrics.reg.MustRegister(n.issuer.Collectors()...)
	return nil
}

// ownHost says whether a name or an address is one that callers of the cluster
// connect to: one in this node's certificates, or one that a member advertises.
func (n *Node) ownHost(host string) bool {
	cr := n.certs.current.Load()
	for _, leaf := range []*x509.Certificate{cr.node.Leaf, cr.clients.Leaf} {
		if leaf.VerifyHostname(host) == nil || slices.Contains(leaf.DNSNames, host) {
			return true
		}
	}
	for _, m := range n.cluster.Members() {
		for _, address := range []string{m.Address, m.Meta["control"]} {
			if at, _, err := net.SplitHostPort(address); err == nil && strings.EqualFold(at, host) {
				return true
			}
		}
	}
	return false
}

// issuance puts a certificate on record. Before one is signed, it says whether
// it could be.
func (n *Node) issuance(it *rest.Issuance) error {
	if err := n.auditable(); err != nil || it.Certificate == nil {
		return err
	}
	leaf := it.Certificate.Leaf
	e := audit.Entry{
		Time: time.Now(), Type: audit.Issued, Principal: it.Who.ID, Source: it.Source, Action: it.Operation, Record: "certificate " + short(it.Order.ID.String()),
		DecisionID: it.DecisionID, PolicyRevision: it.PolicyRevision, RequestID: it.RequestID, TraceID: it.TraceID, Outcome: audit.Applied,
		Serial: it.Certificate.Serial(), Names: append([]string{it.Order.ID.String()}, it.Order.Hosts...), NotAfter: leaf.NotAfter,
	}
	if by := it.Who.Credential.Certificate; by != nil {
		e.Shown = by.SerialNumber.Text(16)
	}
	n.logger.Info("a certificate was issued", "id", it.Order.ID.String(), "serial", e.Serial, "principal", e.Principal, "not_after", leaf.NotAfter, "request_id", it.RequestID)
	if n.trail == nil {
		return nil
	}
	n.trail.Issued(e)
	if err := n.auditable(); err != nil {
		return fault.Wrap(fault.NotReady, err, "the certificate could not be put on record, and was not handed out")
	}
	return nil
}
