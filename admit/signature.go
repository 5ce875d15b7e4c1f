package admit

import (
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/sign"
	"github.com/muster-registry/muster/setting"
)

// SignatureRequirement is the name of the requirement that policies be signed.
const SignatureRequirement = "signature"

// RequireSignature has the gate refuse policies without a signature, whether
// or not the cluster has made that its rule. To be called before the gate is
// used.
func (g *Gate) RequireSignature() { g.signedOnly = true }

// mustBeSigned says whether policies without a signature are refused.
func (g *Gate) mustBeSigned(st State) bool {
	_, ruled := st.Settings.Get(setting.Requirement, "", SignatureRequirement)
	return g.signedOnly || ruled
}

// vouched checks where a new revision comes from, on the newest state, and
// gives it with what the cluster knows of the key. The signature itself was
// verified by the node that has the bytes; here it is looked whether its key
// is still the one that was verified with, and whether its number is new.
func (g *Gate) vouched(st State, raw []byte, now time.Time) (policy.Origin, error) {
	o, err := origin(raw)
	if err != nil {
		return o, err
	}
	s := o.Signature
	if s == nil {
		if g.mustBeSigned(st) {
			return o, sign.Refused("this cluster takes signed policies only: sign the bundle, or push with a signature by a trusted key")
		}
		return o, nil
	}
	key, err := trustedKey(st, s)
	if err != nil {
		return o, err
	}
	if err := key.Usable(now); err != nil {
		return o, err
	}
	s.Kind, s.Fingerprint = string(key.Kind), key.Fingerprint
	if o.Source != nil { // the order of commits is Git's
		return o, nil
	}
	switch highest := st.Policy.Signed(); {
	case s.Number == 0:
		return o, sign.Refused(`the signed policy has no number, so that it could be sent again years from now: give it one that only goes up, as {"metadata":{"muster":{"number":%d}}} in the bundle's .manifest or as "number" in the JSON`, highest+1)
	case s.Number <= highest:
		return o, sign.Refused("the signed number %d is not above %d, the highest that was accepted: what was signed earlier does not come back by being sent again; sign it with a higher number, or activate its revision", s.Number, highest)
	}
	return o, nil
}

func origin(raw []byte) (o policy.Origin, err error) {
	if len(raw) == 0 {
		return o, nil
	}
	if err := json.Unmarshal(raw, &o); err != nil {
		return o, fault.Wrap(fault.BadRequest, err, "the origin of the policy revision cannot be read")
	}
	return o, nil
}

// trustedKey gives the key that a signature names, as it is now.
func trustedKey(st State, s *policy.Signature) (*sign.Key, error) {
	rec, ok := st.Settings.Get(setting.Key, "", s.Key)
	if !ok {
		return nil, sign.Refused("the key %s is not trusted any more", s.Key)
	}
	key, err := sign.ReadKey(rec.Name, rec.Spec)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "the trusted key %s cannot be read", s.Key)
	}
	if s.Fingerprint != "" && s.Fingerprint != key.Fingerprint {
		return nil, sign.Refused("the name %s has been given to another key than the one that signed", s.Key)
	}
	return key, nil
}

// stagedBefore gives the first answer where the same content is sent once more
// under the highest number: a repeat is not a replay.
func (g *Gate) stagedBefore(st State, in *command.Intent, p *command.PolicyStage) (*command.Receipt, error) {
	o, err := origin(p.Origin)
	if err != nil || o.Signature == nil || o.Signature.Number == 0 || o.Signature.Number != st.Policy.Signed() {
		return nil, err
	}
	rev, ok := st.Policy.BySigned(o.Signature.Number)
	if !ok {
		return nil, nil
	}
	if err := Permit(in, policy.Manage, "policy", ""); err != nil {
		return nil, err
	}
	content, err := policy.ParseContent(p.Content)
	if err != nil || content.Digest() != rev.Digest {
		return nil, err
	}
	return &command.Receipt{Revision: rev.ChangedAt, Record: rev.JSON, Repeated: true}, nil
}

// mayActivate holds what was never active to the requirement as it is now: it
// may have been staged before there was one, or by a key that has been revoked
// since. What was active once is history that was accepted, and a way back.
func (g *Gate) mayActivate(st State, number uint64) error {
	rev, ok := st.Policy.Get(number)
	if !ok || !rev.ActivatedAt.IsZero() || !g.mustBeSigned(st) {
		return nil
	}
	if rev.Signature == nil {
		return sign.Refused("policy revision %d is not signed, and this cluster activates signed policies only", number)
	}
	key, err := trustedKey(st, rev.Signature)
	if err != nil {
		return err
	}
	if !key.RevokedAt.IsZero() {
		return key.Usable(key.RevokedAt)
	}
	return nil
}
