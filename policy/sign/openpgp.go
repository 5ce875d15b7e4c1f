package sign

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	pgperrors "github.com/ProtonMail/go-crypto/openpgp/errors"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
)

const signatureArmor = "PGP SIGNATURE"

// weak are the hashes under which two texts can be made to look alike. They
// count neither for a signature nor for what binds a key together.
var weak = map[crypto.Hash]bool{crypto.MD5: true, crypto.SHA1: true, crypto.RIPEMD160: true}

// settings are the rules that OpenPGP data are judged by at a moment.
func settings(at time.Time) *packet.Config {
	return &packet.Config{
		Time:                 func() time.Time { return at },
		RejectHashAlgorithms: weak, RejectMessageHashAlgorithms: weak,
	}
}

// openPGP gives the trusted key that made the signature over the message.
func (v *Verifier) openPGP(message, signature []byte) (*Key, error) {
	packed, err := unarmor(signature)
	if err != nil {
		return nil, err
	}
	sig, err := readSignature(packed)
	if err != nil {
		return nil, err
	}
	now := v.now()
	if sig.CreationTime.After(now.Add(skew)) {
		return nil, Refused("the signature is dated %s, which is in the future; look at the clock of the machine that signed", stamp(sig.CreationTime))
	}
	at := now
	if sig.CreationTime.After(now) {
		at = sig.CreationTime
	}
	err = Refused("the signature is by the key %016X, which no trusted OpenPGP key holds; an operator trusts one with muster policy key add", *sig.IssuerKeyId)
	for _, k := range v.Keys(OpenPGP) {
		entity, unreadable := readEntity(k.Material)
		if unreadable != nil {
			return nil, unreadable // it was read when it was stored
		}
		holder := holderOf(entity, sig)
		if holder == nil {
			continue
		}
		if err = k.Usable(now); err != nil {
			continue
		}
		if err = maySign(k.Name, entity, holder, at); err != nil {
			continue
		}
		if _, _, bad := openpgp.VerifyDetachedSignature(openpgp.EntityList{entity}, bytes.NewReader(message), bytes.NewReader(packed), settings(at)); bad != nil {
			err = Refused("the signature by the key %s does not hold: %s", k.Name, explain(bad))
			continue
		}
		return k, nil
	}
	return nil, err
}

// unarmor gives the packets of a signature, whichever of the two forms it has.
func unarmor(signature []byte) ([]byte, error) {
	if len(signature) > MaxSignature {
		return nil, Refused("the signature has %d bytes, and %d is the most", len(signature), MaxSignature)
	}
	trimmed := bytes.TrimSpace(signature)
	if len(trimmed) == 0 {
		return nil, Refused("the signature is empty; make one with gpg --detach-sign --armor")
	}
	if trimmed[0]&0x80 != 0 { // as the first byte of every packet
		return signature, nil
	}
	block, err := armor.Decode(bytes.NewReader(trimmed))
	if err != nil || block.Type != signatureArmor {
		return nil, Refused("the signature is not an OpenPGP signature; make one with gpg --detach-sign --armor")
	}
	packed, err := io.ReadAll(block.Body)
	if err != nil {
		return nil, Refused("the armor of the signature is damaged; send the file as gpg wrote it")
	}
	return packed, nil
}

// readSignature gives the one signature there is, if it is of a form that can
// vouch for exact bytes.
func readSignature(packed []byte) (*packet.Signature, error) {
	packets := packet.NewReader(bytes.NewReader(packed))
	var found *packet.Signature
	for {
		p, err := packets.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		sig, ok := p.(*packet.Signature)
		switch {
		case err != nil || !ok:
			return nil, Refused("the signature is damaged, or of a kind that muster does not know; make one with gpg --detach-sign --armor")
		case found != nil:
			return nil, Refused("there is more than one signature; send one, by one key")
		}
		found = sig
	}
	switch {
	case found == nil:
		return nil, Refused("the signature holds no signature packet; make one with gpg --detach-sign --armor")
	case found.IssuerKeyId == nil || *found.IssuerKeyId == 0:
		return nil, Refused("the signature does not say which key made it")
	case found.SigType != packet.SigTypeBinary:
		return nil, Refused("the signature is over text or over another thing, not over exact bytes; sign with gpg --detach-sign, without --textmode")
	case weak[found.Hash]:
		return nil, Refused("the signature is over a %s hash, which is too weak; sign with --digest-algo SHA256 or better", found.Hash)
	}
	return found, nil
}

