package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
)

const toldJSON = `{"decision_id":"01a206f8-fefb-70ff-b5b3-526bbdbeae57","time":"2026-11-23T05:55:11.2274Z","node":"n2","policy_revision":7,"revision":1290,"engine":"opa 1.22.2",
"entrypoint":"api/registry/authz","took_ns":133000,"requested_by":"10.1.2.3","principal":"token:ann","request_id":"r-1","trace_id":"0af7651916cd43dd8448eb211c80319c","masked":["/input/token"],
"input":{"action":"register","token":"***","attributes":{"request":{"http":{"method":"PUT","path":"/v1/namespaces/default/services/cart"}}},"resource":{"kind":"service","namespace":"default","name":"cart"}},
"result":{"allow":false,"reasons":["data.api.registry.authz.allow is false: no rule allows this"]},
"explanation":{"same":true,"rules":[
{"package":"api.registry.authz","name":"allow","outcome":"false","value":"false","definitions":[
 {"file":"authz.rego","row":3,"text":"default allow := false","default":true,"outcome":"true"},
 {"file":"authz.rego","row":5,"text":"allow if {","outcome":"false","failed":{"file":"authz.rego","row":7,"text":"input.resource.payload.owner == \"shop\"","values":{"input.resource.payload.owner":"\"bank\""}}},
 {"file":"authz.rego","row":10,"text":"allow if to_number(input.pin) == 1","outcome":"false","failed":{"file":"authz.rego","row":10,"text":"allow if to_number(input.pin) == 1","values":{"input.pin":"\"\u001b[2Jx\""},"error":"to_number: invalid syntax"}}]},
{"package":"api.registry.authz","name":"filtered","outcome":"not reached","definitions":[{"file":"authz.rego","row":12,"text":"filtered := input.resource.payload","outcome":"not reached"}]},
{"package":"lib","name":"owner","outcome":"true","definitions":[{"file":"lib.rego","row":3,"text":"owner(id) if startswith(id, \"team-\")","outcome":"true"}]}]}}`

const toldText = `✗ refused  decision 01a206f8-fefb-70ff-b5b3-526bbdbeae57
  made       2026-11-23T05:55:11.2274Z on n2, in 0.133 ms
  by         policy revision 7, api.registry.authz, by opa 1.22.2, on the registry at revision 1290
  asked by   token:ann from 10.1.2.3
  to         register service default/cart (PUT /v1/namespaces/default/services/cart)
  request    r-1
  trace      0af7651916cd43dd8448eb211c80319c
  reason     data.api.registry.authz.allow is false: no rule allows this

api.registry.authz
  ✗ allow: false
    ✓ authz.rego:3  default allow := false
    ✗ authz.rego:5  allow if {
        stopped at authz.rego:7  input.resource.payload.owner == "shop"
          input.resource.payload.owner = "bank"
    ✗ authz.rego:10  allow if to_number(input.pin) == 1
          input.pin = "�[2Jx"
          error: to_number: invalid syntax
  – filtered: not reached
    – authz.rego:12  filtered := input.resource.payload

lib
  ✓ owner: true
    ✓ lib.rego:3  owner(id) if startswith(id, "team-")
`

func TestADecisionForPeople(t *testing.T) {
	var d toldDecision
	if err := json.Unmarshal([]byte(strings.ReplaceAll(toldJSON, "\n", "")), &d); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := d.write(&out, false, false); err != nil {
		t.Fatal(err)
	}
	if out.String() != toldText {
		t.Errorf("%s\nwant\n%s", out.String(), toldText)
	}
	out.Reset()
	if err := d.write(&out, true, true); err != nil {
		t.Fatal(err)
	}
	if s := out.String(); !strings.Contains(s, inRed+"✗"+uncoloured+" allow: false") || !strings.Contains(s, inGreen+"✓"+uncoloured) || !strings.Contains(s, `    "token": "***",`) || strings.Contains(s, "\x1b[2J") {
		t.Errorf("%q", s)
	}
}
