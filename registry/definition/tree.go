package definition

import (
	"bytes"
	"errors"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// tree is a document as a flat list of its values, parents before children. It
// refers to the text instead of copying it, so that a large document costs
// little more than its text.
type tree struct {
	src   string // valid JSON without duplicate keys
	nodes []node
	lines []int32                      // of each node in the YAML that src was made from; nil for JSON
	index map[uint32]map[string]uint32 // large objects, once asked
	items map[uint32][]uint32          // arrays, once asked
}

// node is one value. Its children are the nodes up to next, each leading to
// the following one by its own next.
type node struct {
	start, end       uint32 // in src
	keyStart, keyEnd uint32 // in src, with quotes; equal outside of objects
	next             uint32
	kind             byte // { [ " 0 t f n
}

// readTree reads JSON or YAML whose outermost value is an object.
func readTree(document []byte) (*tree, error) {
	document = bytes.TrimPrefix(document, []byte("\xef\xbb\xbf"))
	if err := checkText(document); err != nil {
		return nil, err
	}
	t := &tree{}
	values := 0
	var err error
	if trimmed := bytes.TrimLeft(document, " \t\r\n"); trimmed[0] == '{' || trimmed[0] == '[' {
		values, err = checkJSON(document)
	} else {
		document, t.lines, err = fromYAML(document)
		values = len(t.lines)
	}
	if err != nil {
		return nil, err
	}
	t.src = string(document)
	t.nodes = make([]node, 0, values)
	t.build()
	if t.nodes[0].kind != '{' {
		return nil, invalid("", "the document must be an object")
	}
	return t, nil
}

// checkJSON makes sure that document is one JSON value within bounds, and
// gives at least the number of values in it.
func checkJSON(document []byte) (values int, err error) {
	if values, err = measure(document); err != nil {
		return 0, err
	}
	dec := jsontext.NewDecoder(bytes.NewBuffer(document))
	if _, err = dec.ReadValue(); err == nil {
		if _, err = dec.ReadToken(); err == io.EOF {
			return values, nil
		}
		return 0, invalid("", "line %d: something follows the JSON value", lineOf(document, int(dec.InputOffset())))
	}
	se, ok := errors.AsType[*jsontext.SyntacticError](err)
	if !ok {
		return 0, invalid("", "line %d: the JSON ends too early", lineOf(document, len(document)))
	}
	line := lineOf(document, int(se.ByteOffset))
	if errors.Is(se.Err, jsontext.ErrDuplicateName) {
		return 0, invalid(clip(string(se.JSONPointer)), "line %d: the key stands twice in one object", line)
	}
	return 0, invalid(clip(string(se.JSONPointer)), "line %d: is not valid JSON", line)
}

// measure bounds depth and number of values before anything is built.
func measure(document []byte) (values int, err error) {
	depth := 0
	values = 1
	for i := 0; i < len(document); i++ {
		switch document[i] {
		case ',':
			values++
		case '{', '[':
			values++
			if depth++; depth > maxDepth {
				return 0, invalid("", "line %d: nests deeper than %d levels", lineOf(document, i), maxDepth)
			}
		case '}', ']':
			depth--
		case '"':
			i = endOfString(document, i)
		}
	}
	if values > maxValues {
		return 0, tooLarge("it holds more than %d values; split it", maxValues)
	}
	return values, nil
}

// endOfString gives the index of the quote that ends the string begun at i,
// or the length when none does.
func endOfString[T []byte | string](s T, i int) int {
	for i++; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			return i
		}
	}
	return len(s)
}

func lineOf(document []byte, offset int) int {
	return 1 + bytes.Count(document[:min(offset, len(document))], []byte("\n"))
}

