package definition

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Normal is a definition as rules judge it: flat lists of what it says about
// servers, security, operations, parameters and schemas, the same for all
// versions of OpenAPI, Swagger and AsyncAPI. Things about which the same facts
// hold are one entry of a list, and its member places is the number of the
// list of places where they stand, so that a definition of thousands of
// operations comes to a few hundred entries.
type Normal struct {
	// JSON is the normal form; docs/definition-rules.md describes its members.
	JSON []byte
	// Entries is how many entries the lists have in all.
	Entries int
	// Partial says that the normal form lacks something: a document in which
	// references multiply would have taken too long.
	Partial bool

	tree   *tree
	places [][]uint32 // nodes in the order of the document, by number
}

// Context is what a registry knows about a version beside its document.
type Context struct {
	Owner     string // of the service
	Lifecycle string // of the version
	// Published are the other versions of the service that are published.
	Published []Published
}

// Published is another version of a service, and what it offers.
type Published struct {
	Version string
	Routes  []Route
}

// Normalise gives the normal form of a document that [Parse] accepts; nil
// without an error where the format has none, which is so for graphql, wsdl
// and protobuf. A nil context means that the document stands alone. Errors are
// those of Parse.
func Normalise(format string, document []byte, c *Context) (*Normal, error) {
	if format != "openapi" && format != "asyncapi" {
		return nil, nil
	}
	if len(document) > maxSize {
		return nil, tooLarge("it has %d bytes, and %d is the most; split it", len(document), maxSize)
	}
	t, err := readTree(document)
	if err != nil {
		return nil, err
	}
	w := &walk{tree: t}
	dialect := w.dialect
	if format == "asyncapi" {
		dialect = w.asyncapiDialect
	}
	root, name, err := dialect()
	if err != nil {
		return nil, err
	}
	w.check(0, root)
	if err := w.err(); err != nil {
		return nil, err
	}
	z := &normaliser{walk: w, context: c, seen: make([]uint8, len(t.nodes)), claims: claims(c), budget: maxSteps}
	if format == "asyncapi" {
		z.asyncapi()
	} else {
		z.openapi()
	}
	z.schemas()
	return z.finish(format, name)
}

// normaliser collects the facts of one document.
type normaliser struct {
	*walk
	context *Context
	claims  map[Route][]string // versions that offer the same already
	places  [][]uint32
	entries int
	budget  int // of steps; below 0 nothing more is looked at

	servers, operations, alternatives, parameters, shapes, callbacks, links, references, unread roll

	schemes map[string]*schemeFacts

	seen    []uint8 // what is known of each node as a schema or a parameter
	pending []visit // schemas still to look at
}

// The bounds of the work on one document: values looked at, of which there
// could not be more than a few times maxValues without references, and what
// one operation may list, since references let thousands share a long list.
const (
	maxSteps  = 6 << 20
	maxListed = 200
)

// listed says whether a list of the facts may have n items.
func (z *normaliser) listed(n int) bool {
	if n > maxListed {
		z.budget = min(z.budget, -1)
	}
	return n <= maxListed
}

// spend says whether so many more steps may be taken.
func (z *normaliser) spend(steps int) bool {
	z.budget -= steps
	return z.budget >= 0
}

// children calls fn for each member or item of n.
func (z *normaliser) children(n uint32, fn func(c uint32)) {
	z.tree.children(n, func(c uint32) bool {
		if !z.spend(1) {
			return false
		}
		fn(c)
		return true
	})
}

// roll is one list of the normal form: no facts stand in it twice.
type roll struct {
	numbers map[string]int // of places, by the facts as JSON
	entries [][]byte
}

// add notes that the facts hold at the node n.
func (z *normaliser) add(l *roll, facts any, n uint32) {
	b, err := json.Marshal(facts, json.Deterministic(true), jsontext.AllowInvalidUTF8(true))
	if err != nil || !z.spend(1+len(b)/32) {
		z.budget = min(z.budget, -1)
		return
	}
	at, ok := l.numbers[string(b)]
	if !ok {
		if l.numbers == nil {
			l.numbers = map[string]int{}
		}
		at = z.place()
		l.numbers[string(b)] = at
		b = append(b[:len(b)-1], `,"places":`...)
		l.entries = append(l.entries, append(strconv.AppendInt(b, int64(at), 10), '}'))
		z.entries++
	}
	z.places[at] = append(z.places[at], n)
}

// place begins a list of places and gives its number.
func (z *normaliser) place(nodes ...uint32) int {
	z.places = append(z.places, nodes)
	return len(z.places) - 1
}

func (l *roll) json() jsontext.Value {
	return slices.Concat([]byte{'['}, bytes.Join(l.entries, []byte{','}), []byte{']'})
}

