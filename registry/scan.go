package registry

import (
	"bytes"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"
	"unsafe"
)

// scanner reads an instance's record in exactly the form in which seal writes
// it, at a small part of what a general decoder costs: a node that starts or
// restores reads hundreds of thousands. Whatever deviates makes it bad, which is
// no mistake of the record's: json.Unmarshal decides on that. What it takes,
// json.Unmarshal would take too, and read alike. Strings that are a record's own
// are parts of its JSON, which nobody changes and which it keeps anyway.
type scanner struct {
	rest  []byte
	bad   bool
	words *words
	of    Key // the service that the record is probably of
}

// words has the one copy of the strings that many records share, as [intern]
// gives it, and of their durations, at less cost for those that came lately.
type words struct {
	shared    map[string]string
	durations map[string]Duration

	lately string   // the last list as it was written, with its closing bracket
	list   []string // what it holds; not to be changed
}

const maxWords = 4096

func newWords() *words {
	return &words{shared: map[string]string{}, durations: map[string]Duration{}}
}

func (w *words) get(b []byte) string {
	if s, ok := w.shared[string(b)]; ok {
		return s
	}
	if len(w.shared) >= maxWords {
		clear(w.shared)
	}
	s := intern(string(b))
	w.shared[s] = s
	return s
}

func (w *words) duration(b []byte) (Duration, bool) {
	if d, ok := w.durations[string(b)]; ok {
		return d, true
	}
	d, err := time.ParseDuration(string(b))
	if err != nil {
		return 0, false
	}
	if len(w.durations) >= maxWords {
		clear(w.durations)
	}
	w.durations[string(b)] = Duration(d)
	return Duration(d), true
}

// instance fills rec, but for its JSON and what a load adds to a record; false:
// it is not in the form, and rec is of no use.
func (s *scanner) instance(rec *Instance) bool {
	s.lit(`{"namespace":"`)
	rec.Namespace = s.likely(s.of.Namespace)
	s.lit(`,"service":"`)
	rec.Service = s.likely(s.of.Service)
	s.lit(`,"id":"`)
	rec.ID = part(s.text())
	s.lit(`,"address":"`)
	rec.Address = part(s.text())
	s.lit(`,"port":`)
	rec.Port = int(s.number(9))
	s.lit(`,"version":"`)
	rec.Version = s.words.get(s.text())
	s.lit(`,"zone":"`)
	rec.Zone = s.words.get(s.text())
	s.lit(`,"weight":`)
	rec.Weight = int(s.number(9))
	s.lit(`,"status":"`)
	rec.Status = s.words.get(s.text())
	s.lit(`,"tags":[`)
	rec.Tags = s.list()
	s.lit(`,"metadata":{`)
	rec.Metadata = s.members()
	s.lit(`,"ttl":"`)
	rec.TTL = s.duration()
	s.lit(`,"deregister_after":"`)
	rec.DeregisterAfter = s.duration()
	s.lit(`,"checks":[]`)
	if s.have(`,"status_by":"`) {
		rec.StatusBy = s.words.get(s.text())
	}
	if s.have(`,"own_status":"`) {
		rec.OwnStatus = s.words.get(s.text())
	}
	s.meta(&rec.Meta)
	return !s.bad && len(s.rest) == 0
}

// meta reads what appendMeta writes.
func (s *scanner) meta(m *Meta) {
	s.lit(`,"revision":`)
	m.Revision = s.number(19)
	s.lit(`,"created_at":"`)
	created := s.text()
	m.CreatedAt = s.time(created)
	s.lit(`,"updated_at":"`)
	if updated := s.text(); bytes.Equal(created, updated) {
		m.UpdatedAt = m.CreatedAt
	} else {
		m.UpdatedAt = s.time(updated)
	}
	s.lit(`,"created_by":"`)
	m.CreatedBy = s.words.get(s.text())
	s.lit(`}`)
}

// have takes what comes next when it is this.
func (s *scanner) have(want string) bool {
	if len(s.rest) < len(want) || string(s.rest[:len(want)]) != want {
		return false
	}
	s.rest = s.rest[len(want):]
	return true
}

func (s *scanner) lit(want string) {
	if !s.have(want) {
		s.bad, s.rest = true, nil
	}
}

// text takes a string behind its opening quote; one that is written with
// escapes is left to the decoder.
func (s *scanner) text() []byte {
	n := bytes.IndexByte(s.rest, '"')
	if n < 0 {
		s.bad, s.rest = true, nil
		return nil
	}
	p, plain := s.rest[:n], true
	s.rest = s.rest[n+1:]
	for _, c := range p {
		if c < ' ' || c == '\\' {
			s.bad = true
			return nil
		}
		plain = plain && c < utf8.RuneSelf
	}
	if !plain && !utf8.Valid(p) {
		s.bad = true
	}
	return p
}

// likely takes a string that is probably this one.
func (s *scanner) likely(this string) string {
	if p := s.text(); string(p) != this {
		return string(p)
	}
	return this
}

// number takes one of up to so many digits.
func (s *scanner) number(digits int) uint64 {
	n := 0
	for n < len(s.rest) && s.rest[n] >= '0' && s.rest[n] <= '9' {
		n++
	}
	v, err := strconv.ParseUint(string(s.rest[:n]), 10, 64)
	if n > digits || err != nil || n > 1 && s.rest[0] == '0' {
		s.bad = true
	}
	s.rest = s.rest[n:]
	return v
}

// part is a string of the bytes themselves: those of a record's JSON never change.
func part(p []byte) string {
	if len(p) == 0 {
		return "" // which holds no JSON in memory
	}
	return unsafe.String(&p[0], len(p))
}

// list takes strings up to the closing bracket; nil for none. Records that
// follow each other mostly have the same ones, and share them.
func (s *scanner) list() (all []string) {
	if s.have(`]`) {
		return nil
	}
	if s.words.lately != "" && s.have(s.words.lately) {
		return s.words.list
	}
	from := s.rest
	for !s.bad {
		s.lit(`"`)
		all = append(all, s.words.get(s.text()))
		if s.have(`]`) && !s.bad {
			s.words.lately, s.words.list = part(from[:len(from)-len(s.rest)]), slices.Clip(all)
			return s.words.list
		}
		s.lit(`,`)
	}
	return nil
}

// members takes them up to the closing brace; nil for none.
func (s *scanner) members() map[string]string {
	if s.have(`}`) {
		return nil
	}
	all := map[string]string{}
	for n := 1; !s.bad; n++ {
		s.lit(`"`)
		key := s.words.get(s.text())
		s.lit(`:"`)
		all[key] = part(s.text())
		if len(all) != n {
			s.bad = true // a name twice
		}
		if s.have(`}`) {
			break
		}
		s.lit(`,`)
	}
	return all
}

func (s *scanner) duration() Duration {
	d, ok := s.words.duration(s.text())
	s.bad = s.bad || !ok
	return d
}

func (s *scanner) time(text []byte) (t time.Time) {
	if err := t.UnmarshalText(text); err != nil || text[len(text)-1] != 'Z' {
		s.bad = true
	}
	return t
}
