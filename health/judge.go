package health

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/registry"
)

// Why a change was held back.
const (
	contradicted = "contradicted" // another node found the check passing
	unconfirmed  = "unconfirmed"  // no other node could look
)

// fewChecks is how many checks a node runs at least before it counts as a sign
// of its own trouble that most of them fail.
const fewChecks = 3

// maxDoubts bounds the changes that are being confirmed at one time; others are
// reported again.
const maxDoubts = 4096

// JudgeOptions shape a Judge.
type JudgeOptions struct {
	State   State
	Members func() []string // ids of the nodes that live and are in contact with the quorum
	Ask     func(ctx context.Context, node, method string, payload []byte) ([]byte, error)
	Propose func(ctx context.Context, c *command.Command) (*command.Receipt, error)
	// Threshold is the share of a service's instances that must be left passing
	// for one node's word to suffice; 0: it always does.
	Threshold float64
	Metrics   *Metrics
	Logger    *slog.Logger
}

// Judge decides, on the leader, which reports become changes. What leaves enough
// instances of a service passing does at once. What does not, and what comes
// from a node most of whose checks fail, is looked at by another node first.
type Judge struct {
	opt JudgeOptions

	mu     sync.Mutex // guards the rest
	doubts map[Key]bool
}

// NewJudge makes a judge.
func NewJudge(o JudgeOptions) *Judge { return &Judge{opt: o, doubts: map[Key]bool{}} }

// Serve answers a node's report. It returns when what needs no confirmation is
// in the log; the rest follows or is dropped.
func (j *Judge) Serve(ctx context.Context, from string, payload []byte) ([]byte, error) {
	var msg command.HealthReport
	if err := proto.Unmarshal(payload, &msg); err != nil {
		return nil, fault.Wrap(fault.BadRequest, err, "the report about checks cannot be read")
	}
	if len(msg.Changes) > perCall {
		return nil, fault.New(fault.BadRequest, "a report may have %d changes at most", perCall)
	}
	sure, doubtful := j.sort(&msg)
	if len(doubtful) > 0 {
		if other := j.others(from); len(other) == 0 {
			sure = append(sure, doubtful...) // there is nobody else to ask
		} else if doubtful = j.take(doubtful); len(doubtful) > 0 {
			go j.confirm(context.WithoutCancel(ctx), doubtful, other)
		}
	}
	return nil, j.propose(ctx, sure)
}

// sort tells what one node's word suffices for.
func (j *Judge) sort(msg *command.HealthReport) (sure, doubtful []*command.HealthChange) {
	if j.opt.Threshold <= 0 {
		return msg.Changes, nil
	}
	reg := j.opt.State.Registry()
	wave := msg.Running >= fewChecks && float64(msg.Failing) > j.opt.Threshold*float64(msg.Running)
	drops := map[registry.Key]map[string]bool{} // instances that would no longer pass
	worse := func(ch *command.HealthChange) bool { return ch.Status != registry.Passing }
	for _, ch := range msg.Changes {
		key := keyOf(ch.Check)
		if in, ok := reg.Instance(key.Namespace, key.Service, key.ID); ok && worse(ch) && in.Status == registry.Passing {
			k := registry.Key{Namespace: key.Namespace, Service: key.Service}
			if drops[k] == nil {
				drops[k] = map[string]bool{}
			}
			drops[k][key.ID] = true
		}
	}
	for _, ch := range msg.Changes {
		k := registry.Key{Namespace: ch.Check.GetNamespace(), Service: ch.Check.GetService()}
		if worse(ch) && (wave || len(drops[k]) > 0 && j.tooFew(reg, k, len(drops[k]))) {
			doubtful = append(doubtful, ch)
		} else {
			sure = append(sure, ch)
		}
	}
	return sure, doubtful
}

// tooFew says whether a service would have too few passing instances left.
// Those in maintenance do not count.
func (j *Judge) tooFew(reg *registry.Snapshot, k registry.Key, drops int) bool {
	e, ok := reg.Discover(k.Namespace, k.Service)
	if !ok {
		return false
	}
	all := 0
	for _, in := range e.Instances() {
		if in.Status != registry.Maintenance {
			all++
		}
	}
	return float64(e.Passing()-drops) < j.opt.Threshold*float64(all)
}

func (j *Judge) others(than string) (others []string) {
	for _, m := range j.opt.Members() {
		if m != than {
			others = append(others, m)
		}
	}
	return others
}

