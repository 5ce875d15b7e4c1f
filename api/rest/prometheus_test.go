package rest_test

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/muster-registry/muster/api/rest"
)

func TestPrometheusTargets(t *testing.T) {
	e := newEdge(t, rest.Options{})
	for _, in := range []struct{ path, body string }{
		{"/v1/namespaces/shop/services/cart/instances/a", `{"address":"10.0.0.1","port":80,"version":"1.0.0","zone":"x","weight":3,"tags":["pci","slow"],"metadata":{"k8s.io/app":"cart"}}`},
		{"/v1/namespaces/shop/services/cart/instances/b", `{"address":"fd00::1","port":81,"zone":"y","tags":["pci"]}`},
		{"/v1/namespaces/bank/services/ledger/instances/c", `{"address":"ledger.example.org","port":82}`},
	} {
		e.call("publisher", "PUT", in.path+"?create_service=true", in.body, 201)
	}
	e.call("publisher", "PUT", "/v1/namespaces/shop/services/cart/instances/b/status", `{"status":"critical"}`, 200)
	e.call("publisher", "PUT", "/v1/namespaces/shop/services/empty", `{}`, 201)
	for query, want := range map[string][]string{
		"":                                  {"ledger.example.org:82", "10.0.0.1:80", "[fd00::1]:81"},
		"?namespace=shop":                   {"10.0.0.1:80", "[fd00::1]:81"},
		"?namespace=shop&status=passing":    {"10.0.0.1:80"},
		"?namespace=shop&status=critical":   {"[fd00::1]:81"},
		"?namespace=shop&service=cart":      {"10.0.0.1:80", "[fd00::1]:81"},
		"?namespace=shop&service=empty":     {},
		"?service=cart":                     {},
		"?namespace=shop&service=none":      {},
		"?tag=pci&tag=slow":                 {"10.0.0.1:80"},
		"?namespace=shop&tag=":              {"10.0.0.1:80", "[fd00::1]:81"},
		"?version=1.0.0":                    {"10.0.0.1:80"},
		"?zone=y&consistency=linearizable":  {"[fd00::1]:81"},
		"?namespace=bank&status=any&zone=":  {"ledger.example.org:82"},
		"?namespace=nobody":                 {},
		"?namespace=shop&max_staleness=10s": {"10.0.0.1:80", "[fd00::1]:81"},
	} {
		var targets []rest.Target
		body := e.call("viewer", "GET", "/v1/prometheus/targets"+query, "", 200).Body.String()
		if err := json.Unmarshal([]byte(body), &targets); err != nil {
			t.Fatalf("%s: %v: %s", query, err, body)
		}
		got := []string{}
		for _, target := range targets {
			got = append(got, target.Targets...)
		}
		if !slices.Equal(got, want) || body == "null" {
			t.Errorf("%s: %s", query, body)
		}
		for _, target := range targets {
			if target.Targets[0] != "10.0.0.1:80" {
				continue
			}
			for name, value := range map[string]string{"namespace": "shop", "service": "cart", "instance": "a", "address": "10.0.0.1", "port": "80", "version": "1.0.0",
				"zone": "x", "weight": "3", "status": "passing", "tags": ",pci,slow,", "metadata_k8s_io_app": "cart"} {
				if target.Labels["__meta_muster_"+name] != value {
					t.Errorf("%s is %q, not %q", name, target.Labels["__meta_muster_"+name], value)
				}
			}
		}
	}
	for _, query := range []string{"?status=well", "?namespace=No", "?namespace=shop&service=a/b", "?status=any&status=any"} {
		e.call("viewer", "GET", "/v1/prometheus/targets"+query, "", 400)
	}
}
