package definition

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"

	"github.com/muster-registry/muster/fault"
)

// checkXML makes sure that document is one WSDL element of bounded depth,
// without a DTD and without entities of its own; nothing is expanded.
func checkXML(document []byte) error {
	if len(document) > maxXML {
		return tooLarge("it has %d bytes of XML, and %d is the most; split it", len(document), maxXML)
	}
	if err := checkText(document); err != nil {
		return err
	}
	dec := xml.NewDecoder(bytes.NewReader(document))
	dec.CharsetReader = func(charset string, _ io.Reader) (io.Reader, error) {
		return nil, invalid("", "line 1: is written in %s; send it as UTF-8", clip(charset))
	}
	depth, roots := 0, 0
	for {
		tok, err := dec.Token()
		line, _ := dec.InputPos()
		switch {
		case err == io.EOF && roots == 1:
			return nil
		case err == io.EOF:
			return invalid("", "line %d: must be one WSDL element", line)
		case err != nil:
			if f, ok := errors.AsType[*fault.Error](err); ok {
				return f
			}
			return invalid("", "line %d: is not well-formed XML: %s", line, clip(err.Error()))
		}
		switch el := tok.(type) {
		case xml.Directive:
			return invalid("", "line %d: contains a DTD or another declaration; remove it, nothing in it is read", line)
		case xml.StartElement:
			if depth == 0 {
				if roots++; roots > 1 || el.Name.Local != "definitions" && el.Name.Local != "description" {
					return invalid("", "line %d: must be one WSDL element, definitions or description", line)
				}
			}
			if depth++; depth > maxDepth {
				return invalid("", "line %d: nests deeper than %d levels", line, maxDepth)
			}
		case xml.EndElement:
			depth--
		}
	}
}
