package rego

import (
	_ "embed" // the list of built-ins
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/types"
)

// schemaBuiltin is the one function that muster adds to Rego.
const schemaBuiltin = "is_valid_schema"

// schemaAllowance is how long is_valid_schema may take in one evaluation, all
// calls together, on top of the evaluation's own limit: parsing a definition
// of the largest size takes longer than a policy may.
const schemaAllowance = time.Second

// catalog is what modules may call.
type catalog struct {
	capabilities *ast.Capabilities
	functions    map[string]*topdown.Builtin
	declaration  *ast.Builtin
	valid        func(any) bool
	impure       map[string]bool // not a function of their arguments alone
	chance       map[string]bool // nor of these and the time of the evaluation
}

func newCatalog(valid func(any) bool) *catalog {
	l := &catalog{valid: valid, impure: map[string]bool{}, chance: map[string]bool{}}
	l.declaration = &ast.Builtin{
		Name:        schemaBuiltin,
		Description: "Whether the parser of the document's format accepts it.",
		Decl: types.NewFunction(
			types.Args(types.Named("document", types.A)), types.Named("result", types.B)),
	}
	l.functions = map[string]*topdown.Builtin{
		schemaBuiltin: {Decl: l.declaration, Func: l.isValidSchema},
	}
	caps := ast.CapabilitiesForThisVersion()
	caps.Builtins = slices.DeleteFunc(slices.Clone(caps.Builtins), func(b *ast.Builtin) bool { return !allowed[b.Name] })
	caps.Builtins = append(caps.Builtins, l.declaration)
	caps.AllowNet = []string{} // not nil: nil would allow every host
	for _, b := range caps.Builtins {
		l.impure[b.Name] = b.Nondeterministic || readsClock[b.Name]
		l.chance[b.Name] = b.Nondeterministic && !ofTime[b.Name]
	}
	l.capabilities = caps
	return l
}

// without takes built-ins out.
func (l *catalog) without(names []string) *catalog {
	if len(names) > 0 {
		l.capabilities.Builtins = slices.DeleteFunc(l.capabilities.Builtins, func(b *ast.Builtin) bool { return slices.Contains(names, b.Name) })
	}
	return l
}

// allowed is what modules may call: an explicit list, so that what a newer
// OPA adds is not callable before someone has looked at it. Left out of it is
// what reaches the network or the node's environment, what cannot be
// interrupted while a small argument keeps it busy for ever or makes it fill
// the memory, and what serves a debugger only.
var allowed = func() map[string]bool {
	names := map[string]bool{}
	for name := range strings.FieldsSeq(builtins) {
		names[name] = true
	}
	return names
}()

//go:embed builtins.txt
var builtins string

// forbidden says that OPA has a built-in of the name and modules may not call
// it.
func forbidden(name string) bool {
	return ast.BuiltinMap[name] != nil && !allowed[name]
}

// readsClock names what compares with the time of the evaluation, beyond what
// OPA itself declares to be non-deterministic.
var readsClock = map[string]bool{
	"io.jwt.decode_verify":                                   true,
	"crypto.x509.parse_and_verify_certificates":              true,
	"crypto.x509.parse_and_verify_certificates_with_options": true,
}

// ofTime names what OPA declares to be non-deterministic, and what gives the
// same for the same time of the evaluation. That time is on record with each
// decision, so what these gave need not be: it would be the tokens of callers.
var ofTime = map[string]bool{"time.now_ns": true, "io.jwt.decode_verify": true}

func (l *catalog) isValidSchema(bctx topdown.BuiltinContext, operands []*ast.Term, iter func(*ast.Term) error) error {
	if c, ok := bctx.Cancel.(*clock); ok {
		c.pause()
		defer c.resume()
	}
	return iter(ast.BooleanTerm(l.accepts(operands[0])))
}

// accepts answers is_valid_schema.
func (l *catalog) accepts(document *ast.Term) bool {
	if writable(document) != nil {
		return false
	}
	x, err := ast.JSON(document.Value)
	return err == nil && l.valid(x)
}
