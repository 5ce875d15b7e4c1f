package rest

import (
	"encoding/base64"
	"net/http"
	"strconv"
	"strings"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/fault"
)

// The length of a page: by default, at most, and how many records are looked
// at for one page when most are hidden from the caller.
const (
	pageDefault = 100
	pageMost    = 1000
	pageScan    = 10_000
)

// page reads limit and page_token. A token continues the list it came from
// and no other.
func (c *call) page() (after string, limit int, err error) {
	q, err := c.query()
	if err != nil {
		return "", 0, err
	}
	limit = pageDefault
	if q.Has("limit") {
		limit, err = strconv.Atoi(q.Get("limit"))
		if err != nil || limit < 1 || limit > pageMost {
			return "", 0, fault.New(fault.BadRequest, "limit must be a number from 1 to %d", pageMost)
		}
	}
	token := q.Get("page_token")
	if token == "" {
		return "", limit, nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err == nil {
		list, key, ok := strings.Cut(string(raw), "\n")
		if ok && list == c.R.URL.Path && key != "" && door.Printable(key) {
			return key, limit, nil
		}
	}
	return "", 0, fault.New(fault.BadRequest, "page_token is not one that this list gave out; begin without it")
}

// items gathers a page of what the caller may see. fetch gives up to n records
// behind a cursor and the next cursor; show gives a record's JSON, or nil
// where the caller may not see it.
func items[T any](after string, limit int, fetch func(after string, n int) ([]T, string), show func(T) ([]byte, error)) (page [][]byte, next string, err error) {
	for scanned := 0; len(page) < limit && scanned < pageScan; {
		records, cursor := fetch(after, limit-len(page))
		for _, r := range records {
			b, err := show(r)
			if err != nil {
				return nil, "", err
			}
			if b != nil {
				page = append(page, b)
			}
		}
		if cursor == "" {
			return page, "", nil
		}
		after = cursor
		scanned += len(records)
	}
	return page, after, nil
}

// list answers with a page.
func (c *call) list(page [][]byte, next string) {
	if next != "" {
		next = base64.RawURLEncoding.EncodeToString([]byte(c.R.URL.Path + "\n" + next))
	}
	size := len(next) + 80
	for _, b := range page {
		size += len(b) + 1
	}
	out := append(make([]byte, 0, size), `{"items":[`...)
	for i, b := range page {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(out, b...)
	}
	out = append(out, `],"next_page_token":"`...)
	out = append(out, next...)
	out = append(out, `","revision":`...)
	out = strconv.AppendUint(out, c.State.Revision, 10)
	out = append(out, '}')
	c.send(http.StatusOK, mediaJSON, out)
}