// build lists the values of src, which is valid JSON of bounded depth.
func (t *tree) build() {
	var open [maxDepth + 1]uint32
	depth := 0
	var keyStart, keyEnd uint32
	s := t.src
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch c {
		case ' ', '\t', '\r', '\n', ',', ':':
			continue
		case '}', ']':
			depth--
			n := &t.nodes[open[depth]]
			n.end, n.next = uint32(i+1), uint32(len(t.nodes))
			continue
		}
		id := uint32(len(t.nodes))
		n := node{start: uint32(i), keyStart: keyStart, keyEnd: keyEnd, next: id + 1, kind: c}
		switch c {
		case '{', '[':
			open[depth] = id
			depth++
		case '"':
			i = endOfString(s, i)
			n.end = uint32(i + 1)
			inObject := depth > 0 && t.nodes[open[depth-1]].kind == '{'
			if inObject && keyStart == keyEnd {
				keyStart, keyEnd = n.start, n.end
				continue
			}
		default:
			for i+1 < len(s) && strings.IndexByte(",]} \t\r\n", s[i+1]) < 0 {
				i++
			}
			n.end = uint32(i + 1)
			if c == '-' || c <= '9' {
				n.kind = '0'
			}
		}
		keyStart, keyEnd = 0, 0
		t.nodes = append(t.nodes, n)
	}
}

func (t *tree) contentType() string {
	if t.lines != nil {
		return "application/yaml"
	}
	return "application/json"
}

// text gives a string's content, or another value as it is written.
func (t *tree) text(n uint32) string {
	raw := t.src[t.nodes[n].start:t.nodes[n].end]
	if t.nodes[n].kind != '"' {
		return raw
	}
	return unquote(raw)
}

// key gives the name of a member.
func (t *tree) key(n uint32) string { return unquote(t.src[t.nodes[n].keyStart:t.nodes[n].keyEnd]) }

func unquote(raw string) string {
	if len(raw) < 2 {
		return ""
	}
	if strings.IndexByte(raw, '\\') < 0 {
		return raw[1 : len(raw)-1]
	}
	b, _ := jsontext.AppendUnquote(nil, raw)
	return string(b)
}

// children calls fn for each member or item of n until fn returns false.
func (t *tree) children(n uint32, fn func(child uint32) bool) {
	if k := t.nodes[n].kind; k != '{' && k != '[' {
		return
	}
	for c := n + 1; c < t.nodes[n].next; c = t.nodes[c].next {
		if !fn(c) {
			return
		}
	}
}

// member finds a member of an object. Objects with many members are indexed
// when they are first asked, so that looking all of them up stays linear.
func (t *tree) member(n uint32, name string) (uint32, bool) {
	if t.nodes[n].kind != '{' {
		return 0, false
	}
	if idx, ok := t.index[n]; ok {
		c, ok := idx[name]
		return c, ok
	}
	const few = 32
	seen := 0
	for c := n + 1; c < t.nodes[n].next; c = t.nodes[c].next {
		if t.key(c) == name {
			return c, true
		}
		if seen++; seen > few {
			return t.indexed(n, name)
		}
	}
	return 0, false
}

func (t *tree) indexed(n uint32, name string) (uint32, bool) {
	idx := map[string]uint32{}
	t.children(n, func(c uint32) bool { idx[t.key(c)] = c; return true })
	if t.index == nil {
		t.index = map[uint32]map[string]uint32{}
	}
	t.index[n] = idx
	c, ok := idx[name]
	return c, ok
}

// item finds an item of an array by the token of a JSON pointer.
func (t *tree) item(n uint32, token string) (uint32, bool) {
	at, err := strconv.ParseUint(token, 10, 31)
	if err != nil || t.nodes[n].kind != '[' || len(token) > 1 && token[0] == '0' {
		return 0, false
	}
	items, ok := t.items[n]
	if !ok {
		t.children(n, func(c uint32) bool { items = append(items, c); return true })
		if t.items == nil {
			t.items = map[uint32][]uint32{}
		}
		t.items[n] = items
	}
	if at >= uint64(len(items)) {
		return 0, false
	}
	return items[at], true
}

// line is where a value stands in the document as it was sent, from 1.
func (t *tree) line(n uint32) int {
	if t.lines != nil {
		return int(t.lines[n])
	}
	return 1 + strings.Count(t.src[:t.nodes[n].start], "\n")
}

// clip shortens what a caller sent before it is said back.
func clip(s string) string {
	const most = 160
	if len(s) <= most {
		return s
	}
	for i := most; i > most-utf8.UTFMax; i-- {
		if utf8.RuneStart(s[i]) {
			return s[:i] + "…"
		}
	}
	return s[:most] + "…"
}

// escape makes one token of a JSON pointer.
func escape(token string) string {
	return strings.ReplaceAll(strings.ReplaceAll(token, "~", "~0"), "/", "~1")
}
