package identity_test

import (
	"context"
	"testing"
	"time"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/identity"
)

// FuzzAuthorization: no header but that of a known token is somebody.
func FuzzAuthorization(f *testing.F) {
	const known = "muster_0123456789abcdef_0123456789012345678901234567890123456789012"
	auth, err := identity.New(identity.Config{TrustDomain: "muster", Static: []identity.Static{{Name: "operator", Role: "operator", Hash: identity.Hash(known)}}})
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{"", "Bearer ", "Bearer " + known, "bearer  " + known + " ", "Basic dTpw", "Bearer eyJhbGciOiJub25lIn0.e30.", "Bearer a.b.c.d.e", "Bearer ....", "Bearer \x00"} {
		f.Add(s)
	}
	table := identity.NewTable()
	f.Fuzz(func(t *testing.T, header string) {
		p, err := auth.Authenticate(context.Background(), table, header, nil, time.Now())
		if text, ok := identity.Bearer(header); ok && text == known {
			if err != nil || p.ID != "token:operator" {
				t.Fatalf("%q: %v %v", header, p, err)
			}
			return
		}
		if err == nil || !fault.Is(err, fault.Unauthenticated) {
			t.Fatalf("%q is %+v, %v", header, p, err)
		}
	})
}
