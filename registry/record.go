package registry

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/muster-registry/muster/fault"
)

// A record is written down as its names, the caller's spec, and its meta. The
// specs of services and versions are spliced in as they were admitted; an
// instance's is written from its fields, because its status changes alone.

func (s *Service) seal(spec []byte) {
	b := make([]byte, 0, len(spec)+len(s.Namespace)+len(s.Name)+len(s.CreatedBy)+160)
	b = append(b, `{"namespace":`...)
	b = appendString(b, s.Namespace)
	b = append(b, `,"name":`...)
	b = appendString(b, s.Name)
	b = appendMembers(b, spec)
	s.JSON = appendMeta(b, &s.Meta)
}

func (v *Version) seal(spec []byte) {
	b := make([]byte, 0, len(spec)+len(v.Namespace)+len(v.Service)+len(v.Version)+len(v.CreatedBy)+192)
	b = append(b, `{"namespace":`...)
	b = appendString(b, v.Namespace)
	b = append(b, `,"service":`...)
	b = appendString(b, v.Service)
	b = append(b, `,"version":`...)
	b = appendString(b, v.Version)
	b = appendMembers(b, spec)
	v.JSON = appendMeta(b, &v.Meta)
}

func (i *Instance) seal() {
	var scratch [1024]byte
	b := append(scratch[:0], `{"namespace":`...)
	b = appendString(b, i.Namespace)
	b = append(b, `,"service":`...)
	b = appendString(b, i.Service)
	b = append(b, ',')
	b = i.appendPublic(b)
	b = append(b, ',')
	b = i.appendPrivate(b)
	if i.StatusBy != "" {
		b = append(b, `,"status_by":`...)
		b = appendString(b, i.StatusBy)
	}
	if i.OwnStatus != "" {
		b = append(b, `,"own_status":`...)
		b = appendString(b, i.OwnStatus)
	}
	if len(i.States) > 0 {
		b = appendList(append(b, `,"check_states":`...), i.States)
	}
	b = appendMeta(b, &i.Meta)
	i.JSON = slices.Clip(append([]byte(nil), b...))
}

// appendPublic appends the members that discovery shows, without braces.
func (i *Instance) appendPublic(b []byte) []byte {
	b = append(b, `"id":`...)
	b = appendString(b, i.ID)
	b = append(b, ',')
	b = i.appendPlace(b)
	b = append(b, `,"status":`...)
	b = appendString(b, i.Status)
	b = append(b, ',')
	return i.appendLabels(b)
}

func (s *InstanceSpec) appendPlace(b []byte) []byte {
	b = append(b, `"address":`...)
	b = appendString(b, s.Address)
	b = append(b, `,"port":`...)
	b = strconv.AppendInt(b, int64(s.Port), 10)
	b = append(b, `,"version":`...)
	b = appendString(b, s.Version)
	b = append(b, `,"zone":`...)
	b = appendString(b, s.Zone)
	b = append(b, `,"weight":`...)
	return strconv.AppendInt(b, int64(s.Weight), 10)
}

func (s *InstanceSpec) appendLabels(b []byte) []byte {
	b = append(b, `"tags":[`...)
	for n, t := range s.Tags {
		if n > 0 {
			b = append(b, ',')
		}
		b = appendString(b, t)
	}
	b = append(b, `],"metadata":{`...)
	var few [8]string
	keys := few[:0]
	for k := range s.Metadata {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for n, k := range keys {
		if n > 0 {
			b = append(b, ',')
		}
		b = appendString(b, k)
		b = append(b, ':')
		b = appendString(b, s.Metadata[k])
	}
	return append(b, '}')
}

// appendPrivate appends the members that only the record itself shows.
func (s *InstanceSpec) appendPrivate(b []byte) []byte {
	b = append(b, `"ttl":"`...)
	b = append(b, s.TTL.String()...)
	b = append(b, `","deregister_after":"`...)
	b = append(b, s.DeregisterAfter.String()...)
	return appendChecks(append(b, '"'), s.Checks)
}

// appendSpec appends the canonical spec of an instance.
func (s *InstanceSpec) appendSpec(b []byte) []byte {
	b = s.appendPlace(append(b, '{'))
	b = s.appendLabels(append(b, ','))
	b = s.appendPrivate(append(b, ','))
	return append(b, '}')
}

// appendMembers appends the members of a JSON object that follow others.
func appendMembers(b, object []byte) []byte {
	if len(object) <= 2 {
		return b
	}
	b = append(b, ',')
	return append(b, object[1:len(object)-1]...)
}

// appendMeta appends the members every record ends with, and closes it.
func appendMeta(b []byte, m *Meta) []byte {
	b = append(b, `,"revision":`...)
	b = strconv.AppendUint(b, m.Revision, 10)
	b = append(b, `,"created_at":"`...)
	b = m.CreatedAt.AppendFormat(b, time.RFC3339Nano)
	b = append(b, `","updated_at":"`...)
	b = m.UpdatedAt.AppendFormat(b, time.RFC3339Nano)
	b = append(b, `","created_by":`...)
	b = appendString(b, m.CreatedBy)
	return append(b, '}')
}

// appendString appends s as a JSON string. Text from a body is valid UTF-8
// already; a principal's id is made so by stamp.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == '"' || c == '\\' || c >= 0x80 {
			b, _ = jsontext.AppendQuote(b, s)
			return b
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// stamp gives the meta of a record that st writes over prev (nil: none).
func (st Stamp) stamp(prev *Meta) Meta {
	at := st.Time.Round(0).UTC()
	if prev != nil {
		return Meta{Revision: st.Revision, CreatedAt: prev.CreatedAt, UpdatedAt: at, CreatedBy: prev.CreatedBy}
	}
	return Meta{Revision: st.Revision, CreatedAt: at, UpdatedAt: at, CreatedBy: intern(strings.ToValidUTF8(st.By, "\ufffd"))}
}

// readSpec reads a spec that an edge made canonical. What is not one is
// refused the same way on every node.
func readSpec(spec []byte, out any) error {
	if len(spec) < 2 || spec[0] != '{' || spec[len(spec)-1] != '}' {
		return fault.New(fault.BadRequest, "the change carries no canonical spec; send the record through the API")
	}
	if err := json.Unmarshal(spec, out, json.RejectUnknownMembers(true)); err != nil {
		return fault.Wrap(fault.BadRequest, err, "the change carries a spec that cannot be read; send the record through the API")
	}
	return nil
}
