package door

import (
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/flow"
)

// Body reads the body of a request, unpacked, and never more than limit bytes of
// either. It has as long to arrive as timeout says, 0: as the server allows; a
// body holds one of the places that requests in flight have. Errors: too_large,
// unsupported_media_type, bad_request, and those of the visit.
func Body(w http.ResponseWriter, r *http.Request, visit *flow.Visit, limit int64, timeout time.Duration) ([]byte, error) {
	if r.ContentLength > limit {
		return nil, tooLarge(limit)
	}
	if timeout > 0 {
		deadlines := http.NewResponseController(w)
		_ = deadlines.SetReadDeadline(time.Now().Add(timeout)) // not every writer can; a server's does
		defer func() { _ = deadlines.SetReadDeadline(time.Time{}) }()
	}
	var from io.Reader = http.MaxBytesReader(w, r.Body, limit)
	size := r.ContentLength
	switch encoding := strings.ToLower(strings.Join(r.Header["Content-Encoding"], ",")); encoding {
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
	b, err := visit.Read(r.Context(), io.LimitReader(from, limit+1), size)
	if err != nil {
		return nil, unreadable(err, limit)
	}
	if int64(len(b)) > limit {
		return nil, tooLarge(limit)
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

// What is taken of the body of a call that is refused, and thrown away, and how
// long it may take to arrive: from a caller who has proved who it is, and else.
const (
	surplus       = 32 << 20
	surplusTime   = 3 * time.Second
	strangers     = 8 << 20
	strangersTime = time.Second
)

// Drain comes before the answer to a call that is refused with a status. Many
// clients send all of a body before they look at the answer, and would see a
// broken connection instead; so what is still being sent is read on, unless the
// node is busy. known says that the caller has proved who it is.
func Drain(w http.ResponseWriter, r *http.Request, status int, known bool) {
	if r.ContentLength == 0 {
		return
	}
	most, patience := int64(strangers), strangersTime
	if known {
		most, patience = surplus, surplusTime
	}
	// The server itself reads a little of what is left, and nobody keeps it
	// waiting for that. Without a deadline the bytes alone are bounded, which is
	// no error.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(patience))
	busy := status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable
	// Who waits for a 100 is not sending, and HTTP/2 ends a stream without ending
	// the connection.
	if !busy && r.ProtoMajor == 1 && r.ContentLength <= most && r.Header.Get("Expect") == "" {
		_, _ = io.CopyN(io.Discard, r.Body, most)
	}
}
