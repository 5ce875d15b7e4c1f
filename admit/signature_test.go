package admit_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"github.com/muster-registry/muster/admit"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/sign"
	"github.com/muster-registry/muster/setting"
)

// trust makes a key of that name and has the cluster trust it, after change.
func (l *leader) trust(name string, change func(*sign.Key)) *sign.Key {
	l.t.Helper()
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		l.t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		l.t.Fatal(err)
	}
	k := &sign.Key{Kind: sign.OPA, Algorithm: "EdDSA", Material: string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))}
	if k, err = sign.Parse(name, k.Encode(), nil, time.Now()); err != nil {
		l.t.Fatal(err)
	}
	l.keep(k, change)
	return k
}

// keep stores the key as it is after change.
func (l *leader) keep(k *sign.Key, change func(*sign.Key)) {
	l.t.Helper()
	if change != nil {
		change(k)
	}
	l.set(setting.Key, "", k.Name, string(k.Encode()))
}

// set stores a setting, whatever is there.
func (l *leader) set(kind setting.Kind, namespace, name, spec string) {
	l.t.Helper()
	var observed uint64
	if r, ok := l.machine.View().Settings.Get(kind, namespace, name); ok {
		observed = r.Revision
	}
	c := put(&command.Put{Kind: command.Kind_SETTING, Service: string(kind), Namespace: namespace, Name: name, Spec: []byte(spec), Observed: observed})
	c.Time = time.Now().UnixNano()
	if _, err := l.apply(c); err != nil {
		l.t.Fatal(err)
	}
}

// from says where a staged policy comes from.
func from(c *command.Command, o policy.Origin) *command.Command {
	c.GetPolicyStage().Origin = o.Encode()
	return c
}

func signedBy(key string, number uint64, module string) *command.Command {
	return from(stage(module), policy.Origin{Signature: &policy.Signature{Key: key, Kind: "opa", Number: number}})
}

func says(t testing.TB, f *fault.Error, words string) {
	t.Helper()
	if !strings.Contains(f.Detail, words) {
		t.Errorf("%q does not say %q", f.Detail, words)
	}
}

func TestSignedPolicyIsAccepted(t *testing.T) {
	l := newLeader(t)
	key := l.trust("ci", nil)
	l.do(signedBy("ci", 3, allows), as("token:admin", policy.PolicyAdmin))
	got := l.revision(t, 1)
	if want := (policy.Signature{Key: "ci", Kind: "opa", Fingerprint: key.Fingerprint, Number: 3}); got.Signature == nil || *got.Signature != want {
		t.Errorf("signed as %+v, want %+v", got.Signature, want)
	}
	// Where nothing is required, what is not signed is taken too.
	l.do(stage(allows))
	if got := l.revision(t, 2); got.Signature != nil {
		t.Errorf("signed as %+v", got.Signature)
	}
	// Git keeps the order of commits itself.
	git := policy.Origin{Source: &policy.Source{Kind: "git", Commit: "c0ffee"}, Signature: &policy.Signature{Key: "ci"}}
	for range 2 {
		l.do(from(stage(allows), git))
	}
	if got := l.revision(t, 4); got.Signature.Kind != "opa" || got.Signature.Fingerprint != key.Fingerprint || got.Source.Commit != "c0ffee" {
		t.Errorf("from Git as %+v", got.Origin)
	}
}

