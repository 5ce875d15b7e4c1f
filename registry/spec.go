package registry

import (
	"bytes"
	"time"
)

// readInstance reads the spec of an instance. Every node reads every spec that
// is applied, and nearly all are as appendSpec writes them: those are read in
// that order. What writes back to other bytes is left to the JSON library,
// which has the last word on what it is.
func readInstance(spec []byte, out *InstanceSpec) error {
	var room [1024]byte
	var s InstanceSpec
	if r := (ordered{rest: spec}); r.instance(&s) && bytes.Equal(s.appendSpec(room[:0]), spec) {
		*out = s
		return nil
	}
	return readSpec(spec, out)
}

// ordered reads JSON whose members stand in a known order.
type ordered struct {
	rest []byte
	lost bool // it is not as expected
}

func (r *ordered) instance(s *InstanceSpec) bool {
	s.Address = r.text(`{"address":"`)
	s.Port = r.number(`,"port":`)
	s.Version = r.text(`,"version":"`)
	s.Zone = r.text(`,"zone":"`)
	s.Weight = r.number(`,"weight":`)
	r.tags(s)
	r.metadata(s)
	s.TTL = r.duration(`,"ttl":"`)
	s.DeregisterAfter = r.duration(`,"deregister_after":"`)
	r.skip(`,"checks":[]}`)
	return !r.lost && len(r.rest) == 0
}

func (r *ordered) tags(s *InstanceSpec) {
	r.skip(`,"tags":[`)
	for begin := `"`; !r.lost && !r.at(']'); begin = `,"` {
		s.Tags = append(s.Tags, r.text(begin))
	}
	r.skip(`]`)
}

func (r *ordered) metadata(s *InstanceSpec) {
	r.skip(`,"metadata":{`)
	for begin := `"`; !r.lost && !r.at('}'); begin = `,"` {
		if s.Metadata == nil {
			s.Metadata = map[string]string{}
		}
		name := r.text(begin)
		s.Metadata[name] = r.text(`:"`)
	}
	r.skip(`}`)
}

func (r *ordered) at(b byte) bool { return len(r.rest) > 0 && r.rest[0] == b }

// skip goes past what must stand next.
func (r *ordered) skip(text string) {
	if len(r.rest) < len(text) || string(r.rest[:len(text)]) != text {
		r.lost = true
		return
	}
	r.rest = r.rest[len(text):]
}

// text reads a string behind what begins it.
func (r *ordered) text(begin string) string {
	r.skip(begin)
	end := bytes.IndexByte(r.rest, '"')
	if r.lost = r.lost || end < 0 || bytes.IndexByte(r.rest[:end], '\\') >= 0; r.lost {
		return ""
	}
	s := string(r.rest[:end])
	r.rest = r.rest[end+1:]
	return s
}

// number reads a whole number of few digits.
func (r *ordered) number(begin string) (n int) {
	r.skip(begin)
	digits := 0
	for digits < len(r.rest) && digits < 9 && r.rest[digits] >= '0' && r.rest[digits] <= '9' {
		n = 10*n + int(r.rest[digits]-'0')
		digits++
	}
	r.rest, r.lost = r.rest[digits:], r.lost || digits == 0
	return n
}

func (r *ordered) duration(begin string) Duration {
	switch s := r.text(begin); s {
	case "30s": // on the hot path
		return defaultTTL
	case "1h":
		return defaultDeregister
	default:
		d, err := time.ParseDuration(s)
		r.lost = r.lost || err != nil
		return Duration(d)
	}
}
