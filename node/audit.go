package node

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/audit"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/fsm"
	"github.com/muster-registry/muster/identity"
	"github.com/muster-registry/muster/policy"
)

// AuditSettings say where the audit trail is kept.
type AuditSettings struct {
	Path        string        `yaml:"path"` // default: audit/audit.log in data_dir; "off": none
	RotateSize  Size          `yaml:"rotate_size"`
	RotateEvery time.Duration `yaml:"rotate_every"` // 0: by size alone
	Keep        int           `yaml:"keep"`         // replaced files that stay; 0: all
	OnFailure   string        `yaml:"on_failure"`   // refuse_writes, continue
	Lookups     string        `yaml:"lookups"`      // that were answered: off, all
	Decisions   string        `yaml:"decisions"`    // that refused no call: off, refusals, all

	RefusalsPerSecond int `yaml:"refusals_per_second"` // of one caller that get a line each; 0: all

	Mirror MirrorSettings `yaml:"mirror"`
}

// What a node does while its trail cannot be written.
const (
	refuseWrites = "refuse_writes"
	continueOn   = "continue"
)

// What has lines of its own.
const (
	allOf    = "all"      // every look-up, every decision
	refusals = "refusals" // decisions that said no
)

func auditDefaults() AuditSettings {
	return AuditSettings{RotateSize: 100 << 20, Keep: 30, OnFailure: refuseWrites, Lookups: Off, Decisions: refusals, RefusalsPerSecond: 20, Mirror: mirrorDefaults()}
}

// file is the path, where it names a file.
func (s *AuditSettings) file() *string {
	if s.Path == Off {
		return new(string)
	}
	return &s.Path
}

func (s *AuditSettings) validate() (errs []error) {
	if s.RotateSize != 0 && s.RotateSize < 64<<10 {
		errs = append(errs, fmt.Errorf("audit.rotate_size: %s is too small; at least 64KiB, or 0 to leave it to logrotate", s.RotateSize))
	}
	if s.RotateEvery != 0 && s.RotateEvery < time.Minute {
		errs = append(errs, fmt.Errorf("audit.rotate_every: %s is too short; at least 1m, or 0", s.RotateEvery))
	}
	if s.Keep < 0 {
		errs = append(errs, errors.New("audit.keep: must not be negative; 0 keeps all"))
	}
	switch s.OnFailure {
	case refuseWrites, continueOn:
	default:
		errs = append(errs, fmt.Errorf("audit.on_failure: %q is none of refuse_writes, continue", s.OnFailure))
	}
	switch s.Lookups {
	case Off, allOf:
	default:
		errs = append(errs, fmt.Errorf("audit.lookups: %q is none of off, all", s.Lookups))
	}
	switch s.Decisions {
	case Off, refusals, allOf:
	default:
		errs = append(errs, fmt.Errorf("audit.decisions: %q is none of off, refusals, all", s.Decisions))
	}
	if s.RefusalsPerSecond < 0 {
		errs = append(errs, errors.New("audit.refusals_per_second: must not be negative; 0 writes all"))
	}
	if s.Mirror.Type != "" && s.Path == Off {
		errs = append(errs, errors.New("audit.mirror: there is nothing to mirror, since audit.path is off"))
	}
	return append(errs, s.Mirror.validate()...)
}

// openAudit goes on with the audit trail. It is closed after the machine.
func (n *Node) openAudit(reg prometheus.Registerer) error {
	s := n.cfg.Audit
	if s.Path == Off {
		return nil
	}
	dir := filepath.Join(n.cfg.DataDir, "audit")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if s.Path == "" {
		s.Path = filepath.Join(dir, "audit.log")
	}
	if err := n.openMirror(dir, reg); err != nil {
		return err
	}
	v := n.machine.View()
	t, err := audit.Open(audit.Options{
		Path: s.Path, Node: n.cfg.NodeID, Size: int64(s.RotateSize), Age: s.RotateEvery, Keep: s.Keep, PerSecond: s.RefusalsPerSecond,
		HeadFile: filepath.Join(dir, "head"), Asked: true, Mirror: n.mirror.trail(), ClusterID: v.ClusterID, Revision: v.Revision, Logger: n.logger,
	}, audit.NewMetrics(reg))
	if err != nil {
		return errors.Join(fmt.Errorf("audit.path: %w", err), n.mirror.close())
	}
	n.trail = t
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "muster_audit_differs", Help: "1 while the audit trail is not the one whose head the cluster knows.",
	}, func() float64 {
		_, alarm := n.heads.state()
		return map[bool]float64{true: 1}[alarm != ""]
	}))
	n.machine.Record(&recorder{Trail: t, mirror: n.mirror})
	return nil
}

func (n *Node) closeAudit() error {
	if n.trail == nil {
		return nil
	}
	return errors.Join(n.trail.Close(), n.mirror.close())
}

// reopenAudit begins the trail's file anew.
func (n *Node) reopenAudit() {
	if n.trail == nil {
		return
	}
	if err := n.trail.Reopen(); err != nil {
		n.logger.Error("the audit trail cannot be opened anew; it goes on in the old file", "error", err)
	}
}

// auditable refuses changes that could not be put on record.
func (n *Node) auditable() error {
	if err := n.mirror.full(); err != nil {
		return err
	}
	if n.trail == nil || !n.trail.Failing() || n.cfg.Audit.OnFailure == continueOn {
		return nil
	}
	return fault.New(fault.NotReady, "this node's audit trail cannot be written, so it takes no changes; its log says why. Try again later, or another node")
}

