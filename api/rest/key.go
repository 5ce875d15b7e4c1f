package rest

import (
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/muster-registry/muster/policy/sign"
	"github.com/muster-registry/muster/setting"
)

// keyRoute offers the keys that may sign policies. They are the operator's: a
// policy-admin who could trust his own key would not need anyone's signature.
func keyRoute() settingRoute {
	return settingRoute{
		kind: setting.Key, resource: "key", base: "/v1/policy/keys", one: "PolicyKey", many: "PolicyKeys",
		body: sign.Key{}, answer: sign.Key{}, show: withoutSecret,
	}
}

// requirementRoute offers what policies must have to be accepted. It is the
// operator's for the same reason.
func requirementRoute() settingRoute {
	return settingRoute{
		kind: setting.Requirement, resource: "key", base: "/v1/policy/requirements", one: "PolicyRequirement", many: "PolicyRequirements",
		body: RequirementBody{}, answer: RequirementBody{},
	}
}

// RequirementBody is empty: that the requirement is there is all there is to it.
type RequirementBody struct{}

// withoutSecret leaves the material out of a key that is a shared secret.
func withoutSecret(record []byte) ([]byte, error) {
	var k struct {
		Algorithm string `json:"algorithm"`
	}
	if err := json.Unmarshal(record, &k); err != nil {
		return nil, err
	}
	if !strings.HasPrefix(k.Algorithm, "HS") {
		return record, nil
	}
	var members map[string]jsontext.Value
	if err := json.Unmarshal(record, &members); err != nil {
		return nil, err
	}
	delete(members, "material")
	return json.Marshal(members, json.Deterministic(true))
}
