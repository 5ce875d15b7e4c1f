package definition

import (
	"github.com/go-json-experiment/json/jsontext"
)

// JSON gives a document of a format as a policy sees it, so that no way of
// writing a definition hides it: as JSON where it is JSON or YAML, as a JSON
// string that holds its text where the format knows neither. Nil when the
// document is not one that [Parse] accepts.
func JSON(format string, document []byte) []byte {
	if jsontext.Value(document).IsValid() {
		return document
	}
	if format == "openapi" || format == "asyncapi" {
		text, _, err := fromYAML(document)
		if err != nil {
			return nil
		}
		return text
	}
	quoted, err := jsontext.AppendQuote(nil, document)
	if err != nil {
		return nil
	}
	return quoted
}
