package consul

import (
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/registry"
)

// decode reads a body as Consul's clients write it: names in any case, with or
// without underscores; and as strictly as every edge: no key twice, none that
// Consul does not know, nothing behind the value.
func decode(body []byte, out any) error {
	if err := registry.CheckDepth(body, registry.MaxDepth); err != nil {
		return err
	}
	err := json.Unmarshal(body, out, json.MatchCaseInsensitiveNames(true), json.RejectUnknownMembers(true))
	if err == nil {
		return nil
	}
	return fault.Wrap(fault.BadRequest, err, "Request decode failed: %s", reason(err))
}

func reason(err error) string {
	text := err.Error()
	if i := strings.Index(text, " within "); i > 0 && strings.HasPrefix(text, "json:") {
		text = "json: " + text[i+1:]
	}
	if len(text) > 200 {
		text = strings.ToValidUTF8(text[:200], "") + "…"
	}
	return text
}

// namespaceIn is the namespace that a body names, before anything else of it is
// looked at.
func namespaceIn(body []byte) string {
	var b struct{ Namespace string }
	if registry.CheckDepth(body, registry.MaxDepth) == nil && json.Unmarshal(body, &b, json.MatchCaseInsensitiveNames(true)) == nil && b.Namespace != "" {
		return b.Namespace
	}
	return "default"
}

// duration is "10s", or a number of nanoseconds.
type duration time.Duration

// UnmarshalJSONFrom implements [json.UnmarshalerFrom].
func (d *duration) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	v, err := dec.ReadValue()
	if err != nil {
		return err
	}
	switch v.Kind() {
	case 'n':
		return nil
	case '0':
		return json.Unmarshal(v, (*int64)(d))
	}
	var s string
	if err := json.Unmarshal(v, &s); err != nil || s == "" {
		return err
	}
	parsed, err := time.ParseDuration(s)
	*d = duration(parsed)
	return err
}

func (d duration) String() string { return registry.Duration(d).String() }

func marshal(v any) ([]byte, error) { return json.Marshal(v, json.Deterministic(true)) }

// foreign are fields that Consul knows and muster has no like of. They may be
// empty.
type foreign jsontext.Value

// UnmarshalJSONFrom implements [json.UnmarshalerFrom].
func (f *foreign) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	v, err := dec.ReadValue()
	if err != nil {
		return err
	}
	switch string(v) {
	case `null`, `""`, `{}`, `[]`, `false`, `0`, `"0s"`:
		return nil
	}
	*f = foreign(v.Clone())
	return nil
}

// offered refuses what the fields, by their names, would ask for.
func offered(fields map[string]foreign) error {
	var given []string
	for _, name := range sorted(fields) {
		if len(fields[name]) > 0 {
			given = append(given, name)
		}
	}
	if len(given) == 0 {
		return nil
	}
	return fault.New(fault.BadRequest, "muster does not offer %s; leave it out", strings.Join(given, ", "))
}
