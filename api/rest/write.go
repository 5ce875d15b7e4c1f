package rest

import (
	"crypto/sha256"
	"net/http"
	"strconv"
	"strings"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
)

// maxKey bounds an Idempotency-Key, which is replicated.
const maxKey = 255

// condition reads If-Match, If-None-Match, Idempotency-Key and Muster-Hops.
// Where one cannot be understood the change is refused: going on without it
// could overwrite what the caller wanted kept.
func (c *call) condition(body []byte) (when door.Condition, err error) {
	h := c.R.Header
	if values := h["If-Match"]; len(values) > 0 {
		match, ok := revisionTag(values)
		if !ok {
			return when, fault.New(fault.BadRequest, `If-Match must be one revision in quotes, such as "7"`)
		}
		when.Match, when.HasMatch = match, true
	}
	if values := h["If-None-Match"]; len(values) > 0 {
		if len(values) > 1 || strings.TrimSpace(values[0]) != "*" {
			return when, fault.New(fault.BadRequest, "on a change, If-None-Match must be *")
		}
		if when.HasMatch {
			return when, fault.New(fault.BadRequest, "send If-Match or If-None-Match, not both")
		}
		when.CreateOnly = true
	}
	if values := h["Idempotency-Key"]; len(values) > 0 {
		if len(values) > 1 || values[0] == "" || len(values[0]) > maxKey || !visible(values[0]) {
			return when, fault.New(fault.BadRequest, "Idempotency-Key must be 1 to %d printable ASCII characters", maxKey)
		}
		when.IdempotencyKey, when.Digest = values[0], c.digest(body)
	}
	q, err := c.query()
	if err != nil {
		return when, err
	}
	if when.DryRun, err = flag(q, "dry_run"); err != nil {
		return when, err
	}
	when.Hops, err = c.forwarded()
	return when, err
}

func visible(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return true
}

// revisionTag reads "N" with its quotes.
func revisionTag(values []string) (uint64, bool) {
	if len(values) != 1 {
		return 0, false
	}
	inner := strings.Trim(values[0], " \t")
	if len(inner) < 2 || inner[0] != '"' || inner[len(inner)-1] != '"' {
		return 0, false
	}
	inner = inner[1 : len(inner)-1]
	n, err := strconv.ParseUint(inner, 10, 64)
	return n, err == nil && strconv.FormatUint(n, 10) == inner
}

func entityTag(revision uint64) string { return `"` + strconv.FormatUint(revision, 10) + `"` }

// hops refuses a call that has been forwarded and would have to be again.
func (c *call) hops() error {
	n, err := c.forwarded()
	if err != nil {
		return err
	}
	return c.Hops(n)
}

// forwarded reads how often the call was forwarded before it came here.
func (c *call) forwarded() (uint64, error) {
	values := c.R.Header["Muster-Hops"]
	if len(values) == 0 {
		return 0, nil
	}
	n, err := strconv.ParseUint(values[0], 10, 16)
	if err != nil || len(values) > 1 {
		return 0, fault.New(fault.BadRequest, "Muster-Hops must be a whole number")
	}
	return n, nil
}

// submit hands a change over and waits for its receipt.
func (c *call) submit(op *command.Command, body, payload []byte) (*command.Receipt, error) {
	when, err := c.condition(body)
	if err != nil {
		return nil, err
	}
	receipt, err := c.Submit(op, payload, when)
	if err != nil {
		return nil, err
	}
	c.written(receipt.Revision)
	if when.DryRun {
		c.Header().Set("Muster-Dry-Run", "true")
	}
	return receipt, nil
}

func (c *call) digest(body []byte) []byte {
	h := sha256.New()
	for _, part := range []string{c.R.Method, c.R.URL.RequestURI()} {
		h.Write([]byte(part))
		h.Write([]byte{0})
	}
	h.Write(body)
	return h.Sum(nil)
}

// written makes the answer's headers those of a change: its revision, and no
// older than the request.
func (c *call) written(revision uint64) {
	c.Header().Set("Muster-Revision", strconv.FormatUint(revision, 10))
	c.Written()
}

// stored answers a change with the record as it is now kept.
func (c *call) stored(receipt *command.Receipt) {
	h := c.Header()
	if h.Get("Muster-Dry-Run") == "" { // else no record has the revision
		h.Set("ETag", entityTag(receipt.Revision))
	}
	status := http.StatusOK
	if receipt.Created {
		status = http.StatusCreated
		h.Set("Location", c.R.URL.Path)
	}
	c.send(status, mediaJSON, receipt.Record)
}

func (c *call) empty() {
	c.WriteHeader(http.StatusNoContent)
}
