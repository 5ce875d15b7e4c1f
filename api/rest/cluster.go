package rest

import (
	"errors"
	"net/http"
	"time"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/registry"
)

// ClusterStatus tells how every node is, as far as the answering one knows.
type ClusterStatus struct {
	ClusterID string       `json:"cluster_id"`
	Leader    string       `json:"leader"` // "" when none is known
	Term      uint64       `json:"term"`
	Nodes     []NodeStatus `json:"nodes"`
	// FeatureLevel is the newest replicated format in use; it never goes down.
	FeatureLevel uint32 `json:"feature_level"`
	// Alarms are those that are raised, node by node.
	Alarms []Alarm `json:"alarms,omitempty"`
	// Warnings say what of it needs a person.
	Warnings []string `json:"warnings,omitempty"`
}

// Alarm is one that is raised on a node; docs/operations.md has a section on each.
type Alarm struct {
	Alarm  string    `json:"alarm"`
	Node   string    `json:"node"`
	Detail string    `json:"detail"`
	Since  time.Time `json:"since"` // by the node's own clock
}

// NodeStatus is one node as it says it is, or as the others see it.
type NodeStatus struct {
	ID             string    `json:"id"`
	Address        string    `json:"address"`
	Role           string    `json:"role"` // leader, voter, non-voter
	Alive          bool      `json:"alive"`
	Ready          bool      `json:"ready"`
	Applied        uint64    `json:"applied"`
	Commit         uint64    `json:"commit"`
	Term           uint64    `json:"term"` // of Raft, on the node
	LastContactMS  int64     `json:"last_contact_ms"`
	StateHash      StateHash `json:"state_hash"`
	PolicyRevision uint64    `json:"policy_revision"`
	Version        string    `json:"version"`
	FeatureLevel   uint32    `json:"feature_level"`          // the newest that the node knows
	Engine         string    `json:"engine"`                 // that decides, as "opa 1.22.2"
	PolicyError    string    `json:"policy_error,omitempty"` // why the node cannot decide by the active policy
}

// StateHash says what a node's state was at a revision; nodes that agree on
// the revision agree on the hash.
type StateHash struct {
	Revision uint64 `json:"revision"`
	Hash     string `json:"hash"`
}

// Member is a node that belongs to the cluster.
type Member struct {
	ID      string `json:"id"`
	Address string `json:"address"`
	Role    string `json:"role"` // leader, voter, non-voter
	Alive   bool   `json:"alive"`
}

// Members lists them; there are too few for pages.
type Members struct {
	Items         []Member `json:"items"`
	NextPageToken string   `json:"next_page_token"`
	Revision      uint64   `json:"revision"`
}

// TransferBody names the next leader; an empty one leaves the choice.
type TransferBody struct {
	To string `json:"to,omitempty"`
}

// RestoreReport says what a snapshot holds and what became of it.
type RestoreReport struct {
	DryRun           bool   `json:"dry_run"`
	ClusterID        string `json:"cluster_id"`        // that the snapshot is of
	SnapshotRevision uint64 `json:"snapshot_revision"` // that it was taken at
	Revision         uint64 `json:"revision,omitzero"` // of the restore; absent from a dry run
	Services         int    `json:"services"`
	Versions         int    `json:"versions"`
	Instances        int    `json:"instances"`
	PolicyRevision   uint64 `json:"policy_revision"`
	StateHash        string `json:"state_hash"`
	// Changes say, by kind of record, what a dry run would change.
	Changes map[string]Tally `json:"changes,omitzero"`
	// Saved is the file with the state from before the restore, on the node SavedOn.
	Saved   string `json:"saved,omitzero"`
	SavedOn string `json:"saved_on,omitzero"`
}

// Tally counts the records of one kind that differ.
type Tally struct {
	Added   int `json:"added"`
	Removed int `json:"removed"`
	Changed int `json:"changed"`
}

func clusterStatus(c *call) error {
	status, err := c.api.backend.ClusterStatus(c.context())
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, status)
}

func listMembers(c *call) error {
	members, err := c.api.backend.Members(c.context())
	if err != nil {
		return err
	}
	if members == nil {
		members = []Member{}
	}
	return c.json(http.StatusOK, Members{Items: members, Revision: c.State.Revision})
}

func transferLeader(c *call) error {
	body, err := c.body(c.api.opt.MaxBody)
	if err != nil {
		return err
	}
	var ask TransferBody
	if len(body) > 0 {
		if err := registry.DecodeStrict(body, &ask); err != nil {
			return err
		}
	}
	in, err := c.intent(body)
	if err != nil {
		return err
	}
	if err := c.api.backend.TransferLeader(c.context(), in, ask.To); err != nil {
		return err
	}
	c.empty()
	return nil
}

// memberID reads the id of a node from the path.
func memberID(c *call) (string, error) {
	id := c.R.PathValue("member")
	if len(id) > 253 || !door.Printable(id) {
		return "", fault.Invalid("/id", "the id of a member is printable text of at most 253 bytes")
	}
	return id, nil
}

func removeMember(c *call) error {
	id, err := memberID(c)
	if err != nil {
		return err
	}
	in, err := c.intent(nil)
	if err != nil {
		return err
	}
	if err := c.api.backend.RemoveMember(c.context(), in, id); err != nil {
		return err
	}
	c.empty()
	return nil
}

// saveSnapshot streams. When something goes wrong on the way, the connection
// breaks off, so that nobody takes half a snapshot for a whole one.
func saveSnapshot(c *call) error {
	if err := c.view(nil); err != nil {
		return err
	}
	if c.R.Method == http.MethodHead {
		c.WriteHeader(http.StatusOK)
		return nil
	}
	h := c.Header()
	h.Set("Content-Type", mediaStream)
	h.Set(noCompression, "1")
	err := c.api.backend.Snapshot(c.context(), c)
	if err != nil {
		h.Del("Content-Type")
	}
	return err
}

// restoreSnapshot hands the body on as it comes; a snapshot has no limit of
// its own and carries its own checks.
func restoreSnapshot(c *call) error {
	q, err := c.query()
	if err != nil {
		return err
	}
	dryRun, err := flag(q, "dry_run")
	if err != nil {
		return err
	}
	force, err := flag(q, "force")
	if err != nil {
		return err
	}
	if len(c.R.Header["Content-Encoding"]) > 0 {
		return fault.New(fault.UnsupportedMediaType, "send the snapshot as it is, without a Content-Encoding")
	}
	in, err := c.intent(nil)
	if err != nil {
		return err
	}
	report, err := c.api.backend.Restore(c.context(), in, c.R.Body, dryRun, force)
	if err != nil {
		if _, broken := errors.AsType[*http.MaxBytesError](err); broken {
			return fault.Wrap(fault.TooLarge, err, "the snapshot is larger than this node takes")
		}
		return err
	}
	if report.Revision > 0 {
		c.written(report.Revision)
	}
	return c.json(http.StatusOK, report)
}
