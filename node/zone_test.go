package node_test

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/muster-registry/muster/api/rpc/musterv1"
	"github.com/muster-registry/muster/client"
)

// TestZonesAreEnoughOrSpillOver: REST, gRPC, DNS and the Go client prefer a zone
// alike, and use the others when too few of its instances pass.
func TestZonesAreEnoughOrSpillOver(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	at := tr.withDNS("rate: 0")[0]
	tr.configure(t, "discovery: {zone: near}\n")
	tr.startAll()
	e := newEdge(t, tr)
	const service = "/v1/namespaces/shop/services/cart/instances/"
	for i, zone := range []string{"far", "near", "near", "far", "near", "near"} {
		e.mustDo(t, "PUT", fmt.Sprintf("%si%d?create_service=true", service, i), fmt.Sprintf(`{"address":"10.0.0.%d","port":80,"zone":%q,"ttl":"1h"}`, i, zone))
	}
	calls := musterv1.NewRegistryClient(e.dialRPC(t, 0, &tls.Config{}))
	c := tr.client(tr.token, 0)
	const all = "10.0.0.0 10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5"
	status := func(to string, ids ...int) {
		for _, i := range ids {
			e.mustDo(t, "PUT", fmt.Sprintf("%si%d/status", service, i), fmt.Sprintf(`{"status":%q}`, to))
		}
	}
	for _, step := range []struct {
		what   string
		change func()
		order  string // of the answer to zone=near
		near   int
		spill  bool
		use    string
	}{
		{"all pass", func() {}, "i1 i2 i4 i5 i0 i3", 4, false, "10.0.0.1 10.0.0.2 10.0.0.4 10.0.0.5"},
		{"half of the zone passes", func() { status("critical", 1, 2) }, "i4 i5 i0 i3", 2, false, "10.0.0.4 10.0.0.5"},
		{"a quarter passes", func() { status("warning", 4) }, "i5 i0 i3", 1, true, "10.0.0.0 10.0.0.3 10.0.0.5"},
		{"the others are in maintenance", func() { status("maintenance", 1, 2, 4) }, "i5 i0 i3", 1, false, "10.0.0.5"},
		{"none passes", func() { status("critical", 5) }, "i0 i3", 0, true, "10.0.0.0 10.0.0.3"},
		{"all pass again", func() { status("passing", 1, 2, 4, 5) }, "i1 i2 i4 i5 i0 i3", 4, false, "10.0.0.1 10.0.0.2 10.0.0.4 10.0.0.5"},
	} {
		step.change()
		a := e.mustDo(t, "GET", "/v1/discovery/shop/cart?zone=near", "")
		var body struct {
			Instances []struct{ ID string }
			Locality  struct {
				Zone      string `json:"zone"`
				Instances int    `json:"instances"`
				SpillOver bool   `json:"spill_over"`
			} `json:"locality"`
		}
		must(t, json.Unmarshal(a.body, &body))
		var ids []string
		for _, i := range body.Instances {
			ids = append(ids, i.ID)
		}
		if l := body.Locality; strings.Join(ids, " ") != step.order || l.Zone != "near" || l.Instances != step.near || l.SpillOver != step.spill {
			t.Errorf("%s: over REST %s", step.what, a.body)
		}
		res, err := calls.Resolve(e.context(t), &musterv1.ResolveRequest{Namespace: "shop", Service: "cart", Zone: "near"})
		must(t, err)
		if l := res.Locality; l.GetZone() != "near" || int(l.GetInstances()) != step.near || l.GetSpillOver() != step.spill || res.Instances[0].Id != ids[0] {
			t.Errorf("%s: over gRPC %v", step.what, res)
		}
		d, err := c.Discover(t.Context(), "shop", "cart", client.Filter{Zone: "near"})
		must(t, err)
		var use []string
		for _, i := range d.Nearest() {
			use = append(use, i.Address)
		}
		if slices.Sort(use); strings.Join(use, " ") != step.use {
			t.Errorf("%s: the client uses %s", step.what, use)
		}
		answer, err := askDNS(t, "udp", at, "cart.shop.svc.muster.", dns.TypeA)
		must(t, err)
		use = nil
		for _, rr := range answer.Answer {
			use = append(use, rr.(*dns.A).A.String())
		}
		if slices.Sort(use); strings.Join(use, " ") != step.use {
			t.Errorf("%s: DNS gives %s", step.what, use)
		}
		answer, err = askDNS(t, "tcp", at, "cart.shop.svc.muster.", dns.TypeSRV)
		must(t, err)
		first := 0
		for _, rr := range answer.Answer {
			if rr.(*dns.SRV).Priority == 1 {
				first++
			}
		}
		if len(answer.Answer) != len(ids) || first != len(strings.Fields(step.use)) {
			t.Errorf("%s: %d of %d are preferred by SRV:\n%s", step.what, first, len(answer.Answer), answer)
		}
	}
	if a := e.mustDo(t, "GET", "/v1/discovery/shop/cart", ""); strings.Contains(string(a.body), "locality") {
		t.Errorf("nobody asked for a zone: %s", a.body)
	}
	if d, err := c.Discover(t.Context(), "shop", "cart", client.Filter{}); err != nil || len(d.Nearest()) != len(strings.Fields(all)) {
		t.Errorf("%v %v", d, err)
	}
}
