package git

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/transport"
	"github.com/skeema/knownhosts"
	"golang.org/x/crypto/ssh"
)

// shell is a session of git-upload-pack at the other end of ssh. The library's
// own would consult this machine's ssh configuration, agent and proxies, and
// connect where it likes.
type shell struct {
	client *ssh.Client
	stop   func() bool // no longer ends with the context
	in     io.WriteCloser
	out    io.Reader
	refs   *packp.AdvRefs
}

// dialSSH connects and starts git-upload-pack. The context ends the connection.
func (r *remote) dialSSH(ctx context.Context) (transport.UploadPackSession, error) {
	port := r.endpoint.Port
	if port == 0 {
		port = 22
	}
	address := net.JoinHostPort(host(r.endpoint), strconv.Itoa(port))
	config, err := r.sshConfig(address)
	if err != nil {
		return nil, err
	}
	conn, err := r.cfg.Egress.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	c, channels, requests, err := ssh.NewClientConn(conn, address, config)
	if err != nil {
		stop()
		_ = conn.Close()
		return nil, err
	}
	s := &shell{client: ssh.NewClient(c, channels, requests), stop: stop}
	if err := s.start(r.endpoint.Path, r.cfg.MaxSize); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

func (r *remote) sshConfig(address string) (*ssh.ClientConfig, error) {
	pem, err := os.ReadFile(r.cfg.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("the ssh key cannot be read: %w", err)
	}
	key, err := ssh.ParsePrivateKey(pem)
	if err != nil {
		return nil, fmt.Errorf("the ssh key cannot be used; it must be in PEM and without a pass phrase: %w", err)
	}
	known, err := knownhosts.NewDB(r.cfg.KnownHosts)
	if err != nil {
		return nil, fmt.Errorf("the known hosts cannot be read: %w", err)
	}
	user := r.endpoint.User
	if user == "" {
		user = r.cfg.Username
	}
	return &ssh.ClientConfig{
		User: user, Auth: []ssh.AuthMethod{ssh.PublicKeys(key)},
		// A server may have more keys than are known of it.
		HostKeyCallback: known.HostKeyCallback(), HostKeyAlgorithms: known.HostKeyAlgorithms(address),
	}, nil
}

func (s *shell) start(path string, limit int64) error {
	session, err := s.client.NewSession()
	if err != nil {
		return err
	}
	if s.in, err = session.StdinPipe(); err != nil {
		return err
	}
	out, err := session.StdoutPipe()
	if err != nil {
		return err
	}
	s.out = &meter{from: io.NopCloser(out), left: 2*limit + 1<<20}
	quoted := "'" + strings.NewReplacer("'", `'\''`, "!", `'\!'`).Replace(path) + "'"
	return session.Start("git-upload-pack " + quoted)
}

// AdvertisedReferences implements transport.UploadPackSession.
func (s *shell) AdvertisedReferences() (*packp.AdvRefs, error) {
	return s.AdvertisedReferencesContext(context.Background())
}

// AdvertisedReferencesContext implements transport.UploadPackSession. The
// context is that of the connection.
func (s *shell) AdvertisedReferencesContext(context.Context) (*packp.AdvRefs, error) {
	if s.refs == nil {
		refs := packp.NewAdvRefs()
		if err := refs.Decode(s.out); err != nil {
			return nil, err
		}
		transport.FilterUnsupportedCapabilities(refs.Capabilities)
		s.refs = refs
	}
	return s.refs, nil
}

// UploadPack implements transport.UploadPackSession.
func (s *shell) UploadPack(_ context.Context, req *packp.UploadPackRequest) (*packp.UploadPackResponse, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	if err := req.UploadRequest.Encode(s.in); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(s.in, "0009done\n"); err != nil {
		return nil, err
	}
	answer := packp.NewUploadPackResponse(req)
	if err := answer.Decode(io.NopCloser(s.out)); err != nil {
		return nil, err
	}
	return answer, nil
}

// Close implements transport.UploadPackSession.
func (s *shell) Close() error {
	s.stop()
	return s.client.Close()
}
