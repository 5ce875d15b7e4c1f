package issuer

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/muster-registry/muster/pki"
)

// atAgent signs with a key that an agent has, asked by OpenSSH's agent protocol
// over a socket (docs/adr/0021-issuer.md). What such an agent signs is what a
// certificate takes: ECDSA over the hash that goes with the curve, Ed25519, or
// PKCS #1 v1.5 over SHA-256.
type atAgent struct {
	pair   paired
	socket string
	domain string
}

func (a *atAgent) chain() ([]*x509.Certificate, error) { return own(a.pair.load()) }

func (a *atAgent) sign(ctx context.Context, o *Order, now time.Time) ([]*x509.Certificate, error) {
	loaded, err := a.pair.load()
	if err != nil {
		return nil, err
	}
	var dial net.Dialer
	conn, err := dial.DialContext(ctx, "unix", a.socket)
	if err != nil {
		return nil, fmt.Errorf("the agent does not answer: %w", err)
	}
	defer conn.Close()
	if end, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(end); err != nil {
			return nil, err
		}
	}
	public, err := ssh.NewPublicKey(loaded.Certificate.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("certificates.cert: an agent cannot sign with a key of this kind: %w", err)
	}
	ca := &pki.Pair{Certificate: loaded.Certificate, Chain: loaded.Chain, Key: &agentKey{agent.NewClient(conn), public, loaded.Certificate.PublicKey}}
	return signed(ca, a.domain, o, now)
}

// agentKey is a key of an agent's. It implements crypto.MessageSigner: the agent
// takes the message, and hashes it itself.
type agentKey struct {
	agent  agent.ExtendedAgent
	name   ssh.PublicKey
	public crypto.PublicKey
}

func (k *agentKey) Public() crypto.PublicKey { return k.public }

func (k *agentKey) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("an agent signs whole messages, not their hashes")
}

func (k *agentKey) SignMessage(_ io.Reader, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	flags, want := agent.SignatureFlags(0), crypto.Hash(0)
	switch public := k.public.(type) {
	case *rsa.PublicKey:
		flags, want = agent.SignatureFlagRsaSha256, crypto.SHA256
	case *ecdsa.PublicKey:
		want = map[int]crypto.Hash{256: crypto.SHA256, 384: crypto.SHA384}[public.Curve.Params().BitSize]
	case ed25519.PublicKey:
	}
	if opts.HashFunc() != want {
		return nil, fmt.Errorf("an agent cannot sign over %s with this key", opts.HashFunc())
	}
	if err := k.held(); err != nil {
		return nil, err
	}
	s, err := k.agent.SignWithFlags(k.name, message, flags)
	if err != nil {
		return nil, fmt.Errorf("the agent does not sign: %w", err)
	}
	if _, ok := k.public.(*ecdsa.PublicKey); !ok {
		return s.Blob, nil
	}
	var pair struct{ R, S *big.Int }
	if err := ssh.Unmarshal(s.Blob, &pair); err != nil {
		return nil, fmt.Errorf("the agent's signature cannot be read: %w", err)
	}
	return asn1.Marshal(pair)
}

// held says in words that the agent has not been given the key.
func (k *agentKey) held() error {
	keys, err := k.agent.List()
	if err != nil {
		return fmt.Errorf("the agent does not list its keys: %w", err)
	}
	for _, have := range keys {
		if bytes.Equal(have.Blob, k.name.Marshal()) {
			return nil
		}
	}
	return fmt.Errorf("the agent has %d keys, and none of them is that of certificates.cert (%s)", len(keys), ssh.FingerprintSHA256(k.name))
}

var _ crypto.MessageSigner = (*agentKey)(nil)