func TestSignedPolicyIsRefused(t *testing.T) {
	l := newLeader(t)
	l.trust("ci", nil)
	l.trust("revoked", func(k *sign.Key) { k.RevokedAt, k.RevokedReason = time.Now(), "stolen" })
	l.trust("ended", func(k *sign.Key) { k.NotAfter = time.Now().Add(-time.Hour) })
	l.do(signedBy("ci", 7, allows))
	for name, tc := range map[string]struct {
		signature policy.Signature
		says      string
	}{
		"unknown":       {policy.Signature{Key: "mallory", Number: 8}, "not trusted any more"},
		"revoked":       {policy.Signature{Key: "revoked", Number: 8}, "stolen"},
		"ended":         {policy.Signature{Key: "ended", Number: 8}, "has expired"},
		"another key":   {policy.Signature{Key: "ci", Fingerprint: "SHA256:0", Number: 8}, "another key"},
		"no number":     {policy.Signature{Key: "ci"}, `{"number":8}`},
		"a lower one":   {policy.Signature{Key: "ci", Number: 6}, "the signed number 6 is not above 7"},
		"the same one":  {policy.Signature{Key: "ci", Number: 7}, "the signed number 7 is not above 7"},
		"from the past": {policy.Signature{Key: "ci", Number: 1}, "the signed number 1 is not above 7"},
	} {
		t.Run(name, func(t *testing.T) {
			f := l.refused(t, fault.InvalidPolicy, from(stage(allows+"\n# changed\n"), policy.Origin{Signature: &tc.signature}))
			says(t, f, tc.says)
		})
	}
}

// The same content under the highest number is the same revision.
func TestSignedPolicySentAgain(t *testing.T) {
	l := newLeader(t)
	l.trust("ci", nil)
	l.do(signedBy("ci", 7, allows))
	was := l.machine.View()
	r := l.do(signedBy("ci", 7, allows), as("token:admin", policy.PolicyAdmin))
	rev, err := policy.DecodeRevision(r.Record)
	if err != nil || rev.Number != 1 || !r.Repeated || l.machine.View().Hash != was.Hash {
		t.Errorf("%+v, %v", r, err)
	}
	l.refused(t, fault.Forbidden, signedBy("ci", 7, allows), as("token:v", policy.Viewer))
	// Also when the first was on its way when the second was decided on.
	l.ahead(func(*command.Command) {
		if _, err := l.execute(signedBy("ci", 8, allows+"\n# 8\n")); err != nil {
			t.Error(err)
		}
	})
	if r = l.do(signedBy("ci", 8, allows+"\n# 8\n")); !r.Repeated {
		t.Errorf("%+v", r)
	}
	l.ahead(func(*command.Command) {
		if _, err := l.execute(signedBy("ci", 9, allows+"\n# 9\n")); err != nil {
			t.Error(err)
		}
	})
	_, err = l.execute(signedBy("ci", 9, allows+"\n# another 9\n"))
	if !fault.Is(err, fault.InvalidPolicy) || !strings.Contains(err.Error(), "9 is not above 9") {
		t.Errorf("overtaken: %v", err)
	}
	if n := l.machine.View().Policy.Len(); n != 3 {
		t.Errorf("%d revisions are stored", n)
	}
}

func TestSignaturesAreRequired(t *testing.T) {
	for name, require := range map[string]func(*leader){
		"by the cluster":       func(l *leader) { l.set(setting.Requirement, "", admit.SignatureRequirement, `{}`) },
		"by the configuration": func(l *leader) { l.gate.RequireSignature() },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLeader(t)
			key := l.trust("ci", nil)
			l.do(stage(allows)) // 1
			l.do(activate(1))
			l.do(stage(allows + "\n# never active\n")) // 2
			l.do(signedBy("ci", 1, allows))            // 3
			l.do(signedBy("ci", 2, allows))            // 4
			require(l)

			says(t, l.refused(t, fault.InvalidPolicy, stage(allows)), "signed policies only")
			says(t, l.refused(t, fault.InvalidPolicy, from(stage(allows), policy.Origin{Source: &policy.Source{Kind: "git"}})), "signed policies only")
			says(t, l.refused(t, fault.InvalidPolicy, activate(2)), "policy revision 2 is not signed")
			l.do(activate(3))
			// What was active before is history that was accepted: the way back is open.
			l.do(rollback())
			if l.active() != 1 {
				t.Fatalf("revision %d is active", l.active())
			}
			// A key that was revoked, or is gone, does not bring anything new into force.
			l.keep(key, func(k *sign.Key) { k.RevokedAt, k.RevokedReason = time.Now(), "stolen" })
			says(t, l.refused(t, fault.InvalidPolicy, activate(4)), "stolen")
			l.unset(setting.Key, "", "ci")
			says(t, l.refused(t, fault.InvalidPolicy, activate(4)), "not trusted any more")
			l.do(activate(3))
		})
	}
}
