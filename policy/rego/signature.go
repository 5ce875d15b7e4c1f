package rego

import (
	"bytes"
	"encoding/base64"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/open-policy-agent/opa/v1/bundle"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/sign"
)

const (
	signatureFile = ".signatures.json"
	// defaultKeyID and defaultPlugin are what opa writes where it is told nothing.
	defaultKeyID  = "default"
	defaultPlugin = "_default"
)

// weakHashes are the hashes of files that OPA takes and nobody should.
var weakHashes = []string{"MD5", "SHA-1"}

// claims are what a signature of a bundle says, before it is known to hold.
type claims struct {
	Algorithm string
	KeyID     string
	Scope     string
	Files     []bundle.FileInfo
}

// refusedSignature is a refusal of the signature of a bundle.
func refusedSignature(format string, args ...any) error {
	return refusedBundle(signatureFile, format, args...)
}

// verifySigned verifies OPA's signature of a bundle against the trusted keys,
// and that it is over exactly these files; nil without an error if the bundle
// has none. The error is invalid_policy.
func verifySigned(files []bundleFile, trusted *sign.Verifier) (*policy.Signature, error) {
	i := slices.IndexFunc(files, func(f bundleFile) bool { return f.name == signatureFile })
	if i < 0 {
		return nil, nil
	}
	sc, said, err := readSignatures(files[i].content)
	if err != nil {
		return nil, err
	}
	key, err := signer(sc, said, trusted)
	if err != nil {
		return nil, err
	}
	if said.Scope != key.Scope {
		return nil, refusedSignature("the signature is for the scope %q, and the key %s is trusted for %q", said.Scope, key.Name, key.Scope)
	}
	if err := sameFiles(said, slices.Delete(slices.Clone(files), i, i+1)); err != nil {
		return nil, err
	}
	return &policy.Signature{Key: key.Name, Kind: string(key.Kind), Fingerprint: key.Fingerprint}, nil
}

// readSignatures reads the one token of the file, without believing it.
func readSignatures(content []byte) (sc bundle.SignaturesConfig, said claims, err error) {
	if err := policy.WellFormed(content); err != nil {
		return sc, said, refusedSignature("%s", fault.From(err).Detail)
	}
	if err := json.Unmarshal(content, &sc, json.RejectUnknownMembers(true)); err != nil {
		return sc, said, refusedSignature(`must be like {"signatures":["…"]}, as opa sign writes it`)
	}
	switch {
	case sc.Plugin != "" && sc.Plugin != defaultPlugin:
		return sc, said, refusedSignature("asks to be verified by the plug-in %q, which muster does not have", sc.Plugin)
	case len(sc.Signatures) != 1:
		return sc, said, refusedSignature("holds %d signatures; exactly one is taken", len(sc.Signatures))
	}
	var head struct {
		Algorithm string   `json:"alg"`
		KeyID     string   `json:"kid"`
		Critical  []string `json:"crit"`
	}
	var body struct {
		Files []bundle.FileInfo `json:"files"`
		KeyID string            `json:"keyid"`
		Scope string            `json:"scope"`
	}
	parts := strings.Split(sc.Signatures[0], ".")
	if len(parts) != 3 || readPart(parts[0], &head) != nil || readPart(parts[1], &body) != nil {
		return sc, said, refusedSignature("the signature is no JWT that can be read in one way only; sign with opa sign or opa build")
	}
	if len(head.Critical) > 0 {
		return sc, said, refusedSignature("the signature makes %q critical, which muster does not know", head.Critical)
	}
	said = claims{Algorithm: head.Algorithm, KeyID: head.KeyID, Scope: body.Scope, Files: body.Files}
	if said.KeyID == "" {
		said.KeyID = body.KeyID
	}
	return sc, said, nil
}

// readPart decodes one part of a token. Names that stand twice are refused,
// since OPA would take the last of them.
func readPart(part string, into any) error {
	raw, err := base64.RawURLEncoding.DecodeString(part)
	if err != nil {
		return err
	}
	if err := policy.WellFormed(raw); err != nil {
		return err
	}
	return json.Unmarshal(raw, into)
}

