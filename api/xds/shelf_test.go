package xds

import (
	"fmt"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"

	"github.com/muster-registry/muster/registry"
)

// Clients that make zones up have no resources of their own on the shelf; those
// of a zone that instances have get that zone first.
func TestMadeUpZonesTakeNoRoom(t *testing.T) {
	e := newEdition(&made{service: &registry.Service{Namespace: "shop", Name: "cart"}}, []instance{
		{Address: "10.0.0.1", Port: 80, Zone: "eu-1a", Status: registry.Passing}, {Address: "10.0.0.2", Port: 80, Zone: "eu-1b", Status: registry.Passing},
		{Address: "10.0.0.3", Port: 80, Zone: "us-2a", Status: registry.Passing},
	})
	priorities := func(zone, region string) string {
		t.Helper()
		res, err := e.resource(target{url: resourcev3.EndpointType}, &corev3.Node{Locality: &corev3.Locality{Zone: zone, Region: region}})
		if err != nil {
			t.Fatal(err)
		}
		var a endpointv3.ClusterLoadAssignment
		if err := proto.Unmarshal(res.bytes, &a); err != nil {
			t.Fatal(err)
		}
		text := ""
		for _, l := range a.Endpoints {
			text += fmt.Sprint(l.Locality.Zone, " ", l.Priority, " ")
		}
		return text
	}
	for _, c := range []struct{ zone, region, want string }{
		{"eu-1b", "", "eu-1a 1 eu-1b 0 us-2a 1 "}, {"eu-1b", "eu", "eu-1a 1 eu-1b 0 us-2a 2 "}, {"", "us", "eu-1a 1 eu-1b 1 us-2a 0 "}, {"", "", "eu-1a 0 eu-1b 0 us-2a 0 "},
		{"eu-9z", "eu", "eu-1a 0 eu-1b 0 us-2a 1 "},
	} {
		if got := priorities(c.zone, c.region); got != c.want {
			t.Errorf("from zone %q of %q: %s", c.zone, c.region, got)
		}
	}
	before := len(e.cut)
	for i := range 100 {
		if got := priorities(fmt.Sprint("zone", i), fmt.Sprint("region", i)); got != "eu-1a 0 eu-1b 0 us-2a 0 " {
			t.Errorf("from a zone that is made up: %s", got)
		}
	}
	if len(e.cut) != before {
		t.Errorf("100 zones that are made up take %d places on the shelf", len(e.cut)-before)
	}
}
