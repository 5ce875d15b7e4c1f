package policy

import (
	"slices"
	"strings"

	"github.com/muster-registry/muster/fault"
)

// The built-in roles.
const (
	Viewer      = "viewer"       // looks up and reads in its namespaces
	Publisher   = "publisher"    // and registers, updates, deletes, sends heartbeats there
	Operator    = "operator"     // and runs the cluster, its tokens, snapshots and policies
	PolicyAdmin = "policy-admin" // reads, and manages policies
	BreakGlass  = "break-glass"  // reads, and opens a namespace in an emergency
)

// Roles lists the built-in roles, weakest first.
func Roles() []string { return []string{Viewer, Publisher, Operator, PolicyAdmin, BreakGlass} }

// Actions lists what callers can want.
func Actions() []Action {
	return []Action{Register, Update, Delete, Lookup, Watch, Authorize, Issue, Heartbeat, Spend, Read, Manage}
}

// Kinds lists the kinds of resource that the built-in roles know.
func Kinds() (all []string) {
	for _, g := range grants {
		all = append(all, g.kinds...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// scope says what a credential that is limited to namespaces may still do.
type scope uint8

const (
	namespaced  scope = iota // in its namespaces; across all, with the answer filtered
	inNamespace              // in its namespaces; never across all
	clusterWide              // nothing: needs a credential without a limit
	anywhere                 // everything: no namespace is concerned
)

var (
	everyone = []string{Viewer, Publisher, Operator, PolicyAdmin, BreakGlass}
	writers  = []string{Publisher, Operator}
	admins   = []string{PolicyAdmin, Operator}
	operator = []string{Operator}
	breakers = []string{BreakGlass}
	watchers = []string{BreakGlass, PolicyAdmin, Operator}
)

var (
	records = []string{"service", "version", "instance"}
	own     = []string{"cluster", "token", "key", "snapshot", "quota", "webhook", "revocation", "role", "audit"}
)

// grants is the whole of what the built-in roles may do; what is not in it
// nobody may. In each row the role to ask for comes first.
var grants = []struct {
	actions []Action
	kinds   []string
	scope   scope
	roles   []string
}{
	{[]Action{Lookup, Watch}, records, namespaced, everyone},
	{[]Action{Register, Update, Delete, Heartbeat}, records, inNamespace, writers},
	{[]Action{Issue}, []string{"certificate"}, namespaced, everyone},
	{[]Action{Spend}, []string{"quota"}, namespaced, writers},
	{[]Action{Authorize}, []string{"decision"}, anywhere, everyone},
	{[]Action{Read}, []string{"cluster"}, anywhere, everyone},
	{[]Action{Read}, []string{"policy", "schema", "decision"}, clusterWide, admins},
	{[]Action{Manage}, []string{"policy", "schema"}, clusterWide, admins},
	{[]Action{Read, Manage}, own, clusterWide, operator},
	{[]Action{Manage}, []string{"break-glass"}, namespaced, breakers},
	{[]Action{Read}, []string{"break-glass"}, namespaced, watchers},
}

// Permit says whether the principal's built-in roles allow the action on a
// kind of resource in a namespace. An empty namespace means that the call is
// not about one: a look-up across namespaces is then permitted, and its caller
// must leave out what [Principal.Sees] does not. The error is forbidden and
// names the role that is needed.
func Permit(p Principal, action Action, kind, namespace string) error {
	if len(p.Grants) == 0 {
		_, err := permit(Grant{p.Roles, p.Namespaces}, action, kind, namespace)
		return err
	}
	var refusal error
	for _, g := range p.Grants {
		held, err := permit(g, action, kind, namespace)
		if err == nil {
			return nil
		}
		// That a namespace is missing says more than that a role is.
		if refusal == nil || held {
			refusal = err
		}
	}
	return refusal
}

// permit answers for one grant; held says whether it has a role for it.
func permit(have Grant, action Action, kind, namespace string) (held bool, refusal error) {
	var needed string
	for _, g := range grants {
		if !slices.Contains(g.actions, action) || !slices.Contains(g.kinds, kind) {
			continue
		}
		if !slices.ContainsFunc(have.Roles, func(r string) bool { return slices.Contains(g.roles, r) }) {
			if needed == "" {
				needed = g.roles[0]
			}
			continue
		}
		return true, have.within(g.scope, action, kind, namespace)
	}
	if needed == "" {
		if kind == "" {
			kind = "resource of no kind"
		}
		return false, fault.New(fault.Forbidden, "no role allows to %s a %s", action, kind)
	}
	if len(have.Roles) == 0 {
		return false, fault.New(fault.Forbidden, "to %s a %s needs the role %s; this caller has none: it has proved who it is, and no role rule is about its credential (muster get role)", action, kind, needed)
	}
	return false, fault.New(fault.Forbidden, "to %s a %s needs the role %s; this caller has %s", action, kind, needed, strings.Join(have.Roles, ", "))
}

func (p Grant) within(s scope, action Action, kind, namespace string) error {
	if len(p.Namespaces) == 0 || s == anywhere || (s == namespaced && namespace == "") {
		return nil
	}
	limit := strings.Join(p.Namespaces, ", ")
	if s == clusterWide || namespace == "" {
		return fault.New(fault.Forbidden, "to %s a %s concerns the whole cluster; this caller is limited to the namespaces %s: use a credential without such a limit", action, kind, limit)
	}
	if !slices.Contains(p.Namespaces, namespace) {
		return fault.New(fault.Forbidden, "this caller is limited to the namespaces %s; to %s a %s in %s use a credential for that namespace", limit, action, kind, namespace)
	}
	return nil
}

// Sees says whether the namespace is among those the principal is limited to.
func (p Principal) Sees(namespace string) bool {
	return len(p.Namespaces) == 0 || slices.Contains(p.Namespaces, namespace)
}

// Covers says whether the principal has, in every namespace of the grant, each
// of its roles or one that may do all that it may.
func (p Principal) Covers(g Grant) bool {
	have := p.Grants
	if len(have) == 0 {
		have = []Grant{{p.Roles, p.Namespaces}}
	}
	in := g.Namespaces
	if len(in) == 0 {
		in = []string{""} // all of them
	}
	for _, role := range g.Roles {
		for _, ns := range in {
			if !slices.ContainsFunc(have, func(h Grant) bool {
				return (len(h.Namespaces) == 0 || ns != "" && slices.Contains(h.Namespaces, ns)) &&
					slices.ContainsFunc(h.Roles, func(r string) bool { return r == role || slices.Contains(above[role], r) })
			}) {
				return false
			}
		}
	}
	return true
}

// above lists the roles that may do all that a role may.
var above = map[string][]string{Viewer: {Publisher, Operator, PolicyAdmin, BreakGlass}, Publisher: {Operator}}
