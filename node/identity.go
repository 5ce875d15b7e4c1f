package node

import (
	"fmt"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/muster-registry/muster/identity"
	"github.com/muster-registry/muster/identity/provider"
)

// IdentitySettings say whose tokens are believed beside muster's own. They
// should be the same on all nodes.
type IdentitySettings struct {
	Providers    []ProviderSettings `yaml:"providers"`
	SessionCache Size               `yaml:"session_cache"` // memory for tokens that were proven
	SPIFFE       SPIFFESettings     `yaml:"spiffe"`
}

// ProviderSettings are one identity provider. What is not set has the default
// of provider.Defaults.
type ProviderSettings struct {
	Name             string        `yaml:"name"`
	Kind             string        `yaml:"kind"` // oidc, jwt, introspection
	Issuer           string        `yaml:"issuer"`
	Audiences        []string      `yaml:"audiences"`
	Algorithms       []string      `yaml:"algorithms"`
	Claims           ClaimSettings `yaml:"claims"`
	JWKSFile         string        `yaml:"jwks_file"`
	JWKSURL          string        `yaml:"jwks_url"`
	KeyMaxAge        time.Duration `yaml:"key_max_age"`
	IntrospectionURL string        `yaml:"introspection_url"`
	ClientID         string        `yaml:"client_id"`
	ClientSecretFile string        `yaml:"client_secret_file"`
	CAFile           string        `yaml:"ca_file"`
	Insecure         bool          `yaml:"insecure"`
	SessionTTL       time.Duration `yaml:"session_ttl"`
	ClockSkew        time.Duration `yaml:"clock_skew"`
}

// ClaimSettings say what claims mean.
type ClaimSettings struct {
	Subject string `yaml:"subject"` // names the caller
}

func (s *IdentitySettings) paths() (out []*string) {
	for i := range s.Providers {
		p := &s.Providers[i]
		out = append(out, &p.JWKSFile, &p.ClientSecretFile, &p.CAFile)
	}
	return append(out, s.SPIFFE.paths()...)
}

// complete reads the secrets and makes what the room takes. The environment's
// MUSTER_IDENTITY_<NAME>_CLIENT_SECRET wins over the file.
func (s *IdentitySettings) complete(env func(string) string) ([]provider.Config, error) {
	var out []provider.Config
	for _, p := range s.Providers {
		name := "MUSTER_IDENTITY_" + strings.ToUpper(strings.ReplaceAll(p.Name, "-", "_")) + "_CLIENT_SECRET"
		text, err := secret(env, name, fmt.Sprintf("identity.providers[%s].client_secret_file", p.Name), "", p.ClientSecretFile)
		if err != nil {
			return nil, err
		}
		out = append(out, provider.Config{
			Name: p.Name, Kind: p.Kind, Issuer: p.Issuer, Audiences: p.Audiences, Algorithms: p.Algorithms, Subject: p.Claims.Subject,
			JWKSFile: p.JWKSFile, JWKSURL: p.JWKSURL, KeyMaxAge: p.KeyMaxAge,
			IntrospectionURL: p.IntrospectionURL, ClientID: p.ClientID, ClientSecret: text,
			CAFile: p.CAFile, Insecure: p.Insecure, SessionTTL: p.SessionTTL, ClockSkew: p.ClockSkew,
		})
	}
	return out, provider.Validate(out)
}

// wireProviders makes the identity providers; nil where there are none.
func (n *Node) wireProviders(reg prometheus.Registerer) (err error) {
	if len(n.cfg.Secrets.Providers) == 0 {
		return nil
	}
	n.providers, err = provider.New(n.cfg.Secrets.Providers, provider.Options{
		SessionBytes: int64(n.cfg.Identity.SessionCache), Logger: n.logger, Registerer: reg,
	})
	return err
}

// verifier is an interface without a value where nobody's tokens are believed
// but muster's own.
func (n *Node) verifier() identity.Verifier {
	if n.providers == nil {
		return n.trust.Outside(nil)
	}
	return n.trust.Outside(n.providers)
}
