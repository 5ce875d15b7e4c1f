package node

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/muster-registry/muster/identity/spiffe"
	"github.com/muster-registry/muster/pki"
	"github.com/muster-registry/muster/pki/issuer"
)

// credentials are the node's certificates and the CAs it believes, as they
// stood in the files at one time. They do not change.
type credentials struct {
	node    tls.Certificate
	clients tls.Certificate
	trusted []*x509.Certificate
	pool    *x509.CertPool

	workload []*x509.Certificate // authorities that count for workloads alone
	all      *x509.CertPool      // those, and the trusted ones
}

// certificates follow the files: what they hold counts from the next handshake
// on, and connections that are open stay.
type certificates struct {
	files   TLSSettings
	trust   *spiffe.Trust
	nodeID  string // of the certificate for other nodes: spiffe://<domain>/muster/node/<id>
	logger  *slog.Logger
	now     func() time.Time
	tickets *tickets
	issuer  *issuer.Issuer // of certificates for workloads; nil: there is none
	current atomic.Pointer[credentials]
	made    atomic.Pointer[listener]

	mu      sync.Mutex        // guards what follows
	seen    [sha256.Size]byte // the content of the files that is in use
	refused error             // why what the files hold now is not; nil: it is
	reloads uint64
	told    map[string]int // days before the end that were warned of last, by file
}

// openCertificates reads the files. They must fit together; a certificate whose
// time is over is told of and used all the same, so that a node starts to which
// a new one is on its way.
func openCertificates(t TLSSettings, nodeID, trustDomain string, trust *spiffe.Trust, logger *slog.Logger) (*certificates, error) {
	c := &certificates{files: t, trust: trust, nodeID: "spiffe://" + trustDomain + "/muster/node/" + nodeID, logger: logger, now: time.Now, tickets: newTickets(), told: map[string]int{}}
	content, sum, err := c.read()
	if err != nil {
		return nil, err
	}
	cr, err := c.parse(content)
	if err != nil {
		return nil, err
	}
	if err := c.expired(cr); err != nil {
		logger.Error("the node starts with a certificate that others do not accept", "error", err)
	}
	c.seen = sum
	c.use(cr)
	c.warn()
	return c, nil
}

// tlsFiles are the contents of the files that the settings name.
type tlsFiles struct{ ca, cert, key, controlCert, controlKey, workloadCA []byte }

func (c *certificates) read() (f tlsFiles, sum [sha256.Size]byte, err error) {
	h := sha256.New()
	for _, one := range []struct {
		setting, file string
		to            *[]byte
	}{
		{"tls.ca", c.files.CA, &f.ca}, {"tls.cert", c.files.Cert, &f.cert}, {"tls.key", c.files.Key, &f.key},
		{"tls.control_cert", c.files.ControlCert, &f.controlCert}, {"tls.control_key", c.files.ControlKey, &f.controlKey},
		{"tls.workload_ca", c.files.WorkloadCA, &f.workloadCA},
	} {
		if one.file == "" {
			continue
		}
		if *one.to, err = os.ReadFile(one.file); err != nil {
			return f, sum, fmt.Errorf("%s: %w", one.setting, err)
		}
		part := sha256.Sum256(*one.to)
		h.Write(part[:])
	}
	return f, [sha256.Size]byte(h.Sum(nil)), nil
}

func (c *certificates) parse(f tlsFiles) (*credentials, error) {
	cr := &credentials{}
	var err error
	if cr.trusted, err = pki.DecodeCertificates(f.ca); err != nil {
		return nil, fmt.Errorf("tls.ca: %s: %w", c.files.CA, err)
	}
	cr.pool = pki.Pool(cr.trusted)
	if c.files.WorkloadCA != "" {
		if cr.workload, err = pki.DecodeCertificates(f.workloadCA); err != nil {
			return nil, fmt.Errorf("tls.workload_ca: %s: %w", c.files.WorkloadCA, err)
		}
	}
	cr.all = pki.Pool(slices.Concat(cr.trusted, cr.workload))
	if cr.node, err = tls.X509KeyPair(f.cert, f.key); err != nil {
		return nil, fmt.Errorf("tls.cert, tls.key: %w", err)
	}
	if err := c.usable(cr.node.Leaf, cr.node.Certificate[1:], cr.pool); err != nil {
		return nil, fmt.Errorf("tls.cert: %w", err)
	}
	cr.clients = cr.node
	if c.files.ControlCert != "" {
		if cr.clients, err = tls.X509KeyPair(f.controlCert, f.controlKey); err != nil {
			return nil, fmt.Errorf("tls.control_cert, tls.control_key: %w", err)
		}
	}
	return cr, nil
}

