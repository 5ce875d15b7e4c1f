package rego

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// A built-in that runs cannot be interrupted, so no time limit helps against
// one that a small argument keeps busy for ever, or makes fill the memory. The
// worst are forbidden (see catalog); those below are replaced, for the whole
// process, by ones that look at the size of what is asked first.
const (
	maxText     = 4 << 20  // bytes of text that one call may make
	maxDocument = 64 << 20 // bytes of one document, each part counted as often as it is reached
	maxDigits   = 4096     // bytes in the text of a number
	maxMembers  = 1 << 20  // of one array that a call may make
	maxNesting  = 1000     // levels of brackets in a text that is parsed
)

var (
	errNumber   = errors.New("a number is too big to calculate with")
	errText     = fmt.Errorf("the text would be larger than %d MiB", maxText>>20)
	errMembers  = fmt.Errorf("the array would have more than %d members", maxMembers)
	errNesting  = fmt.Errorf("the text is nested deeper than %d levels", maxNesting)
	errDocument = fmt.Errorf("the document would be larger than %d MiB", maxDocument>>20)
)

// isLimit says whether an evaluation failed because of one of them.
func isLimit(err error) bool {
	for _, limit := range []error{errNumber, errText, errDocument, errMembers, errNesting, errParts} {
		if strings.Contains(err.Error(), limit.Error()) {
			return true
		}
	}
	return false
}

func init() {
	// With decimal exponents, a few characters make a number of any length.
	for _, b := range []*ast.Builtin{
		ast.Plus, ast.Minus, ast.Multiply, ast.Divide, ast.Rem, ast.Abs, ast.Ceil, ast.Floor, ast.Round, ast.Sum, ast.Product,
		ast.NumbersRange, ast.NumbersRangeStep, ast.FormatInt, ast.BitsAnd, ast.BitsOr, ast.BitsXOr, ast.BitsNegate, ast.BitsShiftRight,
	} {
		guard(b.Name, numbers)
	}
	// These make texts whose length is a product.
	guard(ast.Concat.Name, func(o []*ast.Term) error { return texts(length(o[1])+1, length(o[0]), size(o[1])) })
	guard(ast.Replace.Name, func(o []*ast.Term) error { return texts(length(o[0])+1, length(o[2]), length(o[0])) })
	guard(ast.ReplaceN.Name, func(o []*ast.Term) error { return texts(length(o[1])+1, size(o[0]), length(o[1])) })
	guard(ast.RegexReplace.Name, func(o []*ast.Term) error { return texts(length(o[0])+1, length(o[2]), length(o[0])) })
	guard(ast.Sprintf.Name, func(o []*ast.Term) error {
		if err := numbers(o); err != nil {
			return err
		}
		format, _ := o[0].Value.(ast.String)
		widest := 1000
		if widths.MatchString(string(format)) {
			widest = 1_000_000 // more is not possible
		}
		return texts(strings.Count(string(format), "%"), size(o[1])+widest, len(format))
	})
	// These compare, for as long as the smaller of two documents is large.
	for _, b := range []*ast.Builtin{ast.Equal, ast.NotEqual, ast.LessThan, ast.LessThanEq, ast.GreaterThan, ast.GreaterThanEq, ast.Member, ast.MemberWithKey} {
		guard(b.Name, comparison)
	}
	// These make arrays whose length grows with each use.
	guard(ast.ArrayConcat.Name, func(o []*ast.Term) error { return members(length(o[0]) + length(o[1])) })
	guard(ast.Split.Name, func(o []*ast.Term) error {
		text, _ := o[0].Value.(ast.String)
		delimiter, _ := o[1].Value.(ast.String)
		if len(text) <= maxMembers {
			return nil
		}
		return members(strings.Count(string(text), string(delimiter)))
	})
	// These make a text longer, by a factor.
	for _, b := range []*ast.Builtin{ast.HexEncode, ast.URLQueryEncode, ast.Base64Encode, ast.Base64UrlEncode, ast.Base64UrlEncodeNoPad} {
		guard(b.Name, func(o []*ast.Term) error { return texts(1, 0, length(o[0])) })
	}
	guard(ast.JSONUnmarshal.Name, func(o []*ast.Term) error { return texts(1, 0, length(o[0])) })
	// The product of many numbers is as long as all of them together.
	guard(ast.Product.Name, func(o []*ast.Term) error {
		if size(o[0]) > 16*maxDigits {
			return errNumber
		}
		return nil
	})
	// The parser recurses once for each level, without a bound.
	for _, b := range []*ast.Builtin{ast.GraphQLIsValid, ast.GraphQLParse, ast.GraphQLParseAndVerify, ast.GraphQLParseQuery, ast.GraphQLParseSchema, ast.GraphQLSchemaIsValid} {
		guard(b.Name, func(o []*ast.Term) error {
			for _, t := range o {
				if s, ok := t.Value.(ast.String); ok && nesting(string(s)) > maxNesting {
					return errNesting
				}
			}
			return nil
		})
	}
	// These go through a document, in which one part may stand many times.
	for _, b := range []*ast.Builtin{ast.JSONMarshal, ast.JSONMarshalWithOptions, ast.YAMLMarshal, ast.URLQueryEncodeObject, ast.WalkBuiltin, ast.ObjectSubset} {
		guard(b.Name, func(o []*ast.Term) error { return writable(o[0]) })
	}
	guard(ast.JSONSchemaVerify.Name, func(o []*ast.Term) error { return errors.Join(writable(o[0]), noFiles(o[0])) })
	guard(ast.JSONMatchSchema.Name, func(o []*ast.Term) error {
		return errors.Join(writable(o[0]), writable(o[1]), noFiles(o[1]))
	})
}