// holderOf gives the key within the entity that the signature names; nil if
// it is another's.
func holderOf(e *openpgp.Entity, sig *packet.Signature) *packet.PublicKey {
	for _, k := range publicKeys(e) {
		if k.KeyId == *sig.IssuerKeyId && (len(sig.IssuerFingerprint) == 0 || bytes.Equal(sig.IssuerFingerprint, k.Fingerprint)) {
			return k
		}
	}
	return nil
}

func publicKeys(e *openpgp.Entity) []*packet.PublicKey {
	keys := []*packet.PublicKey{e.PrimaryKey}
	for _, s := range e.Subkeys {
		keys = append(keys, s.PublicKey)
	}
	return keys
}

// maySign says whether the key may sign at that moment. The library judges a
// signature at the time that stands in it, which whoever holds an old key can
// choose; here it has to hold now.
func maySign(name string, e *openpgp.Entity, holder *packet.PublicKey, at time.Time) error {
	cfg := settings(at)
	if _, err := e.VerifyPrimaryKey(at, cfg); err != nil {
		return unusable(name, err)
	}
	for i := range e.Subkeys {
		if e.Subkeys[i].PublicKey != holder {
			continue
		}
		if _, err := e.Subkeys[i].Verify(at, cfg); err != nil {
			return unusable(name+" (its subkey "+holder.KeyIdString()+")", err)
		}
	}
	if _, ok := e.SigningKeyById(at, holder.KeyId, cfg); !ok {
		return Refused("the key %s (%s) is not for signing data: its flags do not say so, or it is too weak; sign with a signing key", name, holder.KeyIdString())
	}
	return nil
}

func unusable(name string, err error) error {
	switch {
	case errors.Is(err, pgperrors.ErrKeyExpired):
		return Refused("the key %s has expired; have its owner prolong it and give the new public key to muster policy key add, or sign with another", name)
	case errors.Is(err, pgperrors.ErrKeyRevoked):
		return Refused("the key %s was revoked by its owner; sign with another", name)
	}
	return Refused("the key %s is not valid now: %s", name, explain(err))
}

// explain gives the library's word without its prefix, and its own for what is
// met every day.
func explain(err error) string {
	switch {
	case errors.Is(err, pgperrors.ErrSignatureExpired):
		return "it has expired"
	case errors.Is(err, pgperrors.ErrSignatureOlderThanKey):
		return "it is older than the key"
	case errors.Is(err, pgperrors.ErrKeyRevoked):
		return "the key was revoked when it was made"
	case errors.Is(err, pgperrors.ErrKeyExpired):
		return "the key had expired when it was made"
	}
	if bad, ok := errors.AsType[pgperrors.SignatureError](err); ok && !strings.Contains(string(bad), "insecure") && !strings.Contains(string(bad), "notation") {
		return "what was sent is not what was signed"
	}
	return strings.TrimPrefix(err.Error(), "openpgp: ")
}

// readEntity reads one armored OpenPGP public key.
func readEntity(material string) (*openpgp.Entity, error) {
	block, err := armor.Decode(strings.NewReader(material))
	if err != nil || (block.Type != openpgp.PublicKeyType && block.Type != openpgp.PrivateKeyType) {
		return nil, errors.New("is not an armored OpenPGP public key; export one with gpg --armor --export KEY")
	}
	if block.Type == openpgp.PrivateKeyType {
		return nil, errPrivate
	}
	packets := packet.NewReader(block.Body)
	e, err := openpgp.ReadEntity(packets)
	if err != nil {
		return nil, fmt.Errorf("cannot be read as an OpenPGP public key: %s", strings.TrimPrefix(err.Error(), "openpgp: "))
	}
	if e.PrivateKey != nil {
		return nil, errPrivate
	}
	if _, err := packets.Next(); !errors.Is(err, io.EOF) {
		return nil, errors.New("holds more than one OpenPGP key; export them one by one")
	}
	return e, nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
