package rest

import (
	"errors"
	"io"
	"mime"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"

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
		return fault.New(fault.UnsupportedMediaType, "the body must be application/json, not %s", clip(media))
	}
}

// media is the type of the body, "" where the caller does not say; "?" for a
// type that cannot be read.
func (c *call) media() string {
	values := c.r.Header["Content-Type"]
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

// What is taken of a body that is too long, and thrown away: many clients send
// all of it before they look at the answer, and would see a broken connection
// instead of 413.
const (
	surplus     = 32 << 20
	surplusTime = 3 * time.Second
)

// read reads the body, unpacked, and never more than limit bytes of either.
func (c *call) read(limit int64) ([]byte, error) {
	b, err := c.unpack(limit)
	if fault.Is(err, fault.TooLarge) {
		c.discard()
	}
	return b, err
}

// discard reads on where a client may still be sending. Who waits for a 100
// is not sending, and HTTP/2 ends a stream without ending the connection.
func (c *call) discard() {
	if c.r.ProtoMajor > 1 || c.r.ContentLength > surplus || c.r.Header.Get("Expect") != "" {
		return
	}
	// Without a deadline the bytes alone are bounded, which is no error.
	_ = http.NewResponseController(c.w).SetReadDeadline(time.Now().Add(surplusTime))
	_, _ = io.CopyN(io.Discard, c.r.Body, surplus)
}

func (c *call) unpack(limit int64) ([]byte, error) {
	if c.r.ContentLength > limit {
		return nil, tooLarge(limit)
	}
	// A body has as long as the largest takes over a slow line, and no longer:
	// it holds one of the places that requests in flight have.
	deadlines := http.NewResponseController(c.w)
	_ = deadlines.SetReadDeadline(time.Now().Add(c.api.opt.BodyTimeout)) // not every writer can; a server's does
	defer func() { _ = deadlines.SetReadDeadline(time.Time{}) }()
	var from io.Reader = http.MaxBytesReader(c.w, c.r.Body, limit)
	size := c.r.ContentLength
	switch encoding := strings.ToLower(strings.Join(c.r.Header["Content-Encoding"], ",")); encoding {
	case "", "identity":
	case "gzip":
		packed, err := gzip.NewReader(from)
		if err != nil {
			return nil, unreadable(err, limit)
		}
		defer packed.Close()
		from, size = packed, -1
	default:
		return nil, fault.New(fault.UnsupportedMediaType, "the body must be sent as it is or with Content-Encoding: gzip")
	}
	// One byte more than allowed tells a full body from one that is too long.
	b, err := c.Visit().Read(c.r.Context(), io.LimitReader(from, limit+1), size)
	if err != nil {
		return nil, unreadable(err, limit)
	}
	if int64(len(b)) > limit {
		return nil, tooLarge(limit)
	}
	if c.route.Body != nil {
		return b, c.Turn(c.route.takes())
	}
	return b, nil
}

func tooLarge(limit int64) error {
	return fault.New(fault.TooLarge, "the body is larger than the limit of %d bytes", limit)
}

func unreadable(err error, limit int64) error {
	if _, ok := errors.AsType[*fault.Error](err); ok { // there was no room for it
		return err
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return tooLarge(limit)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fault.Wrap(fault.BadRequest, err, "the body did not arrive in time")
	}
	return fault.Wrap(fault.BadRequest, err, "the body could not be read to its end, or says gzip and is not")
}
