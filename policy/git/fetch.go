package git

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/capability"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/sideband"
	"github.com/go-git/go-git/v5/plumbing/storer"
	"github.com/go-git/go-git/v5/plumbing/transport"
	githttp "github.com/go-git/go-git/v5/plumbing/transport/http"
	"github.com/go-git/go-git/v5/storage/memory"
)

// remote is a repository at the other end of a connection, for one pull. It is
// opened for each exchange: a Git server answers one question a session.
type remote struct {
	cfg      *Config
	endpoint *transport.Endpoint
	head     plumbing.ReferenceName
}

func newRemote(cfg *Config) (*remote, error) {
	ep, err := endpoint(cfg.URL)
	if err != nil {
		return nil, err
	}
	return &remote{cfg: cfg, endpoint: ep, head: plumbing.NewBranchReferenceName(cfg.Branch)}, nil
}

// session connects. What it has received is bounded; the context ends it.
func (r *remote) session(ctx context.Context) (transport.UploadPackSession, error) {
	if r.endpoint.Protocol == "ssh" {
		return r.dialSSH(ctx)
	}
	roots, err := r.roots()
	if err != nil {
		return nil, err
	}
	var auth transport.AuthMethod
	if r.cfg.TokenFile != "" {
		token, err := os.ReadFile(r.cfg.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("the token cannot be read: %w", err)
		}
		auth = &githttp.BasicAuth{Username: r.cfg.Username, Password: strings.TrimSpace(string(token))}
	}
	client := &http.Client{Transport: &bounded{limit: r.cfg.MaxSize, next: &http.Transport{
		DialContext:       r.cfg.Egress.DialContext,
		TLSClientConfig:   &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2: true,
		DisableKeepAlives: true,
	}}}
	// No redirects: the repository is where the configuration says it is.
	return githttp.NewClientWithOptions(client, &githttp.ClientOptions{RedirectPolicy: githttp.NoFollowRedirects}).
		NewUploadPackSession(r.endpoint, auth)
}

func (r *remote) roots() (*x509.CertPool, error) {
	if r.cfg.CAFile == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(r.cfg.CAFile)
	if err != nil {
		return nil, fmt.Errorf("the certificate authority cannot be read: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate in PEM", r.cfg.CAFile)
	}
	return roots, nil
}

// tip asks which commit the branch is at.
func (r *remote) tip(ctx context.Context) (plumbing.Hash, error) {
	s, err := r.session(ctx)
	if err != nil {
		return plumbing.ZeroHash, err
	}
	defer s.Close()
	_, at, err := r.advertised(ctx, s)
	return at, err
}

func (r *remote) advertised(ctx context.Context, s transport.UploadPackSession) (*packp.AdvRefs, plumbing.Hash, error) {
	refs, err := s.AdvertisedReferencesContext(ctx)
	if err != nil {
		return nil, plumbing.ZeroHash, err
	}
	at, ok := refs.References[r.head.String()]
	if !ok || at.IsZero() {
		return nil, plumbing.ZeroHash, fmt.Errorf("the repository has no branch %s", r.cfg.Branch)
	}
	return refs, at, nil
}

// history is what was fetched: the objects, and whether commits at its far end
// have parents that were left out.
type history struct {
	head    plumbing.Hash
	objects storer.EncodedObjectStorer
	cut     bool
}

// fetch gives the branch with so many commits of its past; 0: all of them.
func (r *remote) fetch(ctx context.Context, depth int) (*history, error) {
	s, err := r.session(ctx)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	refs, at, err := r.advertised(ctx, s)
	if err != nil {
		return nil, err
	}
	req := packp.NewUploadPackRequestFromCapabilities(refs.Capabilities)
	req.Wants = []plumbing.Hash{at}
	if refs.Capabilities.Supports(capability.NoProgress) {
		_ = req.Capabilities.Set(capability.NoProgress) // without it the server talks more, no worse
	}
	if depth > 0 && refs.Capabilities.Supports(capability.Shallow) {
		if err := req.Capabilities.Set(capability.Shallow); err != nil {
			return nil, err
		}
		req.Depth = packp.DepthCommits(depth)
	}
	answer, err := s.UploadPack(ctx, req)
	if err != nil {
		return nil, err
	}
	defer answer.Close()
	pack, err := r.receive(req, answer)
	if err != nil {
		return nil, err
	}
	objects, err := unpack(pack, r.cfg)
	return &history{head: at, objects: objects, cut: len(answer.Shallows) > 0}, err
}

