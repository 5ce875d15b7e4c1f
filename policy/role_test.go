package policy

import (
	"strings"
	"testing"

	"github.com/muster-registry/muster/fault"
)

func TestBuiltInRoles(t *testing.T) {
	const allow, deny = true, false
	type row struct {
		action    Action
		kind      string
		namespace string
		want      map[string]bool // by role
	}
	roles := func(v, p, o, a, b bool) map[string]bool {
		return map[string]bool{Viewer: v, Publisher: p, Operator: o, PolicyAdmin: a, BreakGlass: b, "nonsense": deny, "": deny}
	}
	for _, c := range []row{
		{Lookup, "service", "shop", roles(allow, allow, allow, allow, allow)},
		{Lookup, "service", "", roles(allow, allow, allow, allow, allow)},
		{Watch, "instance", "shop", roles(allow, allow, allow, allow, allow)},
		{Register, "service", "shop", roles(deny, allow, allow, deny, deny)},
		{Update, "version", "shop", roles(deny, allow, allow, deny, deny)},
		{Delete, "instance", "shop", roles(deny, allow, allow, deny, deny)},
		{Heartbeat, "instance", "shop", roles(deny, allow, allow, deny, deny)},
		{Spend, "quota", "shop", roles(deny, allow, allow, deny, deny)},
		{Manage, "quota", "", roles(deny, deny, allow, deny, deny)},
		{Authorize, "decision", "", roles(allow, allow, allow, allow, allow)},
		{Issue, "certificate", "shop", roles(allow, allow, allow, allow, allow)},
		{Read, "cluster", "", roles(allow, allow, allow, allow, allow)},
		{Manage, "cluster", "", roles(deny, deny, allow, deny, deny)},
		{Manage, "token", "", roles(deny, deny, allow, deny, deny)},
		{Read, "snapshot", "", roles(deny, deny, allow, deny, deny)},
		{Read, "policy", "", roles(deny, deny, allow, allow, deny)},
		{Manage, "policy", "", roles(deny, deny, allow, allow, deny)},
		{Manage, "break-glass", "shop", roles(deny, deny, deny, deny, allow)},
		{Register, "policy", "shop", roles(deny, deny, deny, deny, deny)},
		{"nonsense", "service", "shop", roles(deny, deny, deny, deny, deny)},
	} {
		for role, want := range c.want {
			err := Permit(Principal{Roles: []string{role}}, c.action, c.kind, c.namespace)
			if (err == nil) != want || (err != nil && !fault.Is(err, fault.Forbidden)) {
				t.Errorf("%s: %s %s: %v", role, c.action, c.kind, err)
			}
		}
	}
}

func TestRolesEndAtTheirNamespaces(t *testing.T) {
	for _, c := range []struct {
		role      string
		action    Action
		kind      string
		namespace string
		want      bool
	}{
		{Viewer, Lookup, "service", "shop", true},
		{Viewer, Lookup, "service", "bank", false},
		{Viewer, Lookup, "service", "", true}, // the answer is filtered
		{Publisher, Register, "service", "shop", true},
		{Publisher, Register, "service", "bank", false},
		{Publisher, Register, "service", "", false},
		{Operator, Register, "service", "bank", false},
		{Operator, Manage, "token", "", false},
		{Operator, Manage, "token", "shop", false},
		{PolicyAdmin, Manage, "policy", "", false},
		{BreakGlass, Manage, "break-glass", "shop", true},
		{BreakGlass, Manage, "break-glass", "bank", false},
		{Viewer, Read, "cluster", "", true},
	} {
		p := Principal{Roles: []string{c.role}, Namespaces: []string{"shop", "web"}}
		err := Permit(p, c.action, c.kind, c.namespace)
		if (err == nil) != c.want {
			t.Errorf("%s: %s %s in %q: %v", c.role, c.action, c.kind, c.namespace, err)
		}
	}
}

func TestRefusalsNameTheRoleThatIsNeeded(t *testing.T) {
	for _, c := range []struct {
		action Action
		kind   string
		want   string
	}{
		{Register, "service", "needs the role publisher; this caller has viewer"},
		{Manage, "token", "needs the role operator"},
		{Manage, "policy", "needs the role policy-admin"},
		{Manage, "break-glass", "needs the role break-glass"},
	} {
		err := Permit(Principal{Roles: []string{Viewer}}, c.action, c.kind, "shop")
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s: %v", c.action, c.kind, err)
		}
	}
	if err := Permit(Principal{}, Lookup, "service", "shop"); err == nil || !strings.Contains(err.Error(), "this caller has none") {
		t.Errorf("without a role: %v", err)
	}
}

func TestSeveralRolesAddUp(t *testing.T) {
	p := Principal{Roles: []string{Publisher, PolicyAdmin}}
	for _, err := range []error{Permit(p, Register, "service", "a"), Permit(p, Manage, "policy", "")} {
		if err != nil {
			t.Error(err)
		}
	}
}

func TestCovers(t *testing.T) {
	plain := func(role string, in ...string) Principal { return Principal{Roles: []string{role}, Namespaces: in} }
	both := Principal{Roles: []string{Publisher, Viewer}, Grants: []Grant{{[]string{Viewer}, nil}, {[]string{Publisher}, []string{"shop"}}}}
	for _, c := range []struct {
		who  Principal
		role string
		in   []string
		want bool
	}{
		{plain(Publisher, "shop"), Publisher, []string{"shop"}, true},
		{plain(Publisher, "shop"), Viewer, []string{"shop"}, true},
		{plain(Publisher, "shop"), Publisher, []string{"shop", "bank"}, false},
		{plain(Publisher, "shop"), Viewer, nil, false},
		{plain(Viewer), Publisher, []string{"shop"}, false},
		{plain(Operator), Publisher, nil, true},
		{plain(PolicyAdmin), Publisher, nil, false},
		{plain(Publisher), Operator, []string{"shop"}, false},
		{both, Viewer, nil, true},
		{both, Publisher, []string{"shop"}, true},
		{both, Publisher, []string{"bank"}, false},
		{Principal{}, Viewer, []string{"shop"}, false},
	} {
		if got := c.who.Covers(Grant{[]string{c.role}, c.in}); got != c.want {
			t.Errorf("%v covers %s in %v: %t", c.who, c.role, c.in, got)
		}
	}
}
