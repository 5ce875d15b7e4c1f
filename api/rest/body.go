package rest

import (
	"mime"
	"strings"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/registry"
)

// body reads a JSON body of at most limit bytes, before and after unpacking.
func (c *call) body(limit int64) ([]byte, error) {
	if err := c.isJSON(); err != nil {
		return nil, err
	}
	b, err := c.read(limit)
	if err != nil || c.api.opt.MaxDepth >= registry.MaxDepth { // whoever decodes it sees to that
		return b, err
	}
	return b, registry.CheckDepth(b, c.api.opt.MaxDepth)
}

// isJSON takes application/json, anything +json, and no word on it at all.
func (c *call) isJSON() error {
	switch media := c.media(); {
	case media == "", media == mediaJSON, strings.HasPrefix(media, "application/") && strings.HasSuffix(media, "+json"):
		return nil
	default:
		return fault.New(fault.UnsupportedMediaType, "the body must be application/json, not %s", door.Clip(media))
	}
}

// media is the type of the body, "" where the caller does not say; "?" for a
// type that cannot be read.
func (c *call) media() string {
	values := c.R.Header["Content-Type"]
	if len(values) == 0 || values[0] == "" {
		return ""
	}
	media, params, err := mime.ParseMediaType(values[0])
	if err != nil || len(values) > 1 {
		return "?"
	}
	if charset, ok := params["charset"]; ok && !strings.EqualFold(charset, "utf-8") {
		return media + "; charset=" + charset
	}
	return media
}

// read reads the body, unpacked, and never more than limit bytes of either.
func (c *call) read(limit int64) ([]byte, error) {
	b, err := door.Body(c.W, c.R, c.Visit(), limit, c.api.opt.BodyTimeout)
	if err == nil && c.route.Body != nil {
		err = c.Turn(c.route.takes())
	}
	return b, err
}