// signer gives the trusted key that made the signature.
func signer(sc bundle.SignaturesConfig, said claims, trusted *sign.Verifier) (*sign.Key, error) {
	if !slices.Contains(sign.Algorithms, said.Algorithm) {
		return nil, refusedSignature("the signature is by the algorithm %q; it must be one of %s", said.Algorithm, strings.Join(sign.Algorithms, ", "))
	}
	candidates, err := signers(said, trusted.Keys(sign.OPA))
	if err != nil {
		return nil, err
	}
	for _, k := range candidates {
		if err = holds(sc, said, k, trusted.Now()); err == nil {
			return k, nil
		}
	}
	return nil, err
}

// signers gives the keys that may have made it: the one it names, or all by
// its algorithm where it names none, as opa does unless told.
func signers(said claims, keys []*sign.Key) ([]*sign.Key, error) {
	if i := slices.IndexFunc(keys, func(k *sign.Key) bool { return k.Name == said.KeyID }); i >= 0 {
		return keys[i : i+1], nil
	}
	if said.KeyID != "" && said.KeyID != defaultKeyID {
		return nil, refusedSignature("the signature is by the key %.64q, which is not trusted; an operator trusts it with muster policy key add", said.KeyID)
	}
	keys = slices.DeleteFunc(slices.Clone(keys), func(k *sign.Key) bool { return k.Algorithm != said.Algorithm })
	if len(keys) == 0 {
		return nil, refusedSignature("no key for %s is trusted; an operator trusts one with muster policy key add", said.Algorithm)
	}
	return keys, nil
}

// holds verifies the token by one key. The algorithm is the key's: what stands
// in the token has no say.
func holds(sc bundle.SignaturesConfig, said claims, k *sign.Key, now time.Time) error {
	if err := k.Usable(now); err != nil {
		return refusedSignature("%s", fault.From(err).Detail)
	}
	if k.Algorithm != said.Algorithm {
		return refusedSignature("the signature is by the algorithm %s, and the key %s is for %s only", said.Algorithm, k.Name, k.Algorithm)
	}
	cfg := bundle.NewVerificationConfig(map[string]*bundle.KeyConfig{k.Name: {Key: k.Material, Algorithm: k.Algorithm}}, k.Name, said.Scope, nil)
	if _, err := (&bundle.DefaultVerifier{}).VerifyBundleSignature(sc, cfg); err != nil {
		return refusedSignature("the signature does not hold for the key %s: it was made by another key, or changed", k.Name)
	}
	return nil
}

// sameFiles holds the files to those that were signed, in both directions.
func sameFiles(said claims, files []bundleFile) error {
	signed := make(map[string]bundle.FileInfo, len(said.Files))
	for _, f := range said.Files {
		if _, twice := signed[f.Name]; twice {
			return refusedSignature("the signature names %.255q twice", f.Name)
		}
		if slices.Contains(weakHashes, f.Algorithm) {
			return refusedSignature("the signature is over a %s hash of %.255q, which is too weak; sign with SHA-256", f.Algorithm, f.Name)
		}
		signed[f.Name] = f
	}
	for _, f := range files {
		if _, ok := signed[f.name]; !ok {
			return refusedBundle(f.name, "is not among the files that were signed; it was added since")
		}
		if err := bundle.VerifyBundleFile(f.name, *bytes.NewBuffer(f.content), signed); err != nil {
			return altered(f.name, err)
		}
	}
	if len(signed) == 0 {
		return nil
	}
	missing := make([]string, 0, len(signed))
	for name := range signed {
		missing = append(missing, name)
	}
	slices.Sort(missing)
	return refusedBundle(missing[0], "was signed and is missing from the bundle; %d of the signed files are", len(missing))
}

func altered(name string, err error) error {
	if strings.Contains(err.Error(), "mismatch") {
		return refusedBundle(name, "is not as it was signed; it was altered since")
	}
	return refusedBundle(name, "cannot be held to its signature: %v", err)
}
