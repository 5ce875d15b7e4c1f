package rest

import (
	"bytes"
	"net/http"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/identity"
	"github.com/muster-registry/muster/pki"
	"github.com/muster-registry/muster/pki/issuer"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
)

func certificateRoutes() []Route {
	return []Route{
		{Method: http.MethodPost, Path: "/v1/certificates", ID: "issueCertificate", Summary: "Have a certificate made for a workload's key",
			Action: policy.Issue, Kind: issuer.Kind, Status: 201, Body: CertificateBody{}, Answer: Certificate{},
			Refusals: []fault.Code{fault.NotFound, fault.TooStale, fault.PolicyUnavailable}, handle: issueCertificate},
	}
}

// CertificateBody asks for a certificate.
type CertificateBody struct {
	CSR string            `json:"csr"`          // PKCS #10 in PEM
	ID  string            `json:"id,omitempty"` // SPIFFE id; else that of the CSR, else the caller's own
	TTL registry.Duration `json:"ttl,omitzero"` // else as long as may be
}

// Certificate is one that was issued.
type Certificate struct {
	ID          string    `json:"id"`
	Serial      string    `json:"serial"` // in hex, as revocations name it
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`
	Hosts       []string  `json:"hosts"`
	Certificate string    `json:"certificate"` // PEM, followed by what is between it and its root
	Authority   string    `json:"authority"`   // PEM of the root, by which others verify it
}

// Issuance is a certificate on its way to its caller, for the record.
type Issuance struct {
	Who            *identity.Principal
	Operation      string
	Source         string // the caller's address
	RequestID      string
	TraceID        string
	DecisionID     string // "" where no policy was asked
	PolicyRevision uint64
	Order          *issuer.Order
	Certificate    *issuer.Certificate // nil: about to be signed
}

// issueCertificate decides as look-ups are decided, on this node's state: it
// changes nothing that the cluster keeps.
func issueCertificate(c *call) error {
	body, err := c.body(c.api.opt.MaxBody)
	if err != nil {
		return err
	}
	var ask CertificateBody
	if err := registry.DecodeStrict(body, &ask); err != nil {
		return err
	}
	from := c.api.opt.Issuer
	if from == nil {
		return fault.New(fault.NotFound, "this node issues no certificates; an operator can have it do so, with certificates.signer in its configuration")
	}
	if err := c.Young(); err != nil {
		return err
	}
	order, err := from.Order(issuer.Ask{CSR: ask.CSR, ID: ask.ID, TTL: time.Duration(ask.TTL)}, c.proved())
	if err != nil {
		return err
	}
	if err := order.Permit(c.Role, c.State.Tokens.Access()); err != nil {
		return err
	}
	it := &Issuance{Who: c.Who, Operation: c.route.ID, Source: c.Source(), RequestID: c.ID, TraceID: command.TraceID(c.R.Header.Get("Traceparent")), Order: order}
	if err := c.judge(order, it); err != nil {
		return err
	}
	if err := c.api.opt.Issuance(it); err != nil { // could it be put on record?
		return err
	}
	if it.Certificate, err = from.Issue(c.context(), order); err != nil {
		return err
	}
	if err := c.api.opt.Issuance(it); err != nil {
		return err
	}
	leaf := it.Certificate.Leaf
	c.Header().Set("Cache-Control", "no-store")
	return c.json(http.StatusCreated, Certificate{
		ID: order.ID.String(), Serial: it.Certificate.Serial(), NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter,
		Hosts: append([]string{}, order.Hosts...), Certificate: string(it.Certificate.PEM()),
		Authority: string(pki.EncodeCertificates(it.Certificate.Root)),
	})
}

// proved is the SPIFFE id that the caller has proved; "": none.
func (c *call) proved() string {
	if c.Who.Kind != identity.KindSPIFFE {
		return ""
	}
	return c.Who.ID
}

// judge asks the policy. Where its filtered would change the certificate, there
// is none: what stands in one is what was asked for.
func (c *call) judge(order *issuer.Order, it *Issuance) error {
	res, err := order.Resource()
	if err != nil {
		return err
	}
	d, err := c.Decide(res)
	if err != nil {
		return err
	}
	it.DecisionID, it.PolicyRevision = d.ID, d.PolicyRevision
	if d.Filtered == nil {
		return nil
	}
	var want, have any
	if err := json.Unmarshal(res.Payload, &want); err != nil {
		return err
	}
	if json.Unmarshal(d.Filtered, &have) == nil {
		a, errA := json.Marshal(want, json.Deterministic(true))
		b, errB := json.Marshal(have, json.Deterministic(true))
		if errA == nil && errB == nil && bytes.Equal(a, b) {
			c.Filtered = false
			return nil
		}
	}
	f := fault.New(fault.PolicyDenied, "the policy's filtered would change the certificate; a certificate is issued as it was asked for, or not")
	f.Reasons, f.DecisionID, f.PolicyRevision = []string{"filtered changes the certificate"}, d.ID, d.PolicyRevision
	return f
}