// widths finds a width or a precision of four digits, or one that an argument gives.
var widths = regexp.MustCompile(`[0-9]{4}|\*`)

// guard puts a check before a built-in.
func guard(name string, check func(operands []*ast.Term) error) {
	original := topdown.GetBuiltin(name)
	topdown.RegisterBuiltinFunc(name, func(bctx topdown.BuiltinContext, operands []*ast.Term, iter func(*ast.Term) error) error {
		if err := check(operands); err != nil {
			return err
		}
		return original(bctx, operands, iter)
	})
}

// numbers checks all operands that are numbers or hold some.
func numbers(operands []*ast.Term) error {
	for _, o := range operands {
		ok := true
		switch v := o.Value.(type) {
		case ast.Number:
			ok = plain(string(v))
		case *ast.Array:
			ok = !v.Until(tooBig)
		case ast.Set:
			ok = !v.Until(tooBig)
		}
		if !ok {
			return errNumber
		}
	}
	return nil
}

func tooBig(t *ast.Term) bool {
	n, ok := t.Value.(ast.Number)
	return ok && !plain(string(n))
}

// plain says whether the text of a number stays short when written out.
func plain(number string) bool {
	if len(number) > maxDigits {
		return false
	}
	at := strings.IndexAny(number, "eE")
	return at < 0 || len(strings.TrimLeft(number[at+1:], "+-0")) < 4
}

// texts bounds a text of many parts of one length, and a rest.
func texts(count, each, rest int) error {
	if rest > maxText || (each > 0 && count > (maxText-rest)/each) {
		return errText
	}
	return nil
}

// comparison checks that one of the first two operands at least is no large
// document.
func comparison(operands []*ast.Term) error {
	for _, o := range operands[:2] {
		switch o.Value.(type) {
		case *ast.Array, ast.Object, ast.Set:
		default:
			return nil
		}
	}
	return writable(operands[0])
}

func members(n int) error {
	if n > maxMembers {
		return errMembers
	}
	return nil
}

// nesting is how deep a text opens brackets of any kind; it may say too much,
// for those in strings and comments.
func nesting(text string) (deepest int) {
	level := 0
	for _, c := range []byte(text) {
		switch c {
		case '{', '[', '(':
			level++
			deepest = max(deepest, level)
		case '}', ']', ')':
			level = max(level-1, 0)
		}
	}
	return deepest
}

// length is that of a text in bytes, or the number of members.
func length(t *ast.Term) int {
	switch v := t.Value.(type) {
	case ast.String:
		return len(v)
	case *ast.Array:
		return v.Len()
	case ast.Set:
		return v.Len()
	case ast.Object:
		return v.Len()
	}
	return 0
}

// writable checks that the document can be written out.
func writable(t *ast.Term) error {
	if size(t) > maxDocument {
		return errDocument
	}
	return nil
}

// size is how much writing a value out takes, roughly; it stops counting soon
// after maxDocument.
func size(t *ast.Term) int {
	n := 0
	var grow func(t *ast.Term) bool
	grow = func(t *ast.Term) bool {
		n += 8
		switch v := t.Value.(type) {
		case ast.String:
			n += len(v)
		case ast.Number:
			n += len(v)
		case *ast.Array:
			v.Until(grow)
		case ast.Set:
			v.Until(grow)
		case ast.Object:
			v.Until(func(key, value *ast.Term) bool { return grow(key) || grow(value) })
		}
		return n > maxDocument
	}
	grow(t)
	return n
}

// noFiles refuses a JSON Schema that refers to a file: OPA reads it, without a
// bound, so that {"$ref":"file:///dev/zero"} in a policy or in an input would
// end the node. OPA has no setting for that. References to the network are
// stopped by the empty allow_net.
func noFiles(schema *ast.Term) error {
	if refersToFile(schema.Value) {
		return errors.New("the schema refers to a file; put all of it in one document")
	}
	return nil
}
