package envoy

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
)

// What the manual tells Envoy's operator to write is configuration that Envoy
// takes.
func TestTheManualsFilter(t *testing.T) {
	b, err := os.ReadFile("../../docs/services.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, found := strings.Cut(string(b), "```yaml\nhttp_filters:\n")
	text, _, _ = strings.Cut(text, "```")
	var filters []any
	if err := yaml.Unmarshal([]byte(text), &filters); err != nil || !found || len(filters) != 1 {
		t.Fatalf("%v in\n%s", err, text)
	}
	js, err := json.Marshal(filters[0])
	if err != nil {
		t.Fatal(err)
	}
	filter := new(hcmv3.HttpFilter)
	if err := protojson.Unmarshal(js, filter); err != nil {
		t.Fatal(err)
	}
	authz := new(extauthzv3.ExtAuthz)
	if err := filter.GetTypedConfig().UnmarshalTo(authz); err != nil {
		t.Fatal(err)
	}
	if err := authz.ValidateAll(); err != nil || authz.FailureModeAllow || authz.GetGrpcService().GetEnvoyGrpc().GetClusterName() == "" {
		t.Errorf("%v: %v", err, authz)
	}
}
