package mirror

import (
	"bytes"
	"hash/maphash"
	"slices"
	"strings"

	"github.com/muster-registry/muster/audit"
)

type header struct {
	name, value string // as they came; of a secret one, no value
	secret      bool
}

// headers appends those that are carried as members of an object, and gives how
// many more there are.
func (m *Masker) headers(b []byte, r *Request, d *draft) (_ []byte, more int) {
	each := r.Headers
	if r.Fields != nil {
		if s := m.same(r.Fields, d); s != nil {
			return d.append(b, s.text), 0
		}
		clear(d.moving)
		d.moving, each = d.moving[:0], r.fields
	}
	if each == nil {
		return b, 0
	}
	sum, size := uint64(0), 0
	each(func(name, value string) bool {
		j := m.judge(name)
		if j.secret {
			value = ""
		}
		h := header{name, value, j.secret}
		switch {
		case j.restless:
			if len(d.moving) < maxHeaders {
				d.moving = append(d.moving, h)
			}
			return true
		case len(d.steady) >= maxSet:
			size = maxSetSize + 1
		}
		d.steady = append(d.steady, h)
		sum += (maphash.String(m.seed, value) ^ j.sum) * 0x9e3779b97f4a7c15 // whatever their order
		size += len(name) + len(value)
		return true
	})
	slot := sum % maxSets
	if s := m.sets[slot].Load(); s != nil && s.sum == sum && s.is(d.steady) {
		if r.Fields != nil {
			m.latest[m.slot(r.Fields)].Store(s)
		}
		return d.append(b, s.text), 0
	}
	from := len(b)
	b, more, plain := d.members(b, d.steady)
	if text := b[from:]; more == 0 && plain && size <= maxSetSize && m.seen[slot].Swap(sum) == sum {
		m.sets[slot].Store(newSet(sum, d.steady, text))
	}
	return d.append(b[:from], b[from:]), more
}

// append adds the text of the steady headers, and the moving ones behind it.
func (d *draft) append(b, steady []byte) []byte {
	b = append(b, steady...)
	if len(d.moving) > 0 {
		if len(steady) > 0 {
			b = append(b, ',')
		}
		b, _, _ = d.members(b, d.moving)
	}
	return b
}

// fields gives them one by one.
func (r *Request) fields(yield func(name, value string) bool) {
	for name, values := range r.Fields {
		value := ""
		if len(values) == 1 {
			value = values[0]
		} else {
			value = strings.Join(values, ", ")
		}
		if !yield(name, value) {
			return
		}
	}
}

func (m *Masker) slot(fields map[string][]string) uint64 {
	agent := ""
	if values := fields["User-Agent"]; len(values) > 0 {
		agent = values[0]
	}
	return maphash.String(m.seed, agent) % maxSets
}

// same gives the set that the client has sent before, where these are the same
// headers, with the restless ones in the draft; nil where that cannot be told at
// a glance. Values of secret headers do not count: they are not carried.
func (m *Masker) same(fields map[string][]string, d *draft) *set {
	s := m.latest[m.slot(fields)].Load()
	if s == nil {
		return nil
	}
	for i := range s.headers {
		h := &s.headers[i]
		values, there := fields[h.name]
		if !there || !h.secret && (len(values) != 1 || values[0] != h.value) {
			return nil
		}
	}
	more := len(fields) - len(s.headers)
	for _, name := range restless {
		if more == 0 {
			break
		}
		if values, there := fields[name]; there {
			if len(values) != 1 {
				return nil
			}
			d.moving = append(d.moving, header{name, values[0], m.judge(name).secret})
			more--
		}
	}
	if more > 0 {
		return nil
	}
	return s
}

func newSet(sum uint64, headers []header, text []byte) *set {
	s := &set{sum, slices.Clone(headers), bytes.Clone(text)}
	for i := range s.headers { // they are parts of a larger text
		s.headers[i].name, s.headers[i].value = strings.Clone(s.headers[i].name), strings.Clone(s.headers[i].value)
	}
	return s
}

// is reports whether a set was made of these headers, in any order. No two of its
// own have the same name.
func (s *set) is(headers []header) bool {
	if len(headers) != len(s.headers) {
		return false
	}
	for i := range s.headers {
		own, there := &s.headers[i], false
		for j := range headers {
			if headers[j].name == own.name {
				there = headers[j].value == own.value
				break
			}
		}
		if !there {
			return false
		}
	}
	return true
}

// members appends headers, by name, and gives how many more there are. plain
// says that each came once, and is carried without its value or as it came.
func (d *draft) members(b []byte, headers []header) (_ []byte, more int, plain bool) {
	all, plain := d.merged[:0], true
	for i := range headers {
		h := &headers[i]
		value, name := h.carried(), clip(h.name, 128)
		plain = plain && (h.secret || value == h.value)
		at, twice := slices.BinarySearchFunc(all, name, func(h header, name string) int { return strings.Compare(h.name, name) })
		switch {
		case !twice && len(all) >= maxHeaders:
			more++
		case !twice:
			all = slices.Insert(all, at, header{name: name, value: value})
		case all[at].value == Masked || value == Masked:
			all[at].value, plain = Masked, false
		default:
			all[at].value, plain = clip(all[at].value+", "+value, maxValue), false
		}
	}
	for i := range all {
		if i > 0 {
			b = append(b, ',')
		}
		b = audit.AppendText(append(audit.AppendText(b, all[i].name), ':'), all[i].value)
	}
	d.merged = all
	return b, more, plain
}
