package node

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/audit"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/fsm"
	"github.com/muster-registry/muster/identity"
)

// AuditSettings say where the audit trail is kept.
type AuditSettings struct {
	Path        string        `yaml:"path"` // default: audit/audit.log in data_dir; "off": none
	RotateSize  Size          `yaml:"rotate_size"`
	RotateEvery time.Duration `yaml:"rotate_every"` // 0: by size alone
	Keep        int           `yaml:"keep"`         // replaced files that stay; 0: all
	OnFailure   string        `yaml:"on_failure"`   // refuse_writes, continue
	Lookups     string        `yaml:"lookups"`      // that were answered: off, all

	RefusalsPerSecond int `yaml:"refusals_per_second"` // of one caller that get a line each; 0: all
}

// What a node does while its trail cannot be written.
const (
	refuseWrites = "refuse_writes"
	continueOn   = "continue"
)

// allOf is the setting for lines about every look-up.
const allOf = "all"

func auditDefaults() AuditSettings {
	return AuditSettings{RotateSize: 100 << 20, Keep: 30, OnFailure: refuseWrites, Lookups: Off, RefusalsPerSecond: 20}
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
	if s.RefusalsPerSecond < 0 {
		errs = append(errs, errors.New("audit.refusals_per_second: must not be negative; 0 writes all"))
	}
	return errs
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
	v := n.machine.View()
	t, err := audit.Open(audit.Options{
		Path: s.Path, Node: n.cfg.NodeID, Size: int64(s.RotateSize), Age: s.RotateEvery, Keep: s.Keep, PerSecond: s.RefusalsPerSecond,
		HeadFile: filepath.Join(dir, "head"), ClusterID: v.ClusterID, Revision: v.Revision, Logger: n.logger,
	}, audit.NewMetrics(reg))
	if err != nil {
		return fmt.Errorf("audit.path: %w", err)
	}
	n.trail = t
	n.machine.Record(recorder{t})
	return nil
}

func (n *Node) closeAudit() error {
	if n.trail == nil {
		return nil
	}
	return n.trail.Close()
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
		Time: time.Now(), Type: audit.Refusal, Principal: audit.Anonymous, Source: r.Source, Action: r.Action, Record: short(r.Record),
		DecisionID: r.Err.DecisionID, PolicyRevision: r.Err.PolicyRevision, RequestID: r.RequestID, TraceID: command.TraceID(r.Trace),
		Outcome: audit.Refused, Status: r.Err.Code.Status(), Code: string(r.Err.Code),
	}
	if r.Who != nil {
		e.Principal = r.Who.ID
	}
	if r.Err.Outcome == fault.Unknown {
		e.Outcome = audit.Unknown
	}
	n.trail.Refused(e)
}

// refusedCall is refused for the policy port. who may be nil.
func (n *Node) refusedCall(r *http.Request, who *identity.Principal, action, requestID string, err *fault.Error) {
	n.refused(&door.Refusal{Who: who, Action: action, Record: r.Method + " " + r.URL.Path, Source: host(r.RemoteAddr),
		RequestID: requestID, Trace: r.Header.Get("Traceparent"), Err: err})
}

// answered is who is told of every call after its answer; nil: nobody has to be.
func (n *Node) answered() func(*door.Answer) {
	if n.trail == nil || n.cfg.Audit.Lookups != allOf {
		return nil
	}
	return func(a *door.Answer) {
		if a.Action.LookUp() && a.Status < 400 {
			n.looked(a)
		}
	}
}

