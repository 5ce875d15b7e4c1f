package node

import (
	"github.com/muster-registry/muster/identity/spiffe"
)

// SPIFFESettings say whose SVIDs are believed beside the cluster's own trust
// domain, and whom a JWT-SVID must be for.
type SPIFFESettings struct {
	Audiences    []string              `yaml:"audiences"` // of JWT-SVIDs; none: none is believed
	TrustDomains []TrustDomainSettings `yaml:"trust_domains"`
}

// TrustDomainSettings are one trust domain and the place of its bundle.
type TrustDomainSettings struct {
	Name       string `yaml:"name"`
	BundleFile string `yaml:"bundle_file"`
	BundleURL  string `yaml:"bundle_url"`
	Profile    string `yaml:"profile"`     // https_web, https_spiffe
	EndpointID string `yaml:"endpoint_id"` // of the endpoint, with https_spiffe
	CAFile     string `yaml:"ca_file"`     // of the endpoint, with https_web
}

func (s *SPIFFESettings) paths() (out []*string) {
	for i := range s.TrustDomains {
		out = append(out, &s.TrustDomains[i].BundleFile, &s.TrustDomains[i].CAFile)
	}
	return out
}

func (s *SPIFFESettings) domains() (out []spiffe.Domain) {
	for _, d := range s.TrustDomains {
		out = append(out, spiffe.Domain(d))
	}
	return out
}

// openTrust makes what says which authorities count for whom.
func (n *Node) openTrust() (err error) {
	n.trust, err = spiffe.New(spiffe.Options{
		Own: n.cfg.Cluster.TrustDomain, Domains: n.cfg.Identity.SPIFFE.domains(), Audiences: n.cfg.Identity.SPIFFE.Audiences,
		Logger: n.logger, Now: n.clock.Now,
	})
	return err
}
