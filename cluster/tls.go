package cluster

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
)

// The protocols of the peer port, told apart by ALPN.
const (
	protoRaft = "muster-raft"
	protoPeer = "h2"
)

// nodeID returns the id a certificate gives its bearer, which must be a node
// of the trust domain: spiffe://<trust-domain>/muster/node/<id>, alone.
func nodeID(cert *x509.Certificate, trustDomain string) (string, error) {
	if len(cert.URIs) != 1 {
		return "", fmt.Errorf("the certificate of %q names %d URIs, a node's names one", cert.Subject.CommonName, len(cert.URIs))
	}
	name := cert.URIs[0].String()
	id, ok := strings.CutPrefix(name, "spiffe://"+trustDomain+"/muster/node/")
	if !ok || id == "" || strings.ContainsAny(id, "/?#") {
		return "", fmt.Errorf("%s is not a node of %s", name, trustDomain)
	}
	return id, nil
}

// serverTLS is asked at every handshake, so that a new certificate or CA
// counts from the next connection on.
func (cfg *Config) serverTLS() *tls.Config {
	base := &tls.Config{MinVersion: tls.VersionTLS13}
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		cert, roots := cfg.Credentials()
		if cert == nil || roots == nil {
			return nil, errors.New("the node has no certificate or no CA")
		}
		return &tls.Config{
			MinVersion:   tls.VersionTLS13,
			Certificates: []tls.Certificate{*cert},
			ClientAuth:   tls.RequireAndVerifyClientCert,
			ClientCAs:    roots,
			NextProtos:   []string{protoRaft, protoPeer},
			// A resumed session would outlive the trust it was made under.
			SessionTicketsDisabled: true,
			VerifyConnection: func(cs tls.ConnectionState) error {
				if _, err := nodeID(cs.PeerCertificates[0], cfg.TrustDomain); err != nil {
					return err
				}
				return cfg.unrevoked(cs.PeerCertificates[0])
			},
		}, nil
	}
	return base
}

// clientTLS dials a node whose id must be want. Addresses are not checked
// against the certificate: identity is apart from address.
func (cfg *Config) clientTLS(want, proto string) (*tls.Config, error) {
	cert, roots := cfg.Credentials()
	if cert == nil || roots == nil {
		return nil, errors.New("the node has no certificate or no CA")
	}
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		Certificates:       []tls.Certificate{*cert},
		NextProtos:         []string{proto},
		InsecureSkipVerify: true, // for the host name only; the chain and the identity are verified below
		VerifyConnection: func(cs tls.ConnectionState) error {
			chain := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool()}
			for _, c := range cs.PeerCertificates[1:] {
				chain.Intermediates.AddCert(c)
			}
			if _, err := cs.PeerCertificates[0].Verify(chain); err != nil {
				return err
			}
			id, err := nodeID(cs.PeerCertificates[0], cfg.TrustDomain)
			if err != nil {
				return err
			}
			if id != want {
				return fmt.Errorf("the node there is %q, not %q", id, want)
			}
			if cs.NegotiatedProtocol != proto {
				return fmt.Errorf("the node there does not speak %s", proto)
			}
			return cfg.unrevoked(cs.PeerCertificates[0])
		},
	}, nil
}
