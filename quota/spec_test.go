package quota

import (
	"strings"
	"testing"

	"github.com/muster-registry/muster/fault"
)

func TestCanonical(t *testing.T) {
	for name, c := range map[string]struct{ sent, want string }{
		"the whole of it": {
			`{"quota_management":{"backend":"redis","redis_connection":"redis://cache-store.internal:6379","defaults":{"requests_per_second":500,"burst_capacity":1000},"overrides":[{"service_id":"payment-gateway","requests_per_second":2000}]}}`,
			`{"quota_management":{"backend":"redis","redis_connection":"redis://cache-store.internal:6379","defaults":{"requests_per_second":500,"burst_capacity":1000},"overrides":[{"service_id":"payment-gateway","requests_per_second":2000,"burst_capacity":2000}]}}`,
		},
		"nothing but the defaults": {
			`{"quota_management":{"defaults":{"requests_per_second":0.5}}}`,
			`{"quota_management":{"backend":"embedded","defaults":{"requests_per_second":0.5,"burst_capacity":1}}}`,
		},
		"the burst of the defaults, as it is more": {
			`{"quota_management":{"defaults":{"requests_per_second":500,"burst_capacity":1000},"overrides":[{"namespace":"shop","requests_per_second":7},{"principal":"spiffe://muster/a","requests_per_second":7,"burst_capacity":3}]}}`,
			`{"quota_management":{"backend":"embedded","defaults":{"requests_per_second":500,"burst_capacity":1000},"overrides":[{"namespace":"shop","requests_per_second":7,"burst_capacity":1000},{"principal":"spiffe://muster/a","requests_per_second":7,"burst_capacity":3}]}}`,
		},
	} {
		got, err := Canonical([]byte(c.sent))
		if err != nil || string(got) != c.want {
			t.Errorf("%s: %v\n%s\nwant\n%s", name, err, got, c.want)
			continue
		}
		again, err := Canonical(got)
		if err != nil || string(again) != c.want {
			t.Errorf("%s: what is stored is not accepted as it is: %v\n%s", name, err, again)
		}
		if _, err := Read(got); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBadQuotas(t *testing.T) {
	wrap := func(s string) string { return `{"quota_management":{` + s + `}}` }
	for sent, pointer := range map[string]string{
		`{}`: "/quota_management", `{"quota_management":null}`: "/quota_management",
		wrap(`"backend":"memcached"`):                                                    "/quota_management/backend",
		wrap(`"backend":"redis"`):                                                        "/quota_management/redis_connection",
		wrap(`"redis_connection":"http://cache:6379"`):                                   "/quota_management/redis_connection",
		wrap(`"redis_connection":"redis://"`):                                            "/quota_management/redis_connection",
		wrap(`"redis_connection":"redis://:secret@cache:6379"`):                          "/quota_management/redis_connection",
		wrap(`"redis_connection":"redis://cache:6379/x"`):                                "/quota_management/redis_connection",
		wrap(`"redis_connection":"redis://cache:6379?max_retries=9"`):                    "/quota_management/redis_connection",
		wrap(`"redis_connection":"“redis://cache:6379”"`):                                "/quota_management/redis_connection",
		wrap(`"defaults":{}`):                                                            "/quota_management/defaults/requests_per_second",
		wrap(`"defaults":{"requests_per_second":0}`):                                     "/quota_management/defaults/requests_per_second",
		wrap(`"defaults":{"requests_per_second":-5}`):                                    "/quota_management/defaults/requests_per_second",
		wrap(`"defaults":{"requests_per_second":1e300}`):                                 "/quota_management/defaults/requests_per_second",
		wrap(`"defaults":{"requests_per_second":5,"burst_capacity":0}`):                  "/quota_management/defaults/burst_capacity",
		wrap(`"defaults":{"requests_per_second":5,"burst":0}`):                           "/quota_management/defaults/burst",
		wrap(`"overrides":[{"requests_per_second":5}]`):                                  "/quota_management/overrides/0",
		wrap(`"overrides":[{"service_id":"a","principal":"b","requests_per_second":5}]`): "/quota_management/overrides/0",
		wrap(`"overrides":[{"service_id":"a/b","requests_per_second":5}]`):               "/quota_management/overrides/0",
		wrap(`"overrides":[{"service_id":"“a”","requests_per_second":5}]`):               "/quota_management/overrides/0",
		wrap(`"overrides":[{"service_id":"a","requests_per_second":5},{"service_id":"a","namespace":"default","requests_per_second":6}]`): "/quota_management/overrides/1",
	} {
		_, err := Canonical([]byte(sent))
		if f := fault.From(err); !fault.Is(err, fault.InvalidField) || f.Fields[0].Pointer != pointer {
			t.Errorf("%s: %v", sent, err)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("the error tells the password: %v", err)
		}
	}
}

func TestWhatACallCountsAgainst(t *testing.T) {
	stored, err := Canonical([]byte(`{"quota_management":{"defaults":{"requests_per_second":5},"overrides":[
		{"service_id":"a","requests_per_second":1},{"service_id":"a","namespace":"shop","requests_per_second":2},
		{"namespace":"shop","requests_per_second":3},{"principal":"ann","requests_per_second":4}]}}`))
	if err != nil {
		t.Fatal(err)
	}
	s, err := Read(stored)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		call Call
		want map[Key]float64
	}{
		{Call{ServiceID: "a"}, map[Key]float64{"service/default/a": 1}},
		{Call{ServiceID: "b"}, map[Key]float64{"service/default/b": 5}},
		{Call{ServiceID: "a", Namespace: "shop"}, map[Key]float64{"service/shop/a": 2, "namespace/shop": 3}},
		{Call{ServiceID: "b", Namespace: "shop", Principal: "ann"}, map[Key]float64{"service/shop/b": 5, "namespace/shop": 3, "principal/ann": 4}},
		{Call{ServiceID: "b", Principal: "bob"}, map[Key]float64{"service/default/b": 5}},
	} {
		got := s.limits(c.call)
		if len(got) != len(c.want) {
			t.Errorf("%+v: %v", c.call, got)
		}
		for _, l := range got {
			if c.want[l.Key] != l.Rate.RequestsPerSecond {
				t.Errorf("%+v: %v", c.call, l)
			}
		}
	}
	if all := (&Spec{}).limits(Call{ServiceID: "a", Principal: "ann"}); len(all) != 0 {
		t.Errorf("without limits: %v", all)
	}
}
