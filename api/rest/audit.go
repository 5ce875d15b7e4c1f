package rest

import (
	"net/http"
	"time"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

// auditRoutes offer what the cluster knows of its nodes' audit trails.
func auditRoutes() []Route {
	const path = "/v1/audit/heads"
	return []Route{
		{Method: http.MethodGet, Path: path, ID: "listAuditHeads", Summary: "Tell where the nodes' audit trails have come to",
			Action: policy.Read, Kind: "cluster", Status: 200, Reads: true, Answer: AuditHeads{}, handle: listAuditHeads},
		{Method: http.MethodDelete, Path: path + "/{member}", ID: "forgetAuditHead", Summary: "Accept the audit trail of a node as it is from here on",
			Action: policy.Manage, Kind: "cluster", Status: 204, Refusals: []fault.Code{fault.NotFound}, handle: forgetAuditHead},
	}
}

// AuditHead is a line of a node's audit trail that the cluster knows: the trail
// must hold it.
type AuditHead struct {
	Node string    `json:"node"`
	Seq  uint64    `json:"seq"`  // number of the line
	Hash string    `json:"hash"` // of the line, in hexadecimal
	At   time.Time `json:"at"`
}

// AuditHeads lists them; there are too few for pages.
type AuditHeads struct {
	Items         []AuditHead `json:"items"`
	NextPageToken string      `json:"next_page_token"`
	Revision      uint64      `json:"revision"`
}

func listAuditHeads(c *call) error {
	if err := c.view(nil); err != nil {
		return err
	}
	return c.json(http.StatusOK, AuditHeads{Items: c.api.backend.AuditHeads(), Revision: c.State.Revision})
}

func forgetAuditHead(c *call) error {
	node, err := memberID(c)
	if err != nil {
		return err
	}
	in, err := c.intent(nil)
	if err != nil {
		return err
	}
	if err := c.api.backend.ForgetAuditHead(c.context(), in, node); err != nil {
		return err
	}
	c.empty()
	return nil
}
