package rego

import (
	"time"

	"github.com/maypok86/otter/v2"
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
	opacache "github.com/open-policy-agent/opa/v1/topdown/cache"
)

const (
	tokenBytes = 16 << 20         // of tokens and keys that are remembered, all together
	tokenTTL   = 10 * time.Minute // for a signature: it does not age, and claims are compared each time
)

// tokens remembers for OPA's io.jwt functions which signatures they verified
// and which keys they parsed. A signature is a function of the token, the key
// and the algorithm; what depends on the time, such as exp, OPA compares on
// every call. It implements OPA's InterQueryValueCache, bounded by size.
type tokens struct {
	seen *otter.Cache[tokenKey, remembered]
}

// tokenKey names what was remembered: the whole of the text, so that nothing
// is ever taken for something else.
type tokenKey struct {
	bucket, algorithm, text string
}

type remembered struct{ value any }

func newTokens() *tokens {
	return &tokens{seen: otter.Must(&otter.Options[tokenKey, remembered]{
		MaximumWeight: tokenBytes,
		// What was decoded from a text takes a few times its length.
		Weigher:          func(k tokenKey, _ remembered) uint32 { return uint32(entryCost + 8*len(k.text)) },
		ExpiryCalculator: otter.ExpiryWriting[tokenKey, remembered](tokenTTL),
	})}
}

func (t *tokens) close() { t.seen.StopAllGoroutines() }

// GetCache implements opacache.InterQueryValueCache.
func (t *tokens) GetCache(name string) opacache.InterQueryValueCacheBucket {
	switch name {
	case "io_jwt", "io_jwt_keys":
		return bucket{t, name, ""}
	}
	return nil
}

// Get implements opacache.InterQueryValueCache, whose unnamed part is not used.
func (t *tokens) Get(ast.Value) (any, bool) { return nil, false }

// Insert implements opacache.InterQueryValueCache.
func (t *tokens) Insert(ast.Value, any) int { return 0 }

// Delete implements opacache.InterQueryValueCache.
func (t *tokens) Delete(ast.Value) {}

// UpdateConfig implements opacache.InterQueryValueCache.
func (t *tokens) UpdateConfig(*opacache.Config) {}

// forAlgorithm is the cache for calls that ask for one algorithm: OPA's own
// key leaves it out, so that a signature verified by another would do.
type forAlgorithm struct {
	*tokens
	algorithm string
}

// GetCache implements opacache.InterQueryValueCache.
func (f forAlgorithm) GetCache(name string) opacache.InterQueryValueCacheBucket {
	if b, ok := f.tokens.GetCache(name).(bucket); ok {
		b.algorithm = f.algorithm
		return b
	}
	return nil
}

type bucket struct {
	of              *tokens
	name, algorithm string
}

func (b bucket) key(v ast.Value) (tokenKey, bool) {
	text := v.String()
	return tokenKey{b.name, b.algorithm, text}, len(text) <= maxKey
}

// Get implements opacache.InterQueryValueCacheBucket.
func (b bucket) Get(key ast.Value) (any, bool) {
	k, ok := b.key(key)
	if !ok {
		return nil, false
	}
	r, ok := b.of.seen.GetIfPresent(k)
	return r.value, ok
}

// Insert implements opacache.InterQueryValueCacheBucket.
func (b bucket) Insert(key ast.Value, value any) int {
	if k, ok := b.key(key); ok {
		b.of.seen.Set(k, remembered{value})
	}
	return 0
}

// Delete implements opacache.InterQueryValueCacheBucket.
func (b bucket) Delete(key ast.Value) {
	if k, ok := b.key(key); ok {
		b.of.seen.Invalidate(k)
	}
}

func init() {
	// Each call sees only what was verified by the algorithm it asks for, and
	// by its own function.
	for _, b := range ast.DefaultBuiltins {
		if len(b.Name) < 7 || b.Name[:7] != "io.jwt." {
			continue
		}
		original := topdown.GetBuiltin(b.Name)
		if original == nil {
			continue
		}
		topdown.RegisterBuiltinFunc(b.Name, func(bctx topdown.BuiltinContext, operands []*ast.Term, iter func(*ast.Term) error) error {
			if t, ok := bctx.InterQueryBuiltinValueCache.(*tokens); ok {
				algorithm := b.Name
				if len(operands) > 1 {
					if o, ok := operands[1].Value.(ast.Object); ok {
						if alg := o.Get(ast.InternedTerm("alg")); alg != nil {
							algorithm += " " + alg.Value.String()
						}
					}
				}
				bctx.InterQueryBuiltinValueCache = forAlgorithm{t, algorithm}
			}
			return original(bctx, operands, iter)
		})
	}
}
