package node

import (
	"fmt"
	"strings"
	"time"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/audit"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fsm"
)

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
	case *command.Command_AuditHead:
		e.Action, e.Record = "forget", "audit head "+op.AuditHead.Node
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
	command.Leases_CHECK:      "check changed",
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

// asked says what a call is about in the words of changed, as far as its method
// and path tell: an edge that speaks no REST gives its calls that form. The action
// of any other call is its operation. v tells what is there already: a change of
// that is an update.
func asked(f *door.Form, operation string, v *fsm.View) (action, record string) {
	p := f.Route
	if len(p) > 0 && (p[0] == "v1" || p[0] == "v0") {
		p = p[1:]
	}
	var first, second, third, fourth string
	for i, to := range []*string{&first, &second, &third, &fourth} {
		if i < len(p) {
			*to = p[i]
		}
	}
	action = actions[f.Method]
	switch first {
	case "services":
	case "discovery":
		if third != "" {
			record = named(command.Kind_SERVICE, second, "", third)
		}
	case "namespaces":
		action, record = askedRecord(action, p, v)
	case "policy":
		action, record = askedPolicy(action, second, third, fourth)
	case "authorize":
		action = "authorize"
	case "policies", "data", "query", "compile": // of the policy port
		action, record = askedData(f.Method, first)
	case "audit":
		action, record = "forget", "audit head "+third
		if f.Method != "DELETE" {
			action = ""
		}
	case "cluster":
		record = "node " + third
		if action = ""; second == "members" && f.Method == "DELETE" {
			action = "remove"
		}
	case "snapshot":
		action, record = "restore", "cluster"
		if f.Method != "PUT" {
			action = ""
		}
	case "break-glass":
		if record = first; second != "" {
			record = first + " " + second + "/" + second
		}
	case "quotas":
		record = "quota quotas"
	default:
		kind, ok := settings[first]
		if !ok {
			action = ""
		}
		record = strings.TrimSpace(kind + " " + strings.Join(p[min(1, len(p)):], "/"))
	}
	if action == "" {
		return operation, ""
	}
	return action, record
}

// askedRecord reads namespaces/NS/services/NAME/….
func askedRecord(action string, p []string, v *fsm.View) (_, record string) {
	if len(p) < 4 {
		return action, ""
	}
	namespace, service, there := p[1], p[3], false
	if len(p) < 6 {
		record = named(command.Kind_SERVICE, namespace, "", service)
		if action == "register" {
			_, there = v.Registry.Service(namespace, service)
		}
	} else if p[4] == "versions" {
		record = named(command.Kind_VERSION, namespace, service, p[5])
		if action == "register" {
			_, there = v.Registry.Version(namespace, service, p[5])
		}
	} else {
		record = named(command.Kind_INSTANCE, namespace, service, p[5])
		if action == "register" {
			_, there = v.Registry.Instance(namespace, service, p[5])
		}
	}
	if len(p) > 6 && p[4] == "instances" { // its status, a heartbeat, a check
		return p[6], record
	}
	if there {
		action = "update"
	}
	return action, record
}

// askedData reads the paths of the policy port.
func askedData(method, what string) (action, record string) {
	switch {
	case method == "PUT" || method == "PATCH" || method == "DELETE":
		return "stage", "policy"
	case what == "policies":
		return "lookup", "policy"
	}
	return "authorize", ""
}

// askedPolicy reads policy/WHAT/NAME/OF.
func askedPolicy(action, what, name, of string) (_, record string) {
	switch {
	case what == "keys" || what == "requirements":
		return action, strings.TrimSpace(strings.TrimSuffix(what, "s") + " " + name)
	case what == "rollback":
		return "roll back", "policy"
	case what == "shadow" && action == "delete":
		return "stop shadow", "policy"
	case what != "revisions":
		return "", ""
	case of == "activate" || of == "shadow":
		return of, "policy " + name
	case action == "register":
		return "stage", "policy"
	}
	return action, strings.TrimSpace("policy " + name)
}

// actions are what is asked for of a record, by method.
var actions = map[string]string{"GET": "lookup", "HEAD": "lookup", "PUT": "register", "POST": "register", "PATCH": "update", "DELETE": "delete"}

// settings are kinds of record by the list they are in.
var settings = map[string]string{"tokens": "token", "webhooks": "webhook", "roles": "role", "schemas": "schema", "revocations": "revocation"}