// refused puts a call on record that was answered 401, 403 or 429, or a change
// that was not made, before it is answered.
func (n *Node) refused(r *door.Refusal) {
	if n.trail == nil {
		return
	}
	e := audit.Entry{
		Time: time.Now(), Type: audit.Refusal, Principal: audit.Anonymous, Source: r.Form.Source, Operation: r.Operation, Call: short(r.Form.Call()),
		DecisionID: r.Err.DecisionID, PolicyRevision: r.Err.PolicyRevision, RequestID: r.RequestID, TraceID: command.TraceID(r.Trace),
		Outcome: audit.Refused, Status: r.Err.Code.Status(), Code: string(r.Err.Code),
	}
	if r.Who != nil {
		e.Principal = r.Who.ID
	}
	e.Action, e.Record = asked(&r.Form, r.Operation, n.machine.View())
	e.Record = short(e.Record)
	if r.Err.Outcome == fault.Unknown {
		e.Outcome = audit.Unknown
	}
	e.Request = n.mirror.form(&r.Form)
	n.trail.Refused(e)
}

// refusedCall is refused for the policy port. who may be nil.
func (n *Node) refusedCall(r *http.Request, who *identity.Principal, handler, requestID string, err *fault.Error) {
	n.refused(&door.Refusal{Who: who, Operation: "opa:" + handler, RequestID: requestID, Trace: r.Header.Get("Traceparent"), Err: err, Form: door.Form{
		Method: r.Method, Path: r.URL.Path, Route: strings.Split(strings.Trim(r.URL.Path, "/"), "/"), Host: r.Host, Headers: r.Header, Source: host(r.RemoteAddr),
	}})
}

// answered is who is told of every look-up after its answer; nil: nobody has to be.
func (n *Node) answered() func(*door.Answer) {
	if n.trail == nil || n.cfg.Audit.Lookups != allOf {
		return nil
	}
	return n.looked
}

// looked puts a look-up on record that was answered.
func (n *Node) looked(a *door.Answer) {
	e := audit.Entry{
		Time: time.Now(), Type: audit.Lookup, Principal: audit.Anonymous, Source: a.Form.Source, Operation: a.Operation, Call: short(a.Form.Call()),
		DecisionID: a.DecisionID, RequestID: a.RequestID, TraceID: command.TraceID(a.Form.Header("Traceparent")), Outcome: audit.Allowed, Status: a.Status,
	}
	if a.Who != nil {
		e.Principal = a.Who.ID
	}
	e.Action, e.Record = asked(a.Form, a.Operation, n.machine.View())
	e.Record = short(e.Record)
	e.Request = n.mirror.form(a.Form)
	n.trail.Looked(&e)
}

// decisionsTold puts the decisions on record that refused no call, as an observer
// of all: what a policy says of a document that somebody sends. Those of calls
// stand in the lines of the calls.
type decisionsTold struct{ *Node }

// Decided implements [policy.Observer].
func (n decisionsTold) Decided(_ *policy.Revision, q *policy.Question, d *policy.Decision, _ time.Duration) {
	if n.trail == nil || q.Input != nil || n.cfg.Audit.Decisions == Off || d.Allow && n.cfg.Audit.Decisions != allOf {
		return
	}
	e := audit.Entry{
		Time: time.Now(), Type: audit.Decision, Principal: q.Call.Principal, Source: q.Call.Source, Action: "authorize", Record: short("entrypoint " + d.EntryPoint),
		DecisionID: d.ID, PolicyRevision: d.PolicyRevision, RequestID: q.Call.RequestID, TraceID: command.TraceID(q.Call.Trace), Outcome: audit.Refused,
	}
	if d.Allow {
		e.Outcome = audit.Allowed
	}
	n.trail.Decided(e)
}

// refusedPeer puts a connection on record that the peer port refused.
func (n *Node) refusedPeer(remote net.Addr, shown *x509.Certificate, why error) {
	if n.trail == nil {
		return
	}
	e := audit.Entry{Time: time.Now(), Type: audit.Connection, Principal: audit.Anonymous, Source: host(remote.String()), Outcome: audit.Refused, Reason: short(why.Error())}
	if shown != nil {
		e.Principal = short(shown.Subject.String())
		if len(shown.URIs) > 0 {
			e.Principal = short(shown.URIs[0].String())
		}
	}
	n.trail.Refused(e)
}

func host(address string) string {
	if h, _, err := net.SplitHostPort(address); err == nil {
		return h
	}
	return address
}

// short bounds what strangers put into the trail, and takes tokens out of it.
func short(s string) string {
	s = identity.Mask(s)
	const most = 512
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

// recorder tells the trail what the machine applied.
type recorder struct {
	*audit.Trail
	mirror  *mirrored
	entries []audit.Entry // room that is used again
}

// Changed implements fsm.Recorder.
func (r *recorder) Changed(changes []fsm.Change) {
	for i := range changes {
		e := changed(&changes[i])
		e.Request = r.mirror.took(e.Principal, e.RequestID)
		r.entries = append(r.entries, e)
	}
	r.Trail.Changed(r.entries)
	clear(r.entries)
	if r.entries = r.entries[:0]; cap(r.entries) > 1<<12 {
		r.entries = nil
	}
}
