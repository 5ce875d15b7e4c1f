package node

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/audit"
	"github.com/muster-registry/muster/audit/mirror"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/egress"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/identity"
)

// MirrorSettings say where the audit trail is mirrored to.
type MirrorSettings struct {
	Type        string        `yaml:"type"`         // syslog, http, otlp; "": it is not
	Address     string        `yaml:"address"`      // of syslog, host:port
	URL         string        `yaml:"url"`          // of http and otlp
	CA          string        `yaml:"ca"`           // PEM; default: the system's
	Cert        string        `yaml:"cert"`         // this node's, for the sink
	Key         string        `yaml:"key"`          //
	HeadersFile string        `yaml:"headers_file"` // lines "Name: value", sent with each call of http and otlp
	Insecure    bool          `yaml:"insecure"`     // allows http://
	Compression string        `yaml:"compression"`  // of http and otlp: gzip, none; "": gzip
	Allow       []string      `yaml:"allow"`        // addresses and ranges that are not public and may be connected to
	Spool       Size          `yaml:"spool"`        // of lines on disk, while the sink is away
	Timeout     time.Duration `yaml:"timeout"`      // of one call
	Mask        []string      `yaml:"mask"`         // headers that are carried without their values, beside those of credentials
	OnFailure   string        `yaml:"on_failure"`   // refuse_writes, continue: when the spool is full
}

// The sinks of a mirror.
const (
	syslogSink = "syslog"
	httpSink   = "http"
	otlpSink   = "otlp"
)

// uncompressed is the setting of a sink that is posted what there is as it is.
const uncompressed = "none"

func mirrorDefaults() MirrorSettings {
	return MirrorSettings{Spool: 1 << 30, Timeout: 10 * time.Second, OnFailure: refuseWrites}
}

func (s *MirrorSettings) paths() []*string {
	return []*string{&s.CA, &s.Cert, &s.Key, &s.HeadersFile}
}

func (s *MirrorSettings) validate() (errs []error) {
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf("audit.mirror."+format, args...)) }
	switch s.Type {
	case "":
		if !reflect.DeepEqual(*s, mirrorDefaults()) {
			wrong("type: is needed where anything else of audit.mirror is set")
		}
		return errs
	case syslogSink:
		if s.URL != "" || s.HeadersFile != "" || s.Insecure || s.Compression != "" {
			wrong("type: syslog takes an address, and no url, headers_file, insecure or compression: it is always over TLS")
		}
	case httpSink, otlpSink:
		if s.Address != "" {
			wrong("type: %s takes a url, and no address", s.Type)
		}
	default:
		wrong("type: %q is none of syslog, http, otlp", s.Type)
		return errs
	}
	allow, err := egress.Prefixes(s.Allow)
	if err != nil {
		wrong("allow: %w", err)
	} else if err := s.reachable(&egress.Dialer{Allow: allow}); err != nil {
		errs = append(errs, err)
	}
	switch s.Compression {
	case "", "gzip", uncompressed:
	default:
		wrong("compression: %q is none of gzip, none", s.Compression)
	}
	if (s.Cert == "") != (s.Key == "") {
		wrong("cert and audit.mirror.key belong together; set both or none")
	}
	if s.Spool < 64<<10 {
		wrong("spool: %s is too small; at least 64KiB", s.Spool)
	}
	if s.Timeout < 100*time.Millisecond {
		wrong("timeout: %s is too short; at least 100ms", s.Timeout)
	}
	switch s.OnFailure {
	case refuseWrites, continueOn:
	default:
		wrong("on_failure: %q is none of refuse_writes, continue", s.OnFailure)
	}
	return errs
}