// usable says whether other nodes would believe the node's certificate, its
// dates apart.
func (c *certificates) usable(leaf *x509.Certificate, chain [][]byte, roots *x509.CertPool) error {
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != c.nodeID {
		return fmt.Errorf("it must carry exactly the URI %s, and carries %v; make it with: muster tls issue --node", c.nodeID, leaf.URIs)
	}
	inter := x509.NewCertPool()
	for _, der := range chain {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		inter.AddCert(cert)
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		at := leaf.NotBefore.Add(time.Second)
		if now := c.now(); now.After(leaf.NotBefore) && now.Before(leaf.NotAfter) {
			at = now
		}
		_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{usage}})
		if err != nil {
			return fmt.Errorf("it is not accepted with the authorities in tls.ca; muster tls verify FILE says more: %w", err)
		}
	}
	return nil
}

// expired says which certificate is not valid now.
func (c *certificates) expired(cr *credentials) error {
	now := c.now()
	for _, leaf := range []*x509.Certificate{cr.node.Leaf, cr.clients.Leaf} {
		if now.After(leaf.NotAfter) || now.Before(leaf.NotBefore) {
			return fmt.Errorf("the certificate %q is valid from %s to %s, which is not now", leaf.Subject,
				leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339))
		}
	}
	return nil
}

// reload looks at the files, and takes what is new in them if it is good. What
// is not is told of once, and what was taken before stays.
func (c *certificates) reload() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	content, sum, err := c.read()
	if err == nil && c.refused == nil && sum == c.seen {
		return nil
	}
	var cr *credentials
	if err == nil {
		if cr, err = c.parse(content); err == nil {
			err = c.expired(cr)
		}
	}
	if err != nil {
		if c.refused == nil || c.refused.Error() != err.Error() {
			c.logger.Error("new certificates are refused; those from before stay in use", "error", err)
		}
		c.refused = err
		return err
	}
	c.seen, c.refused = sum, nil
	c.use(cr)
	c.reloads++
	c.told = map[string]int{}
	c.logger.Info("new certificates are in use", "not_after", cr.node.Leaf.NotAfter, "serial", fmt.Sprintf("%x", cr.node.Leaf.SerialNumber),
		"authorities", len(cr.trusted))
	return nil
}

// peer is what the ports between nodes use.
func (c *certificates) peer() (*tls.Certificate, *x509.CertPool) {
	cr := c.current.Load()
	return &cr.node, cr.pool
}

func (c *certificates) use(cr *credentials) {
	c.current.Store(cr)
	c.trust.SetOwn(cr.trusted, cr.workload)
}

// listener is the TLS side of the ports for clients, made of credentials and of
// the authorities of all trust domains.
type listener struct {
	from   *credentials
	pool   *x509.CertPool
	config *tls.Config
}

// control is the TLS side of the ports for clients: a client certificate is
// asked for, and one that is shown must be valid by the authorities of the trust
// domain that it names.
func (c *certificates) control() *tls.Config {
	base := c.listener().Clone()
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return c.listener(), nil }
	return base
}

// listener gives the same configuration until something in it changes.
func (c *certificates) listener() *tls.Config {
	cr, pool := c.current.Load(), c.trust.Pool()
	if l := c.made.Load(); l != nil && l.from == cr && l.pool == pool {
		return l.config
	}
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cr.clients},
		Time:       func() time.Time { return c.now() },
		ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: pool, NextProtos: []string{"h2", "http/1.1"},
		// The pool is of all domains: which of them signed is looked at here, at
		// each handshake, resumed ones too.
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return nil
			}
			return c.trust.VerifyChain(cs.PeerCertificates)
		},
	}
	if c.files.MinVersion == "1.2" {
		cfg.MinVersion = tls.VersionTLS12
	}
	c.tickets.share(cfg)
	c.made.Store(&listener{cr, pool, cfg})
	return cfg
}