// take notes what is being confirmed, and leaves out what already is.
func (j *Judge) take(changes []*command.HealthChange) (taken []*command.HealthChange) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, ch := range changes {
		if key := keyOf(ch.Check); !j.doubts[key] && len(j.doubts) < maxDoubts {
			j.doubts[key] = true
			taken = append(taken, ch)
		}
	}
	return taken
}

// confirm has other nodes look, each at its part.
func (j *Judge) confirm(ctx context.Context, changes []*command.HealthChange, others []string) {
	defer func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		for _, ch := range changes {
			delete(j.doubts, keyOf(ch.Check))
		}
	}()
	parts := map[string][]*command.HealthChange{}
	for _, ch := range changes {
		to := owner(keyOf(ch.Check), others)
		parts[to] = append(parts[to], ch)
	}
	var all sync.WaitGroup
	for node, part := range parts {
		all.Go(func() {
			if err := j.propose(ctx, j.ask(ctx, node, part)); err != nil {
				j.opt.Logger.Warn("changes of checks that another node confirmed were not proposed; they will be again", "error", err)
			}
		})
	}
	all.Wait()
}

// ask gives the changes that node confirms.
func (j *Judge) ask(ctx context.Context, node string, changes []*command.HealthChange) (confirmed []*command.HealthChange) {
	msg := &command.HealthProbe{}
	for _, ch := range changes {
		msg.Checks = append(msg.Checks, ch.Check)
	}
	var reply command.HealthProbeReply
	payload, err := proto.Marshal(msg)
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, j.patience(changes))
		payload, err = j.opt.Ask(ctx, node, MethodProbe, payload)
		cancel()
	}
	if err == nil {
		err = proto.Unmarshal(payload, &reply)
	}
	if err != nil || len(reply.Status) != len(changes) {
		j.opt.Metrics.held.WithLabelValues(unconfirmed).Add(float64(len(changes)))
		j.opt.Logger.Warn("checks fail, and no other node could confirm it; their instances stay as they are", "checks", len(changes), "asked", node, "error", err)
		return nil
	}
	var alive, blind int
	for i, ch := range changes {
		switch reply.Status[i] {
		case registry.Critical, registry.Warning:
			confirmed = append(confirmed, ch)
		case registry.Passing:
			alive++
		default:
			blind++
		}
	}
	j.opt.Metrics.held.WithLabelValues(contradicted).Add(float64(alive))
	j.opt.Metrics.held.WithLabelValues(unconfirmed).Add(float64(blind))
	if alive > 0 {
		j.opt.Logger.Warn("one node finds checks failing and another one finds them passing; their instances stay as they are", "checks", alive, "asked", node)
	}
	return confirmed
}

// patience is how long a node may take for its part.
func (j *Judge) patience(changes []*command.HealthChange) time.Duration {
	reg := j.opt.State.Registry()
	var longest time.Duration
	for _, ch := range changes {
		key := keyOf(ch.Check)
		if in, ok := reg.Instance(key.Namespace, key.Service, key.ID); ok {
			if c, _ := in.Check(key.Check); c != nil {
				longest = max(longest, time.Duration(c.Timeout))
			}
		}
	}
	return callTimeout + longest*time.Duration(1+len(changes)/confirmProbes)
}

func (j *Judge) propose(ctx context.Context, changes []*command.HealthChange) error {
	if len(changes) == 0 {
		return nil
	}
	items := make([]*command.Leases_Item, len(changes))
	for i, ch := range changes {
		items[i] = &command.Leases_Item{Namespace: ch.Check.GetNamespace(), Service: ch.Check.GetService(), Name: ch.Check.GetId(),
			Change: command.Leases_CHECK, Check: ch.Check.GetCheck(), Status: ch.Status, Output: ch.Output, Observed: ch.Observed}
	}
	_, err := j.opt.Propose(ctx, &command.Command{
		Principal: "muster", Time: time.Now().UnixNano(),
		Op: &command.Command_Leases{Leases: &command.Leases{Items: items}},
	})
	if err != nil {
		return err
	}
	for _, ch := range changes {
		switch ch.Status {
		case registry.Passing, registry.Warning, registry.Critical:
			j.opt.Metrics.changes.WithLabelValues(ch.Status).Inc()
		}
	}
	return nil
}