// reachable checks where the sink is, as far as that can be told without asking.
func (s *MirrorSettings) reachable(d *egress.Dialer) error {
	name, to := "address", ""
	if s.Type == syslogSink {
		var err error
		if to, err = splitAddress(s.Address); err != nil {
			return fmt.Errorf("audit.mirror.address: %w, such as siem.example.com:6514", err)
		}
	} else {
		name = "url"
		u, err := url.Parse(s.URL)
		switch {
		case err != nil || u.Hostname() == "" || u.Scheme != "https" && u.Scheme != "http":
			return errors.New("audit.mirror.url: is not a URL such as https://siem.example.com/events")
		case u.User != nil:
			return errors.New("audit.mirror.url: put the credential into audit.mirror.headers_file")
		case u.Scheme == "http" && !s.Insecure:
			return errors.New("audit.mirror.url: would send lines that anybody on the way can read; use https, or set audit.mirror.insecure")
		}
		to = u.Hostname()
	}
	if err := d.CheckHost(to); err != nil {
		return fmt.Errorf("audit.mirror.%s: %w: list it in audit.mirror.allow", name, err)
	}
	return nil
}

func (s *MirrorSettings) tls() (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.CA != "" {
		pem, err := os.ReadFile(s.CA)
		if err != nil {
			return nil, fmt.Errorf("audit.mirror.ca: %w", err)
		}
		if cfg.RootCAs = x509.NewCertPool(); !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("audit.mirror.ca: %s holds no PEM certificate", s.CA)
		}
	}
	if s.Cert != "" {
		pair, err := tls.LoadX509KeyPair(s.Cert, s.Key)
		if err != nil {
			return nil, fmt.Errorf("audit.mirror.cert, audit.mirror.key: %w", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

// sink makes the one that is configured.
func (s *MirrorSettings) sink(node, version string) (mirror.Sink, error) {
	allow, err := egress.Prefixes(s.Allow)
	if err != nil {
		return nil, err
	}
	secure, err := s.tls()
	if err != nil {
		return nil, err
	}
	dialer := &egress.Dialer{Allow: allow}
	if s.Type == syslogSink {
		secure.ServerName, _, _ = net.SplitHostPort(s.Address)
		return mirror.NewSyslog(mirror.SyslogOptions{Address: s.Address, Dialer: dialer, TLS: secure}), nil
	}
	o := mirror.HTTPOptions{URL: s.URL, Dialer: dialer, TLS: secure, Plain: s.Compression == uncompressed, Node: node, Version: version}
	if s.HeadersFile != "" {
		o.Headers = func() (map[string]string, error) {
			b, err := os.ReadFile(s.HeadersFile)
			if err != nil {
				return nil, fmt.Errorf("audit.mirror.headers_file: %w", err)
			}
			return headers("audit.mirror.headers_file", string(b))
		}
		if _, err := o.Headers(); err != nil {
			return nil, err
		}
	}
	if s.Type == otlpSink {
		return mirror.NewOTLP(o), nil
	}
	return mirror.NewHTTP(o), nil
}

// mirrored is the mirror of this node's trail, and what it knows of the calls
// whose changes are on their way. A nil mirrored is one that is off.
type mirrored struct {
	*mirror.Mirror
	masker   *mirror.Masker
	refusing bool // changes, when the spool is full

	mu     sync.Mutex // guards all below
	known  map[callKey]taken
	calls  uint64               // that were taken
	oldest uint64               // of those that may be known
	ring   [maxRequests]callKey // by number; zero: its change has come, and it is one of spent
	spent  [maxSpent]spent
	next   int // of spent
	bytes  int // of known
}

// callKey names a call: ids are made by callers, who may send the same.
type callKey struct{ principal, id string }

// taken is a call that this node took, and its number.
type taken struct {
	request audit.Rendered
	number  uint64
}

// spent is a call whose change has come. Another may follow.
type spent struct {
	key    callKey
	number uint64
}

// Requests are forgotten when they become too many: of what is refused or lost,
// no change comes. Four times as many are kept as are under way at one time
// (limits.changes), and of those whose change has come only the last: a small map
// is a fast one.
const (
	maxRequests     = 1 << 12
	maxSpent        = 1 << 8
	maxRequestBytes = 16 << 20
)

func (n *Node) openMirror(dir string, reg prometheus.Registerer) error {
	s := n.cfg.Audit.Mirror
	if s.Type == "" {
		return nil
	}
	sink, err := s.sink(n.cfg.NodeID, n.version)
	if err != nil {
		return err
	}
	x, err := mirror.Open(mirror.Options{Sink: sink, Dir: filepath.Join(dir, "mirror"), Bound: int64(s.Spool), Timeout: s.Timeout, Logger: n.logger}, mirror.NewMetrics(reg))
	if err != nil {
		return fmt.Errorf("audit.mirror: %w", err)
	}
	n.mirror = &mirrored{Mirror: x, masker: mirror.NewMasker(s.Mask), refusing: s.OnFailure == refuseWrites, known: map[callKey]taken{}}
	return nil
}

// trail is the mirror as the trail sees it.
func (m *mirrored) trail() audit.Mirror {
	if m == nil {
		return nil
	}
	return m.Mirror
}

func (m *mirrored) close() error {
	if m == nil {
		return nil
	}
	return m.Close()
}

func (m *mirrored) health() []string {
	if m == nil {
		return nil
	}
	return []string{m.Health()}
}

// full refuses changes that would not reach the sink.
func (m *mirrored) full() error {
	if m == nil || !m.refusing {
		return nil
	}
	if err := m.Full(); err != nil {
		return fault.New(fault.NotReady, "%s, so this node takes no changes; its log says why. Try again later, or another node", err)
	}
	return nil
}

// form is a call that was refused or answered; nil: nobody wants to see it.
func (m *mirrored) form(f *door.Form) audit.Request {
	if m == nil {
		return nil
	}
	return formed{m.masker, f}
}

// formed is a call that is rendered when its line is: of many at once, that costs
// half as much.
type formed struct {
	masker *mirror.Masker
	form   *door.Form
}

// AppendJSON implements [audit.Request].
func (r formed) AppendJSON(to []byte) []byte {
	f := r.form
	return r.masker.Append(to, &mirror.Request{Method: f.Method, Path: identity.Mask(f.Path), Host: f.Host, Scheme: f.Scheme, Source: f.Source, Fields: f.Headers})
}

// called keeps a call that may lead to a change, until took.
func (m *mirrored) called(in *command.Intent) {
	if m == nil || in.Request == nil || in.RequestId == "" {
		return
	}
	r := in.Request
	b := m.masker.Render(&mirror.Request{Method: r.Method, Path: identity.Mask(r.Path), Host: r.Host, Scheme: r.Scheme, Source: r.SourceAddress, Headers: func(yield func(string, string) bool) {
		for i := 0; i+1 < len(r.Headers); i += 2 {
			if !yield(r.Headers[i], r.Headers[i+1]) {
				return
			}
		}
	}})
	key := callKey{in.Principal.GetId(), in.RequestId}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bytes += len(b) - len(m.known[key].request)
	m.known[key] = taken{b, m.calls}
	m.ring[m.calls%maxRequests] = key
	for m.calls++; m.calls-m.oldest == maxRequests || m.bytes > maxRequestBytes && m.oldest < m.calls; m.oldest++ {
		m.forget(m.ring[m.oldest%maxRequests], m.oldest)
	}
}

// forget drops a call, unless another came meanwhile under the same name.
func (m *mirrored) forget(key callKey, number uint64) {
	if key == (callKey{}) {
		return
	}
	if c, ok := m.known[key]; ok && c.number == number {
		m.bytes -= len(c.request)
		delete(m.known, key)
	}
}

// took gives the call behind a change, where this node took it. Of one call
// there may be several changes.
func (m *mirrored) took(principal, id string) audit.Request {
	if m == nil || id == "" {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	key := callKey{principal, id}
	c, ok := m.known[key]
	if !ok {
		return nil
	}
	if waits := &m.ring[c.number%maxRequests]; *waits != (callKey{}) {
		*waits = callKey{}
		s := &m.spent[m.next]
		m.next = (m.next + 1) % maxSpent
		m.forget(s.key, s.number)
		*s = spent{key, c.number}
	}
	return c.request
}
