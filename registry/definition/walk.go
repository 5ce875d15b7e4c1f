package definition

import (
	"net/url"
	"strconv"
	"strings"

	"github.com/muster-registry/muster/fault"
)

// shape is what a value must look like. A nil shape takes anything.
type shape struct {
	kinds  string            // of JSON, as in node.kind; numbers are 0
	want   string            // the same in words
	fields map[string]*shape // of an object's known members; others are left alone
	need   []string          // members that must be there
	each   *shape            // of all members not in fields
	item   *shape            // of all items of an array
	plain  bool              // members that begin with x- are members like others
	key    func(name string) (mistake string)
	ref    bool // the value may be a reference instead
	beside bool // and what stands beside the reference counts in every dialect
	more   func(w *walk, n uint32)
}

// walk checks a tree against a shape and collects the mistakes.
type walk struct {
	tree     *tree
	path     []uint32 // from the root to the value at hand
	errors   []fault.Field
	targets  map[string]target // of references, by their text
	anchors  map[string]bool   // nil until one is asked for
	siblings bool              // members beside $ref count, as since OpenAPI 3.1
}

// target is where a reference leads.
type target struct {
	node    uint32
	mistake string
}

func (w *walk) full() bool { return len(w.errors) >= maxErrors }

// mistake notes what is wrong with n, whose parents are in w.path.
func (w *walk) mistake(n uint32, message string) {
	if w.full() {
		return
	}
	line := strconv.Itoa(w.tree.line(n))
	w.errors = append(w.errors, fault.Field{Pointer: w.pointer(n), Message: message + " (line " + line + ")"})
}

func (w *walk) pointer(n uint32) string {
	var b strings.Builder
	for i, parent := range w.path {
		child := n
		if i+1 < len(w.path) {
			child = w.path[i+1]
		}
		b.WriteByte('/')
		if w.tree.nodes[parent].kind == '{' {
			b.WriteString(escape(clip(w.tree.key(child))))
			continue
		}
		at := 0
		w.tree.children(parent, func(c uint32) bool {
			if c == child {
				return false
			}
			at++
			return true
		})
		b.WriteString(strconv.Itoa(at))
	}
	return b.String()
}

// err is nil when there is no mistake.
func (w *walk) err() error {
	if len(w.errors) == 0 {
		return nil
	}
	first := w.errors[0]
	e := fault.New(fault.InvalidDefinition, "%s %s", first.Pointer, first.Message)
	if first.Pointer == "" {
		e.Detail = "the document " + first.Message
	}
	if n := len(w.errors); n > 1 {
		e.Detail += "; errors lists " + strconv.Itoa(n) + " mistakes"
	}
	e.Fields = w.errors
	return e
}

// check looks at the value n and all below it.
func (w *walk) check(n uint32, s *shape) {
	if s == nil || w.full() {
		return
	}
	t := w.tree
	kind := t.nodes[n].kind
	if s.ref && kind == '{' {
		if r, ok := t.member(n, "$ref"); ok {
			w.reference(n, r)
			if !w.siblings && !s.beside {
				return
			}
		}
	}
	if s.kinds != "" && strings.IndexByte(s.kinds, kind) < 0 {
		w.mistake(n, "must be "+s.want)
		return
	}
	if s.more != nil {
		s.more(w, n)
	}
	if kind == '{' && len(s.need) > 0 {
		w.required(n, s)
	}
	if s.fields == nil && s.each == nil && s.item == nil && s.key == nil {
		return
	}
	w.path = append(w.path, n)
	t.children(n, func(c uint32) bool {
		w.child(s, c, kind == '{')
		return !w.full()
	})
	w.path = w.path[:len(w.path)-1]
}

func (w *walk) child(s *shape, c uint32, named bool) {
	if !named {
		w.check(c, s.item)
		return
	}
	name := w.tree.key(c)
	if f, ok := s.fields[name]; ok {
		w.check(c, f)
		return
	}
	if !s.plain && strings.HasPrefix(name, "x-") {
		return
	}
	if s.key != nil {
		if m := s.key(name); m != "" {
			w.mistake(c, m)
			return
		}
	}
	w.check(c, s.each)
}

func (w *walk) required(n uint32, s *shape) {
	if s.ref {
		if _, ok := w.tree.member(n, "$ref"); ok {
			return
		}
	}
	for _, name := range s.need {
		if _, ok := w.tree.member(n, name); !ok {
			w.mistake(n, "must have "+strconv.Quote(name))
		}
	}
}

// reference checks that the $ref r of n leads to something in this document.
func (w *walk) reference(n, r uint32) {
	if w.tree.nodes[r].kind != '"' {
		w.path = append(w.path, n)
		w.mistake(r, "must be a string")
		w.path = w.path[:len(w.path)-1]
		return
	}
	if to := w.resolve(w.tree.text(r)); to.mistake != "" {
		w.path = append(w.path, n)
		w.mistake(r, to.mistake)
		w.path = w.path[:len(w.path)-1]
	}
}

// resolve follows a reference to the end, through others if need be. Every
// reference is followed once.
func (w *walk) resolve(ref string) target {
	var chain []string
	var to target
	for {
		known, ok := w.targets[ref]
		if ok {
			to = known
			break
		}
		if w.targets == nil {
			w.targets = map[string]target{}
		}
		// While it is being followed, a reference leads to itself.
		w.targets[ref] = target{mistake: "is a reference that leads back to itself and to nothing else"}
		chain = append(chain, ref)
		if to = w.locate(ref); to.mistake != "" {
			break
		}
		next, ok := w.tree.member(to.node, "$ref")
		if !ok || w.tree.nodes[next].kind != '"' {
			break
		}
		ref = w.tree.text(next)
	}
	for _, r := range chain {
		w.targets[r] = to
	}
	return to
}

// locate finds what a reference names, without following it further.
func (w *walk) locate(ref string) target {
	fragment, local := strings.CutPrefix(ref, "#")
	switch {
	case !local:
		return target{mistake: "is a reference out of this document, to " + strconv.Quote(clip(ref)) + "; nothing is fetched, put what it names into the document"}
	case fragment == "":
		return target{mistake: "is a reference to the whole document"}
	}
	missing := target{mistake: "is a reference to " + strconv.Quote(clip(ref)) + ", which does not exist"}
	decoded, err := url.PathUnescape(fragment)
	if err != nil {
		return missing
	}
	if decoded[0] != '/' {
		if w.anchored(decoded) {
			return target{}
		}
		return missing
	}
	n := uint32(0)
	for token := range strings.SplitSeq(decoded[1:], "/") {
		token = strings.ReplaceAll(strings.ReplaceAll(token, "~1", "/"), "~0", "~")
		next, ok := w.tree.member(n, token)
		if !ok {
			next, ok = w.tree.item(n, token)
		}
		if !ok {
			return missing
		}
		n = next
	}
	return target{node: n}
}

// anchored reports whether some schema carries the anchor, as OpenAPI 3.1
// allows.
func (w *walk) anchored(name string) bool {
	if w.anchors == nil {
		w.anchors = map[string]bool{}
		for n := range w.tree.nodes {
			if node := w.tree.nodes[n]; node.kind == '"' && node.keyEnd != node.keyStart {
				if k := w.tree.key(uint32(n)); k == "$anchor" || k == "$dynamicAnchor" {
					w.anchors[w.tree.text(uint32(n))] = true
				}
			}
		}
	}
	return w.anchors[name]
}
