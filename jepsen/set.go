package jepsen

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/go-json-experiment/json"
)

// Set is the workload of a growing set: callers register instances of one
// service, no id twice. In the end there must be all that were acknowledged,
// as they were acknowledged, and none that was refused.
type Set struct {
	History *History
	Service string
	// Patience bounds one request.
	Patience time.Duration
}

const namespace = "jepsen"

func (s Set) path() string {
	return "/v1/namespaces/" + namespace + "/services/" + s.Service + "/instances"
}

// Add registers one instance. Its lease is far longer than any test.
func (s Set) Add(ctx context.Context, c *Client, worker int, id string) Op {
	ctx, cancel := context.WithTimeout(ctx, s.Patience)
	defer cancel()
	op := Op{Worker: worker, Node: c.Node, Kind: Write, Key: id, Value: id}
	body := fmt.Appendf(nil, `{"address":"192.0.2.1","port":80,"ttl":"24h","deregister_after":"24h","metadata":{"writer":%q}}`, c.Node)
	a := c.Call(ctx, http.MethodPut, s.path()+"/"+id+"?create_service=true", body)
	if a.Outcome == OK {
		var record member
		if err := json.Unmarshal(a.Body, &record); err != nil || record.ID != id {
			a.Outcome, a.Err = Unknown, fmt.Errorf("not the record of %s: %.200q", id, a.Body)
		}
		op.Revision = record.Revision
	}
	return s.History.Add(op, a)
}

type member struct {
	ID       string `json:"id"`
	Revision uint64 `json:"revision"`
}

// Members reads the whole set from one node, page by page: ids with the
// revisions of their records.
func (s Set) Members(ctx context.Context, c *Client, how string) (map[string]uint64, error) {
	found := map[string]uint64{}
	for token := ""; ; {
		a := c.Call(ctx, http.MethodGet, s.path()+"?limit=1000&consistency="+how+"&page_token="+url.QueryEscape(token), nil)
		if a.Outcome != OK {
			return nil, fmt.Errorf("list from %s: %s", c.Node, a)
		}
		var page struct {
			Items []member `json:"items"`
			Next  string   `json:"next_page_token"`
		}
		if err := json.Unmarshal(a.Body, &page); err != nil {
			return nil, fmt.Errorf("list from %s: %w", c.Node, err)
		}
		for _, m := range page.Items {
			if _, twice := found[m.ID]; twice {
				return nil, fmt.Errorf("list from %s: %s stands there twice", c.Node, m.ID)
			}
			found[m.ID] = m.Revision
		}
		if token = page.Next; token == "" {
			return found, nil
		}
	}
}

// CheckSet compares what was found with what callers were told, and returns
// how many of the acknowledged were looked for.
func CheckSet(ops []Op, found map[string]uint64) (acknowledged int, err error) {
	var errs []error
	wrong := func(format string, args ...any) {
		if len(errs) < 10 {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	told := map[string]bool{}
	for _, op := range ops {
		if op.Kind != Write {
			continue
		}
		told[op.Key] = true
		revision, there := found[op.Key]
		switch op.Outcome {
		case OK:
			acknowledged++
			if !there {
				wrong("lost: %s was acknowledged by %s with revision %d and is not there", op.Key, op.Node, op.Revision)
			} else if revision != op.Revision {
				wrong("changed: %s was acknowledged by %s with revision %d and has %d", op.Key, op.Node, op.Revision, revision)
			}
		case Failed:
			if there {
				wrong("undead: %s was refused by %s (%d %s) and is there with revision %d", op.Key, op.Node, op.Status, op.Code, revision)
			}
		}
	}
	for id := range found {
		if !told[id] {
			wrong("strange: nobody has registered %s", id)
		}
	}
	return acknowledged, errors.Join(errs...)
}
