package sign

import (
	"bytes"
	"encoding/pem"
	"errors"
	"strings"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"
)

const (
	sshArmor = "-----BEGIN " + sshsig.PEMType + "-----"
	// gitNamespace is what Git writes into the signatures of commits and tags,
	// so that one made for another purpose cannot pass for them.
	gitNamespace = "git"
)

// ssh gives the trusted key that made the SSH signature of a commit.
func (v *Verifier) ssh(payload, signature []byte) (*Key, error) {
	if len(signature) > MaxSignature {
		return nil, Refused("the signature has %d bytes, and %d is the most", len(signature), MaxSignature)
	}
	block, rest := pem.Decode(signature)
	if block == nil || block.Type != sshsig.PEMType || len(bytes.TrimSpace(rest)) != 0 {
		return nil, Refused("the SSH signature is damaged, or there is more than one")
	}
	sig, err := sshsig.ParseSignature(block.Bytes)
	if err != nil {
		return nil, Refused("the SSH signature is damaged: %v", err)
	}
	for _, k := range v.Keys(SSH) {
		public, err := readSSH(k.Material)
		if err != nil {
			return nil, err // it was read when it was stored
		}
		if !bytes.Equal(public.Marshal(), sig.PublicKey.Marshal()) {
			continue
		}
		if err := k.Usable(v.now()); err != nil {
			return nil, err
		}
		switch err := sshsig.Verify(bytes.NewReader(payload), sig, public, sig.HashAlgorithm, gitNamespace); {
		case errors.Is(err, sshsig.ErrNamespaceMismatch):
			return nil, Refused("the signature by the key %s was made for %q, not for Git", k.Name, sig.Namespace)
		case err != nil:
			return nil, Refused("the signature by the key %s does not hold: what was sent is not what was signed", k.Name)
		}
		return k, nil
	}
	return nil, Refused("the signature is by the SSH key %s, which is not trusted; an operator trusts it with muster policy key add", ssh.FingerprintSHA256(sig.PublicKey))
}

// readSSH reads one public key as it stands in an authorized_keys file.
func readSSH(material string) (ssh.PublicKey, error) {
	if strings.Contains(material, "PRIVATE KEY") {
		return nil, errPrivate
	}
	key, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(material))
	switch {
	case err != nil:
		return nil, errors.New("is not an SSH public key; send the line of a file such as id_ed25519.pub")
	case len(options) > 0 || len(bytes.TrimSpace(rest)) > 0:
		return nil, errors.New("holds more than one SSH public key, or options; send one line: type, key, comment")
	}
	switch key.Type() {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoSKED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoSKECDSA256:
		return key, nil
	case ssh.KeyAlgoRSA:
		if c, ok := key.(ssh.CryptoPublicKey); ok {
			return key, strongEnough(c.CryptoPublicKey())
		}
	}
	return nil, errors.New("is an SSH key of a type that muster does not take: " + key.Type() + "; make one with ssh-keygen -t ed25519")
}
