package definition

import (
	"errors"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/muster-registry/muster/fault"
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

// FromYAML turns one YAML document, which may be JSON, into JSON: scalars keep
// their meaning, and what aliases may add is bounded before it is expanded. The
// error is bad_request or too_large; for an alias bomb what a definition gets:
// invalid_definition.
func FromYAML(document []byte) ([]byte, error) {
	text, _, err := fromYAML(document)
	if fault.Is(err, fault.InvalidDefinition) && !errors.Is(err, errBomb) {
		return nil, fault.New(fault.BadRequest, "the body cannot be read: %s", fault.From(err).Detail)
	}
	return text, err
}
