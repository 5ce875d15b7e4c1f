package admit

import (
	"context"
	"time"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/registry"
	"github.com/muster-registry/muster/setting"
)

// propose puts an admitted command into the log, or, where the caller only
// wants to know, tells what would come of it.
func (g *Gate) propose(ctx context.Context, in *command.Intent, cmd *command.Command) (*command.Receipt, error) {
	if !in.DryRun {
		return g.log.Propose(ctx, cmd)
	}
	if err := g.log.ReadIndex(ctx); err != nil {
		return nil, err
	}
	st := g.state()
	receipt, err := try(st, cmd)
	if err != nil {
		return nil, err
	}
	receipt.Revision = st.Revision
	receipt.DecisionId, receipt.PolicyRevision, receipt.Filtered = cmd.DecisionId, cmd.PolicyRevision, cmd.Filtered
	return receipt, nil
}

// try makes the change to a copy of the tables that nobody else sees, by the
// same rules as Apply.
func try(st State, cmd *command.Command) (*command.Receipt, error) {
	next := registry.Stamp{Revision: st.Revision + 1, Time: time.Unix(0, cmd.Time).UTC(), By: cmd.Principal}
	reg := st.Registry.Txn(nil)
	switch op := cmd.Op.(type) {
	case *command.Command_Put:
		return tryPut(st, reg, next, op.Put)
	case *command.Command_Delete:
		return &command.Receipt{}, tryDelete(st, reg, next, op.Delete)
	case *command.Command_Status:
		s := op.Status
		rec, err := reg.SetStatus(next, s.Namespace, s.Service, s.Name, s.Status, registry.ByCaller, s.Observed)
		if err != nil {
			return nil, err
		}
		return &command.Receipt{Record: rec.JSON}, nil
	}
	return nil, untried()
}

func tryPut(st State, reg *registry.Txn, next registry.Stamp, p *command.Put) (*command.Receipt, error) {
	switch p.Kind {
	case command.Kind_SERVICE:
		rec, created, err := reg.PutService(next, p.Namespace, p.Name, p.Spec, p.Observed)
		if err != nil {
			return nil, err
		}
		return &command.Receipt{Record: rec.JSON, Created: created}, nil
	case command.Kind_VERSION:
		rec, created, err := reg.PutVersion(next, p.Namespace, p.Service, p.Name, p.Spec, p.Document, p.Observed)
		if err != nil {
			return nil, err
		}
		return &command.Receipt{Record: rec.JSON, Created: created}, nil
	case command.Kind_INSTANCE:
		rec, created, err := reg.PutInstance(next, p.Namespace, p.Service, p.Name, p.Spec, p.Observed, p.CreateService)
		if err != nil {
			return nil, err
		}
		return &command.Receipt{Record: rec.JSON, Created: created}, nil
	}
	if p.Kind != command.Kind_SETTING || !manifest(p.Service) {
		return nil, untried()
	}
	rec, created, err := st.Settings.Txn(nil).Put(setting.Stamp(next), setting.Kind(p.Service), p.Namespace, p.Name, p.Spec, p.Observed)
	if err != nil {
		return nil, err
	}
	return &command.Receipt{Record: rec.JSON, Created: created}, nil
}

func tryDelete(st State, reg *registry.Txn, next registry.Stamp, d *command.Delete) error {
	switch d.Kind {
	case command.Kind_SERVICE:
		return reg.Delete(next, registry.KindService, d.Namespace, d.Name, "", d.Observed)
	case command.Kind_VERSION:
		return reg.Delete(next, registry.KindVersion, d.Namespace, d.Service, d.Name, d.Observed)
	case command.Kind_INSTANCE:
		return reg.Delete(next, registry.KindInstance, d.Namespace, d.Service, d.Name, d.Observed)
	}
	if d.Kind != command.Kind_SETTING || !manifest(d.Service) {
		return untried()
	}
	return st.Settings.Txn(nil).Delete(setting.Kind(d.Service), d.Namespace, d.Name, d.Observed)
}

// manifest tells the settings that manifests describe from those that take
// effect as credentials, alarms or steps of something larger.
func manifest(kind string) bool {
	switch setting.Kind(kind) {
	case setting.Webhook, setting.Schema, setting.Quota, setting.Role:
		return true
	}
	return false
}

func untried() error {
	return fault.New(fault.BadRequest, "this change cannot be tried out; nothing was changed")
}
