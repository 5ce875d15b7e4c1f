package definition

import (
	"encoding/json"
	"math"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"
)

// appendAny writes a decoded JSON value; false when it is not one, or nests
// too deep. Numbers may have any type that decoders of JSON make.
func appendAny(b []byte, v any, depth int) ([]byte, bool) {
	if depth > maxDepth || len(b) > maxSize {
		return b, false
	}
	switch v := v.(type) {
	case nil:
		return append(b, "null"...), true
	case bool:
		return strconv.AppendBool(b, v), true
	case string:
		b, err := jsontext.AppendQuote(b, v)
		return b, err == nil
	case json.Number:
		n := jsontext.Value(v)
		return append(b, n...), n.Kind() == '0' && n.IsValid()
	case float64:
		return jsontext.AppendFloat(b, v, 64), !math.IsNaN(v) && !math.IsInf(v, 0)
	case int:
		return strconv.AppendInt(b, int64(v), 10), true
	case int64:
		return strconv.AppendInt(b, v, 10), true
	case uint64:
		return strconv.AppendUint(b, v, 10), true
	case []any:
		b = append(b, '[')
		for i, item := range v {
			if i > 0 {
				b = append(b, ',')
			}
			var ok bool
			if b, ok = appendAny(b, item, depth+1); !ok {
				return b, false
			}
		}
		return append(b, ']'), true
	case map[string]any:
		return appendObject(b, v, depth)
	}
	return b, false
}

func appendObject(b []byte, m map[string]any, depth int) ([]byte, bool) {
	b = append(b, '{')
	first := true
	for key, item := range m {
		if !first {
			b = append(b, ',')
		}
		first = false
		var err error
		if b, err = jsontext.AppendQuote(b, key); err != nil {
			return b, false
		}
		var ok bool
		if b, ok = appendAny(append(b, ':'), item, depth+1); !ok {
			return b, false
		}
	}
	return append(b, '}'), true
}
