package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/registry/definition"
)

// schemas registers a JSON Schema, meets it, and takes it back.
func schemas(t *testing.T, s shell) {
	manifest := write(t, "schema.yaml", `kind: Schema
namespace: schooled
name: service
spec:
  metadata: {type: object, required: [tier], properties: {tier: {enum: [gold, silver]}}}
`)
	// Tried out before: nothing is stored.
	early := s
	early.in = "kind: Service\nnamespace: schooled\nname: early\nspec: {}\n"
	contains(t, early.ok(t, "apply", "-f", "-"), "created")
	out, told, code := s.do(t, "apply", "--check", "-f", manifest)
	if code != exitError || !strings.Contains(out, "schooled/early") || !strings.Contains(out, "/metadata") || !strings.Contains(told, "1 record checked, 1 would not meet it") {
		t.Errorf("exit code %d: %s%s", code, out, told)
	}
	if _, _, code := s.do(t, "get", "schema", "service", "-n", "schooled"); code != exitNotFound {
		t.Errorf("a schema that was only tried out is there: exit code %d", code)
	}
	if _, told, code := early.do(t, "apply", "--check", "-f", "-"); code != exitUsage || !strings.Contains(told, "only schemas") {
		t.Errorf("exit code %d: %s", code, told)
	}
	contains(t, s.ok(t, "delete", "service", "early", "-n", "schooled"), "deleted")
	contains(t, s.ok(t, "apply", "--check", "-o", "json", "-f", manifest), `"failing": 0`)

	contains(t, s.ok(t, "apply", "-f", manifest), "schema/service created")
	contains(t, s.ok(t, "apply", "-f", manifest), "schema/service unchanged")
	contains(t, s.ok(t, "get", "schemas"), "schooled", "service", "yes", "no")
	contains(t, s.ok(t, "get", "schema", "service", "-n", "schooled", "-o", "json"), `"tier"`)

	in := s
	in.in = "kind: Service\nnamespace: schooled\nname: cart\nspec: {}\n"
	if _, err, code := in.do(t, "apply", "-f", "-"); code != exitError || !strings.Contains(err, "the JSON Schema for service in namespace schooled") {
		t.Errorf("exit code %d: %s", code, err)
	}
	in.in = "kind: Service\nnamespace: schooled\nname: cart\nspec: {metadata: {tier: gold}}\n"
	contains(t, in.ok(t, "apply", "-f", "-"), "created")

	// One half goes when the manifest no longer has it.
	both := write(t, "schema.yaml", "kind: Schema\nnamespace: schooled\nname: service\nspec: {metadata: {type: object}, payload: {type: object}}\n")
	contains(t, s.ok(t, "apply", "-f", both), "configured")
	if out, _, code := s.do(t, "diff", "-f", manifest); code != exitError || !strings.Contains(out, "- payload:") {
		t.Errorf("diff: exit code %d: %s", code, out)
	}
	contains(t, s.ok(t, "apply", "-f", manifest), "configured")
	if _, err, code := s.do(t, "apply", "-f", write(t, "bad.yaml", "kind: Schema\nname: service\nspec: {metadata: {$ref: 'https://example.org/a'}}\n")); code != exitError || !strings.Contains(err, "nothing is fetched") {
		t.Errorf("exit code %d: %s", code, err)
	}
	contains(t, s.ok(t, "delete", "schema", "service", "-n", "schooled"), "deleted")
	if _, _, code := s.do(t, "get", "schema", "service", "-n", "schooled"); code != exitNotFound {
		t.Errorf("after its end: exit code %d", code)
	}
	contains(t, s.ok(t, "delete", "service", "cart", "-n", "schooled"), "deleted")

	// The rules of the cluster are those of the tool.
	var own, offline struct {
		Rules []definition.Rule `json:"rules"`
	}
	c, err := client.New(client.Config{Addresses: strings.Split(s.env["MUSTER_ADDR"], ","), CACert: s.env["MUSTER_CACERT"], Token: s.env["MUSTER_TOKEN"]})
	if err != nil {
		t.Fatal(err)
	}
	answer, err := c.PolicyLibrary(t.Context())
	if err == nil {
		err = json.Unmarshal(answer, &own)
	}
	if err == nil {
		err = json.Unmarshal([]byte(s.ok(t, "policy", "library", "-o", "json")), &offline.Rules)
	}
	if err != nil || len(own.Rules) < 40 || !slices.Equal(own.Rules, offline.Rules) {
		t.Errorf("%v: %d rules in the cluster, %d in the tool", err, len(own.Rules), len(offline.Rules))
	}

	// This cluster takes no policies from Git.
	for _, args := range [][]string{{"policy", "sync"}, {"policy", "sync", "status"}} {
		if _, err, code := s.do(t, args...); code != exitNotFound || !strings.Contains(err, "Git") {
			t.Errorf("%v: exit code %d: %s", args, code, err)
		}
	}
}
