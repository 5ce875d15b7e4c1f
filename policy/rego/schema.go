package rego

import (
	"encoding/json"
	"net/url"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// refersToFile says whether a JSON Schema, as a value or as text, names a file
// anywhere that a reference or its base may stand.
func refersToFile(schema ast.Value) bool {
	var document any
	var err error
	if text, ok := schema.(ast.String); ok {
		err = json.Unmarshal([]byte(text), &document)
	} else {
		document, err = ast.JSON(schema)
	}
	// What is not JSON the original refuses.
	return err == nil && holdsFileReference(document)
}

func holdsFileReference(x any) bool {
	switch x := x.(type) {
	case []any:
		for _, item := range x {
			if holdsFileReference(item) {
				return true
			}
		}
	case map[string]any:
		for key, item := range x {
			text, ok := item.(string)
			switch key {
			case "$ref", "$id", "id", "$schema":
				if ok && isFile(text) {
					return true
				}
			}
			if !ok && holdsFileReference(item) {
				return true
			}
		}
	}
	return false
}

func isFile(reference string) bool {
	u, err := url.Parse(reference)
	return (err == nil && u.Scheme == "file") || strings.HasPrefix(strings.ToLower(strings.TrimSpace(reference)), "file:")
}