// looked puts a look-up on record that was answered.
func (n *Node) looked(a *door.Answer) {
	e := audit.Entry{
		Time: time.Now(), Type: audit.Lookup, Principal: audit.Anonymous, Source: a.Form.Source, Action: a.Operation, Record: short(a.Record()),
		DecisionID: a.DecisionID, RequestID: a.RequestID, TraceID: command.TraceID(a.Form.Header("Traceparent")), Outcome: audit.Allowed, Status: a.Status,
	}
	if a.Who != nil {
		e.Principal = a.Who.ID
	}
	n.trail.Looked(e)
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

// short bounds what strangers put into the trail.
func short(s string) string {
	const most = 512
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

// recorder tells the trail what the machine applied.
type recorder struct{ *audit.Trail }

// Changed implements fsm.Recorder.
func (r recorder) Changed(changes []fsm.Change) {
	entries := make([]audit.Entry, len(changes))
	for i := range changes {
		entries[i] = changed(&changes[i])
	}
	r.Trail.Changed(entries)
}

// changed says what a change was, without what is in it.
func changed(c *fsm.Change) audit.Entry {
	cmd := c.Command
	e := audit.Entry{
		Time: time.Unix(0, cmd.Time), Type: audit.Change, Principal: cmd.Principal, Revision: c.Revision,
		DecisionID: cmd.DecisionId, PolicyRevision: cmd.PolicyRevision, RequestID: cmd.RequestId, TraceID: cmd.TraceId, Filtered: cmd.Filtered,
		Outcome: audit.Applied,
	}
	switch op := cmd.Op.(type) {
	case *command.Command_Put:
		e.Action, e.Record = "update", named(op.Put.Kind, op.Put.Namespace, op.Put.Service, op.Put.Name)
		if c.Created {
			e.Action = "register"
		}
	case *command.Command_Delete:
		e.Action, e.Record = "delete", named(op.Delete.Kind, op.Delete.Namespace, op.Delete.Service, op.Delete.Name)
	case *command.Command_Status:
		e.Action, e.Record = "status "+op.Status.Status, named(command.Kind_INSTANCE, op.Status.Namespace, op.Status.Service, op.Status.Name)
	case *command.Command_Leases:
		e.Action, e.Record = leaseActions[c.Lease.Change], named(command.Kind_INSTANCE, c.Lease.Namespace, c.Lease.Service, c.Lease.Name)
	case *command.Command_PolicyStage:
		e.Action, e.Record = "stage", "policy"
	case *command.Command_PolicyActivate:
		e.Action, e.Record = "activate", fmt.Sprintf("policy %d", op.PolicyActivate.Revision)
		if op.PolicyActivate.Rollback {
			e.Action = "roll back"
		}
	case *command.Command_PolicyShadow:
		e.Action, e.Record = "shadow", fmt.Sprintf("policy %d", op.PolicyShadow.Revision)
		if op.PolicyShadow.Stop {
			e.Action, e.Record = "stop shadow", "policy"
		}
	case *command.Command_ClusterInit:
		e.Action, e.Record, e.ClusterID = "init", "cluster", op.ClusterInit.ClusterId
	case *command.Command_RestoreBegin:
		e.Action, e.Record = "begin restore", "cluster"
	case *command.Command_RestoreCommit:
		e.Action, e.Record = "restore", "cluster"
	case *command.Command_RestoreAbort:
		e.Action, e.Record = "abort restore", "cluster"
	default:
		e.Action = fmt.Sprintf("%T", op)
	}
	return e
}

var leaseActions = map[command.Leases_Change]string{
	command.Leases_EXPIRED:    "lease expired",
	command.Leases_BACK:       "lease renewed",
	command.Leases_DEREGISTER: "lease deregistered",
}

// named writes a record's key as "version default/cart/1.0.0".
func named(kind command.Kind, namespace, service, name string) string {
	switch kind {
	case command.Kind_SERVICE:
		return "service " + namespace + "/" + name
	case command.Kind_VERSION:
		return "version " + namespace + "/" + service + "/" + name
	case command.Kind_INSTANCE:
		return "instance " + namespace + "/" + service + "/" + name
	case command.Kind_TOKEN:
		return "token " + name
	case command.Kind_SETTING: // the service is the kind of setting
		if namespace == "" {
			return service + " " + name
		}
		return service + " " + namespace + "/" + name
	}
	return name
}
