package node

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
)

// certificates are the node's own and the CAs it believes.
type certificates struct {
	node    *tls.Certificate
	clients *tls.Certificate
	pool    *x509.CertPool
}

func loadCertificates(t TLSSettings) (*certificates, error) {
	pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
	if err != nil {
		return nil, fmt.Errorf("tls.cert, tls.key: %w", err)
	}
	pem, err := os.ReadFile(t.CA)
	if err != nil {
		return nil, fmt.Errorf("tls.ca: %w", err)
	}
	c := &certificates{node: &pair, clients: &pair, pool: x509.NewCertPool()}
	if !c.pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("tls.ca: %s holds no PEM certificate", t.CA)
	}
	if t.ControlCert != "" {
		own, err := tls.LoadX509KeyPair(t.ControlCert, t.ControlKey)
		if err != nil {
			return nil, fmt.Errorf("tls.control_cert, tls.control_key: %w", err)
		}
		c.clients = &own
	}
	return c, nil
}

func (c *certificates) peer() (*tls.Certificate, *x509.CertPool) { return c.node, c.pool }

// control is the TLS side of the control port: a client certificate is asked
// for, and one that is shown must be valid.
func (c *certificates) control(minVersion string) *tls.Config {
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*c.clients},
		ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: c.pool,
	}
	if minVersion == "1.2" {
		cfg.MinVersion = tls.VersionTLS12
	}
	return cfg
}
