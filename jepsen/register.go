package jepsen

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/go-json-experiment/json"
)

// Registers is the workload of compare-and-set registers: each is a service
// whose description is the value, changed by PUT with and without If-Match and
// read with consistency=linearizable. No value is written twice.
type Registers struct {
	History *History
	// Patience bounds one request.
	Patience time.Duration
}

func registerPath(key string) string { return "/v1/namespaces/jepsen/services/" + key }

// Get reads a register.
func (r Registers) Get(ctx context.Context, c *Client, worker int, key string) Op {
	ctx, cancel := context.WithTimeout(ctx, r.Patience)
	defer cancel()
	op := Op{Worker: worker, Node: c.Node, Kind: Read, Key: key}
	a := c.Call(ctx, http.MethodGet, registerPath(key)+"?consistency=linearizable", nil)
	switch {
	case a.Outcome == OK:
		op.Value, op.Revision = a.Register()
	case a.Code == "service_not_found":
		a.Outcome = OK // the empty register
	}
	return r.History.Add(op, a)
}

// Set writes a register whatever it holds.
func (r Registers) Set(ctx context.Context, c *Client, worker int, key, value string) Op {
	return r.put(ctx, c, Op{Worker: worker, Node: c.Node, Kind: Write, Key: key, Value: value})
}

// Swap writes a register if it still is as a read has seen it.
func (r Registers) Swap(ctx context.Context, c *Client, seen Op, value string) Op {
	op := Op{Worker: seen.Worker, Node: c.Node, Kind: CAS, Key: seen.Key, Value: value, Expect: seen.Value}
	if seen.Revision == 0 {
		return r.put(ctx, c, op, "If-None-Match", "*")
	}
	return r.put(ctx, c, op, "If-Match", `"`+strconv.FormatUint(seen.Revision, 10)+`"`)
}

func (r Registers) put(ctx context.Context, c *Client, op Op, header ...string) Op {
	ctx, cancel := context.WithTimeout(ctx, r.Patience)
	defer cancel()
	a := c.Call(ctx, http.MethodPut, registerPath(op.Key), fmt.Appendf(nil, `{"description":%q}`, op.Value), header...)
	if a.Outcome == OK {
		_, op.Revision = a.Register()
	}
	return r.History.Add(op, a)
}

// Register reads a service, the answer of a register: its value and revision.
func (a *Answer) Register() (value string, revision uint64) {
	var record struct {
		Description string `json:"description"`
		Revision    uint64 `json:"revision"`
	}
	if err := json.Unmarshal(a.Body, &record); err != nil || record.Revision == 0 {
		a.Outcome, a.Err = Unknown, fmt.Errorf("not a record: %.200q", a.Body)
	}
	return record.Description, record.Revision
}

// mismatch is the answer to a compare-and-set that came too late.
const mismatch = http.StatusPreconditionFailed

// judged tells whether an operation says anything about a register. One that
// certainly did not happen says nothing: its value must never be read. A
// refused comparison does say something, and so does an unknown change.
func judged(op *Op) bool {
	switch op.Kind {
	case Read:
		return op.Outcome == OK
	case Write:
		return op.Outcome != Failed
	case CAS:
		return op.Outcome != Failed || op.Status == mismatch
	}
	return false
}

// register is one register: its state is its value. A change of unknown
// outcome can take its place at any time after its invocation, and is harmless
// where it never happened: at the very end nobody sees it.
var register = porcupine.Model{
	Init: func() any { return "" },
	Step: func(state, input, _ any) (bool, any) {
		op, now := input.(Op), state.(string)
		switch {
		case op.Kind == Read:
			return op.Value == now, now
		case op.Kind == Write:
			return true, op.Value
		case op.Outcome == OK:
			return op.Expect == now, op.Value
		case op.Outcome == Failed:
			return op.Expect != now, now
		case op.Expect == now:
			return true, op.Value
		}
		return true, now
	},
	DescribeOperation: func(input, _ any) string {
		op := input.(Op)
		return fmt.Sprintf("%s %s %q->%q by %s: %s", op.Kind, op.Key, op.Expect, op.Value, op.Node, op.Outcome)
	},
}

// CheckRegisters demands one order of all operations on each register that
// fits both what callers were told and when: linearizability. A search that
// does not end within the limit, per register, is an error as well. To each
// register that fails it writes a page into the folder that shows it.
func CheckRegisters(ops []Op, limit time.Duration, folder string) error {
	for key, of := range byKey(ops) {
		var history []porcupine.Operation
		for _, op := range of {
			if !judged(&op) {
				continue
			}
			end := op.Return
			if op.Outcome == Unknown {
				end = math.MaxInt64
			}
			history = append(history, porcupine.Operation{ClientId: op.Worker, Input: op, Call: op.Invoke, Return: end})
		}
		result, info := porcupine.CheckOperationsVerbose(register, history, limit)
		if result == porcupine.Ok {
			continue
		}
		page := folder + "/register-" + key + ".html"
		if err := porcupine.VisualizePath(register, info, page); err != nil {
			page = err.Error()
		}
		return fmt.Errorf("register %s: %d operations are not linearizable (%s); see %s", key, len(history), result, page)
	}
	return nil
}

// CheckRevisions demands that a revision stands for one value, and that of two
// changes of which one was acknowledged before the other began the later one
// has the higher revision: there is one sequence of changes.
func CheckRevisions(ops []Op) error {
	values := map[uint64]string{}
	var changes []Op
	for _, op := range ops {
		if op.Outcome != OK || op.Revision == 0 {
			continue
		}
		if old, ok := values[op.Revision]; ok && old != op.Key+"="+op.Value {
			return fmt.Errorf("revision %d is both %s and %s=%s", op.Revision, old, op.Key, op.Value)
		}
		values[op.Revision] = op.Key + "=" + op.Value
		if op.Kind == Write || op.Kind == CAS {
			changes = append(changes, op)
		}
	}
	// By the time of acknowledgement; done is how many of them lie before the
	// invocation looked at, highest the highest revision among those.
	byReturn := slices.SortedFunc(slices.Values(changes), func(a, b Op) int { return cmp.Compare(a.Return, b.Return) })
	slices.SortFunc(changes, func(a, b Op) int { return cmp.Compare(a.Invoke, b.Invoke) })
	done, highest := 0, Op{}
	for _, op := range changes {
		for ; done < len(byReturn) && byReturn[done].Return < op.Invoke; done++ {
			if byReturn[done].Revision > highest.Revision {
				highest = byReturn[done]
			}
		}
		if op.Revision <= highest.Revision {
			return fmt.Errorf("%s=%s got revision %d after %s=%s had been acknowledged with %d", op.Key, op.Value, op.Revision, highest.Key, highest.Value, highest.Revision)
		}
	}
	return nil
}

func byKey(ops []Op) map[string][]Op {
	m := map[string][]Op{}
	for _, op := range ops {
		if op.Key != "" {
			m[op.Key] = append(m[op.Key], op)
		}
	}
	return m
}
