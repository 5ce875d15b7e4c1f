package webhook

import (
	"errors"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

const (
	maxReasons = 100     // in one answer
	maxReason  = 1 << 10 // bytes each
)

// answer is what an endpoint says of a change.
type answer struct {
	allow   bool
	reasons []string // why not
}

var (
	errUndefined = errors.New("its answer is undefined: the package or the rule that webhook_url names does not exist there")
	errAnswer    = errors.New(`its answer is none; it must be {"result": true or false}, {"result": {"allow": …, "reasons": […]}} or {"allow": …}`)
)

// readAnswer reads the body of an answer: what OPA's data API gives for a rule
// or for a package, or the same without the result around it. Only a plain true
// without any deny is a yes. The error says that it is neither yes nor no.
func readAnswer(body []byte) (answer, error) {
	var outer map[string]jsontext.Value
	if err := json.Unmarshal(body, &outer); err != nil {
		return answer{}, errAnswer
	}
	result, ok := outer["result"]
	if !ok {
		if _, bare := outer["allow"]; !bare {
			return answer{}, errUndefined
		}
		return readDocument(outer)
	}
	switch result.Kind() {
	case 't':
		return answer{allow: true}, nil
	case 'f':
		return answer{}, nil
	case '{':
		var inner map[string]jsontext.Value
		if err := json.Unmarshal(result, &inner); err != nil {
			return answer{}, errAnswer
		}
		return readDocument(inner)
	}
	return answer{}, errAnswer
}

// readDocument reads allow, and the reasons in reasons and deny.
func readDocument(d map[string]jsontext.Value) (a answer, err error) {
	switch allow := d["allow"]; allow.Kind() {
	case 't':
		a.allow = true
	case 'f':
	default:
		return answer{}, errAnswer
	}
	deny, err := texts(d["deny"])
	if err != nil {
		return answer{}, err
	}
	reasons, err := texts(d["reasons"])
	if err != nil {
		return answer{}, err
	}
	a.allow = a.allow && len(deny) == 0
	if !a.allow {
		a.reasons = append(deny, reasons...)
	}
	return a, nil
}

// texts reads a list of messages, or one. What is absent, null or false holds none.
func texts(v jsontext.Value) ([]string, error) {
	switch v.Kind() {
	case 0, 'n', 'f':
		return nil, nil
	case '"':
		return []string{text(v)}, nil
	case '[':
	default:
		return nil, errAnswer
	}
	var list []jsontext.Value
	if err := json.Unmarshal(v, &list); err != nil {
		return nil, errAnswer
	}
	out := make([]string, 0, min(len(list), maxReasons))
	for _, one := range list[:min(len(list), maxReasons)] {
		out = append(out, text(one))
	}
	return out, nil
}

// text is one message: a string, or else the JSON.
func text(v jsontext.Value) string {
	var s string
	if json.Unmarshal(v, &s) != nil {
		s = string(v)
	}
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	if len(s) > maxReason {
		s = strings.ToValidUTF8(s[:maxReason], "") + "…"
	}
	return s
}