func (r *remote) receive(req *packp.UploadPackRequest, answer io.Reader) ([]byte, error) {
	switch {
	case req.Capabilities.Supports(capability.Sideband64k):
		answer = sideband.NewDemuxer(sideband.Sideband64k, answer)
	case req.Capabilities.Supports(capability.Sideband):
		answer = sideband.NewDemuxer(sideband.Sideband, answer)
	}
	pack, err := io.ReadAll(io.LimitReader(answer, r.cfg.MaxSize+1))
	if err != nil {
		return nil, err
	}
	if int64(len(pack)) > r.cfg.MaxSize {
		return nil, tooLarge("the repository sends more than %d bytes", r.cfg.MaxSize)
	}
	return pack, nil
}

// limitError says that the repository is larger than it may be.
type limitError struct{ what string }

func (e *limitError) Error() string { return e.what + "; raise max_size if that is meant" }

func tooLarge(format string, args ...any) error { return &limitError{fmt.Sprintf(format, args...)} }

// unpack gives the objects of a pack. First it is gone through without keeping
// anything, to know what it unpacks to: a small pack can stand for a lot.
func unpack(pack []byte, cfg *Config) (storer.EncodedObjectStorer, error) {
	if err := measure(pack, cfg); err != nil {
		return nil, err
	}
	objects := memory.NewStorage()
	parser, err := packfile.NewParserWithStorage(packfile.NewScanner(bytes.NewReader(pack)), objects)
	if err != nil {
		return nil, err
	}
	if _, err := parser.Parse(); err != nil {
		return nil, err
	}
	return objects, nil
}

func measure(pack []byte, cfg *Config) error {
	s := packfile.NewScanner(bytes.NewReader(pack))
	_, count, err := s.Header()
	if err != nil {
		return err
	}
	if int64(count) > int64(cfg.MaxObjects) {
		return tooLarge("the repository sends %d objects, and %d is the most", count, cfg.MaxObjects)
	}
	var total int64
	for range count {
		h, err := s.NextObjectHeader()
		if err != nil {
			return err
		}
		size := h.Length
		if size < 0 || size > cfg.MaxSize {
			return tooLarge("an object of the repository unpacks to %d bytes, and %d is the most", size, cfg.MaxSize)
		}
		var start prefix
		if _, _, err := s.NextObject(&start); err != nil {
			return err
		}
		if h.Type.IsDelta() {
			target, err := start.target()
			if err != nil {
				return err
			}
			if target > uint64(cfg.MaxSize) {
				return tooLarge("an object of the repository unpacks to %d bytes, and %d is the most", target, cfg.MaxSize)
			}
			size += int64(target)
		}
		if total += size; total > 4*cfg.MaxSize {
			return tooLarge("the repository unpacks to more than %d bytes", 4*cfg.MaxSize)
		}
	}
	return nil
}

// prefix keeps the first bytes of an object.
type prefix struct {
	kept [20]byte
	n    int
}

func (p *prefix) Write(b []byte) (int, error) {
	p.n += copy(p.kept[p.n:], b)
	return len(b), nil
}

// target is the size of what a delta makes: its second number.
func (p *prefix) target() (uint64, error) {
	at, size := 0, uint64(0)
	for range 2 {
		size = 0
		for shift := 0; ; shift += 7 {
			if at == p.n || shift > 56 {
				return 0, errors.New("an object of the repository is damaged: a delta without its sizes")
			}
			b := p.kept[at]
			at++
			size |= uint64(b&0x7f) << shift
			if b&0x80 == 0 {
				break
			}
		}
	}
	return size, nil
}

// bounded is a transport whose answers end in an error at a number of bytes.
type bounded struct {
	next  http.RoundTripper
	limit int64
}

func (b *bounded) RoundTrip(req *http.Request) (*http.Response, error) {
	answer, err := b.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	answer.Body = &meter{from: answer.Body, left: b.limit + b.limit/8 + 1<<20} // the lines around the pack
	return answer, nil
}

// meter gives an error instead of more than so many bytes.
type meter struct {
	from io.ReadCloser
	left int64
}

func (m *meter) Read(p []byte) (int, error) {
	if m.left <= 0 {
		return 0, tooLarge("the server sends more than was asked for")
	}
	n, err := m.from.Read(p[:min(int64(len(p)), m.left)])
	m.left -= int64(n)
	return n, err
}

func (m *meter) Close() error { return m.from.Close() }