// listed is a certificate in use, as metrics and health name it.
type listed struct {
	listener string // control, peer, ca, workload_ca, issuer
	cert     *x509.Certificate
}

// list gives the certificates in use; of several authorities the one that ends
// first, and of a chain what ends first.
func (c *certificates) list() []listed {
	cr := c.current.Load()
	all := []listed{{"control", first(cr.clients)}, {"peer", first(cr.node)}, {"ca", soonest(cr.trusted)}}
	if cr.workload != nil {
		all = append(all, listed{"workload_ca", soonest(cr.workload)})
	}
	if c.issuer != nil {
		if chain, err := c.issuer.Authority(); err == nil && chain != nil {
			all = append(all, listed{"issuer", soonest(chain)})
		}
	}
	return all
}

// authority says why nobody would believe the authority that makes certificates
// of workloads; nil where all is well, there is none, or it is outside.
func (c *certificates) authority() error {
	if c.issuer == nil {
		return nil
	}
	chain, err := c.issuer.Authority()
	if err != nil || chain == nil {
		return err
	}
	_, err = chain[0].Verify(x509.VerifyOptions{Roots: c.current.Load().all, Intermediates: pki.Pool(chain[1:]), CurrentTime: c.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return fmt.Errorf("certificates.cert is not an authority that tls.ca or tls.workload_ca leads to, so nobody would accept what it signs: %w", err)
	}
	return nil
}

func first(chain tls.Certificate) *x509.Certificate {
	all := []*x509.Certificate{chain.Leaf}
	for _, der := range chain.Certificate[1:] {
		if cert, err := x509.ParseCertificate(der); err == nil {
			all = append(all, cert)
		}
	}
	return soonest(all)
}

func soonest(certs []*x509.Certificate) *x509.Certificate {
	end := certs[0]
	for _, cert := range certs[1:] {
		if cert.NotAfter.Before(end.NotAfter) {
			end = cert
		}
	}
	return end
}

// warnDays are the days before a certificate's end on which it is told of.
var warnDays = []int{30, 7, 1, 0}

// warn tells of certificates that will soon be over, once for each step.
func (c *certificates) warn() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.list() {
		left := l.cert.NotAfter.Sub(c.now())
		step := -1
		for _, d := range warnDays {
			// A certificate made for a short time is told of in its last third.
			if within := time.Duration(d) * 24 * time.Hour; left <= within && (d == 0 || left <= l.cert.NotAfter.Sub(l.cert.NotBefore)/3) {
				step = d
			}
		}
		if last, ok := c.told[l.listener]; step < 0 || ok && last <= step {
			continue
		}
		c.told[l.listener] = step
		if left <= 0 {
			c.logger.Error("a certificate has expired", "listener", l.listener, "not_after", l.cert.NotAfter, "subject", l.cert.Subject.String())
			continue
		}
		c.logger.Warn("a certificate expires soon", "listener", l.listener, "not_after", l.cert.NotAfter, "days", int(left.Hours()/24), "subject", l.cert.Subject.String())
	}
}

// health has a line for each certificate in use.
func (c *certificates) health() (lines []string) {
	for _, l := range c.list() {
		left := l.cert.NotAfter.Sub(c.now())
		mark, says := "[+]", fmt.Sprintf("expires in %s", days(left))
		if left <= 0 {
			mark, says = "[!]", "has expired"
		} else if left <= 7*24*time.Hour && left <= l.cert.NotAfter.Sub(l.cert.NotBefore)/3 {
			mark = "[!]"
		}
		lines = append(lines, fmt.Sprintf("%s certificate of %s %s, on %s", mark, l.listener, says, l.cert.NotAfter.UTC().Format(time.RFC3339)))
	}
	trusted := c.current.Load().trusted
	if len(trusted) > 1 {
		lines = append(lines, fmt.Sprintf("[+] %d authorities are trusted", len(trusted)))
	}
	if err := c.authority(); err != nil {
		lines = append(lines, "[!] no certificates are issued: "+oneLine(err))
	}
	lines = append(lines, c.trust.Health()...)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refused != nil {
		lines = append(lines, "[!] new certificates are refused: "+oneLine(c.refused))
	}
	return lines
}

func days(d time.Duration) string {
	if d < 48*time.Hour {
		return d.Round(time.Minute).String()
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", " ") }