func (z *normaliser) finish(format, dialect string) (*Normal, error) {
	type about struct {
		Version string `json:"version"`
		Places  int    `json:"places"`
	}
	type registry struct {
		Owner     string `json:"owner"`
		Lifecycle string `json:"lifecycle"`
		Places    int    `json:"places"`
	}
	form := struct {
		Kind       string                  `json:"kind"`
		Dialect    string                  `json:"dialect"`
		Info       about                   `json:"info"`
		Registry   *registry               `json:"registry"`
		Schemes    map[string]*schemeFacts `json:"schemes"`
		Servers    jsontext.Value          `json:"servers"`
		Operations jsontext.Value          `json:"operations"`
		Security   jsontext.Value          `json:"security"`
		Parameters jsontext.Value          `json:"parameters"`
		Schemas    jsontext.Value          `json:"schemas"`
		Callbacks  jsontext.Value          `json:"callbacks"`
		Links      jsontext.Value          `json:"links"`
		References jsontext.Value          `json:"references"`
		Unread     jsontext.Value          `json:"unread"`
	}{
		Kind: format, Dialect: dialect, Schemes: z.schemes,
		Servers: z.servers.json(), Operations: z.operations.json(), Security: z.alternatives.json(), Parameters: z.parameters.json(), Schemas: z.shapes.json(),
		Callbacks: z.callbacks.json(), Links: z.links.json(), References: z.references.json(), Unread: z.unread.json(),
	}
	info, _ := z.tree.member(0, "info")
	form.Info = about{clip(z.label(info, "version")), z.place(info)}
	if z.context != nil {
		form.Registry = &registry{clip(z.context.Owner), z.context.Lifecycle, z.place(0)}
	}
	b, err := json.Marshal(form, json.Deterministic(true), jsontext.AllowInvalidUTF8(true))
	if err != nil {
		return nil, invalid("", "cannot be brought into normal form: %s", clip(err.Error()))
	}
	for i := range z.places {
		slices.Sort(z.places[i])
		z.places[i] = slices.Compact(z.places[i])
	}
	return &Normal{JSON: b, Entries: z.entries + len(z.schemes), Partial: z.budget < 0, tree: z.tree, places: z.places}, nil
}

// claims lists, by route, which of the published versions offer it.
func claims(c *Context) map[Route][]string {
	if c == nil || c.Lifecycle != "published" || len(c.Published) == 0 {
		return nil
	}
	out := map[Route][]string{}
	for _, v := range c.Published {
		for _, r := range v.Routes {
			r = r.anonymous()
			if l := out[r]; len(l) == 0 || l[len(l)-1] != v.Version {
				out[r] = append(l, v.Version)
			}
		}
	}
	return out
}

// anonymous leaves out the names that an author gave to a route's parameters,
// and the one of the operation.
func (r Route) anonymous() Route {
	var b strings.Builder
	inside := false
	for _, c := range r.Path {
		switch {
		case c == '{':
			inside = true
			b.WriteRune(c)
		case c == '}':
			inside = false
			b.WriteRune(c)
		case !inside:
			b.WriteRune(c)
		}
	}
	return Route{Method: r.Method, Path: b.String()}
}

// words takes a name apart: callbackURL, callback_url and callback-url are
// callback and url.
func words(name string) []string {
	out := []string{}
	runes := []rune(clip(name))
	from := 0
	cut := func(to int) {
		if to > from {
			out = append(out, strings.ToLower(string(runes[from:to])))
		}
	}
	for i, r := range runes {
		switch {
		case !unicode.IsLetter(r) && !unicode.IsDigit(r):
			cut(i)
			from = i + 1
		case i > from && unicode.IsUpper(r) && (unicode.IsLower(runes[i-1]) || unicode.IsDigit(runes[i-1]) || i+1 < len(runes) && unicode.IsLower(runes[i+1])):
			cut(i)
			from = i
		}
	}
	cut(len(runes))
	return out
}

// texts gives the strings of an array.
func (z *normaliser) texts(n uint32) []string {
	out := []string{}
	z.children(n, func(c uint32) {
		if k := z.tree.nodes[c].kind; (k == '"' || k == '0') && z.listed(len(out)) {
			out = append(out, clip(z.tree.text(c)))
		}
	})
	return out
}

// extensions lists the names of the members that begin with x- and are not
// null or false.
func (z *normaliser) extensions(n uint32) []string {
	out := []string{}
	z.children(n, func(c uint32) {
		if name := z.tree.key(c); strings.HasPrefix(name, "x-") && strings.IndexByte("nf", z.tree.nodes[c].kind) < 0 {
			out = append(out, clip(name))
		}
	})
	slices.Sort(out)
	return out
}

// each calls fn for the members of the object in a member of n.
func (z *normaliser) each(n uint32, name string, fn func(c uint32)) {
	if v, ok := z.tree.member(n, name); ok {
		z.children(v, fn)
	}
}

func (z *normaliser) is(n uint32, name, value string) bool {
	v, ok := z.tree.member(n, name)
	return ok && z.tree.text(v) == value
}

func (z *normaliser) has(n uint32, name string) bool {
	_, ok := z.tree.member(n, name)
	return ok
}
