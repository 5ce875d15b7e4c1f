package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/jepsen"
	"github.com/muster-registry/muster/registry"
)

const namespace = "sim"

// minorityWaits is how long a node may take that cannot prove what it knows.
const minorityWaits = 2 * time.Second

// operator may do everything.
func operator() *command.Principal {
	return &command.Principal{Id: "token:op", Kind: "token", Roles: []string{"operator"}}
}

func put(p *command.Put) *command.Command {
	return &command.Command{Op: &command.Command_Put{Put: p}}
}

// service is the put of a register: a service whose description is the value.
func service(key, value string) *command.Command {
	spec, err := registry.CanonicalService(namespace, key, fmt.Appendf(nil, `{"description":%q}`, value))
	if err != nil {
		panic(err)
	}
	return put(&command.Put{Kind: command.Kind_SERVICE, Namespace: namespace, Name: key, Spec: spec})
}

// described is the value in the spec of a service, or of an instance.
func described(spec []byte) string {
	var s struct {
		Description string `json:"description"`
		Metadata    struct {
			Value string `json:"value"`
		} `json:"metadata"`
	}
	_ = json.Unmarshal(spec, &s)
	return s.Description + s.Metadata.Value
}

// caller is one of those who use the cluster. What they do is judged by what
// they were told alone.
type caller struct {
	*World
	worker int
	r      *rand.Rand
}

// register does one operation on a register, as jepsen.Registers does. No value is
// written twice.
func (c *caller) register(ctx context.Context, n *Node, key string) {
	switch c.r.IntN(5) {
	case 0, 1:
		c.get(ctx, n, key)
	case 2:
		c.set(ctx, n, jepsen.Op{Kind: jepsen.Write, Key: key}, func(*command.Intent) {})
	default:
		seen := c.get(ctx, n, key)
		if seen.Outcome != jepsen.OK {
			return
		}
		c.set(ctx, n, jepsen.Op{Kind: jepsen.CAS, Key: key, Expect: seen.Value}, func(in *command.Intent) {
			in.Match, in.HasMatch, in.CreateOnly = seen.Revision, seen.Revision > 0, seen.Revision == 0
		})
	}
}

func (c *caller) get(ctx context.Context, n *Node, key string) jepsen.Op {
	op := jepsen.Op{Worker: c.worker, Node: n.ID, Kind: jepsen.Read, Key: key, Invoke: c.h.now()}
	began := time.Now()
	v, err := n.Read(ctx)
	if took := time.Since(began); took > minorityWaits {
		c.blame("%s took %s to answer a linearizable read (%v)", n.ID, took, err)
	}
	if err == nil {
		if s, ok := v.Registry.Service(namespace, key); ok {
			op.Value, op.Revision = s.Description, s.Revision
		}
	}
	return c.h.add(op, err)
}

func (c *caller) set(ctx context.Context, n *Node, op jepsen.Op, how func(*command.Intent)) {
	op.Worker, op.Node, op.Invoke = c.worker, n.ID, c.h.now()
	if op.Value == "" {
		op.Value = fmt.Sprintf("%s-%d-%d", words[c.r.IntN(len(words))], c.worker, op.Invoke)
	}
	in := &command.Intent{Principal: operator(), Command: service(op.Key, op.Value)}
	how(in)
	receipt, err := n.Submit(ctx, in)
	if err == nil {
		op.Revision = receipt.Revision
	}
	c.h.add(op, err)
}

// keyed writes a register under an Idempotency-Key, and asks again, anywhere,
// for as long as it does not know what became of it.
func (c *caller) keyed(ctx context.Context, key string) {
	op := jepsen.Op{Worker: c.worker, Kind: jepsen.Write, Key: key, Invoke: c.h.now()}
	op.Value = fmt.Sprintf("%s-k%d-%d", words[c.r.IntN(len(words))], c.worker, op.Invoke)
	in := &command.Intent{Principal: operator(), Command: service(key, op.Value), IdempotencyKey: op.Value, RequestDigest: []byte(op.Value)}
	unsure := false
	for try := 0; ; try++ {
		n := c.anybody(c.r)
		if n == nil {
			return
		}
		op.Node = n.ID
		receipt, err := n.Submit(ctx, in)
		if err == nil {
			op.Revision = receipt.Revision
			// A second request that is told the same is what the key is for.
			if again, err := n.Submit(ctx, in); err == nil && again.Revision != receipt.Revision {
				c.blame("the request with key %s was done as revision %d and again as %d", op.Value, receipt.Revision, again.Revision)
			}
		}
		if f := fault.From(err); err != nil && f.Outcome == fault.Unknown {
			unsure = true
			if try < 3 {
				continue
			}
		} else if err != nil && unsure {
			err = fault.Lost(f.Code, err, "not known")
		}
		c.h.add(op, err)
		return
	}
}
