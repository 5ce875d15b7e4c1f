package node_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"strings"
	"testing"

	"github.com/muster-registry/muster/fault"
)

// archive packs entries as opa build would; links have a content that begins
// with "->".
func archive(t *testing.T, entries ...[2]string) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	w := tar.NewWriter(z)
	for _, e := range entries {
		h := &tar.Header{Name: e[0], Mode: 0o600, Size: int64(len(e[1]))}
		if to, link := strings.CutPrefix(e[1], "->"); link {
			h.Typeflag, h.Linkname, h.Size, e[1] = tar.TypeSymlink, to, 0, ""
		}
		must(t, w.WriteHeader(h))
		_, err := w.Write([]byte(e[1]))
		must(t, err)
	}
	must(t, w.Close())
	must(t, z.Close())
	return out.Bytes()
}

const bundled = "package api.registry.authz\n\ndefault allow := false\n\nallow if data.owners[input.resource.payload.owner]\n"

func (e *edge) bundles(t *testing.T) {
	const push = "/v1/policy/revisions?activate=true"
	media := []string{"Content-Type", "application/gzip"}
	good := [2]string{"/authz.rego", bundled}
	grows := archive(t, good, [2]string{"/README", strings.Repeat(" ", 100<<20)})
	e.each(t, func(t *testing.T, node int) {
		for name, entries := range map[string][][2]string{
			"up":              {good, {"../x.rego", bundled}},
			"absolute":        {good, {"//x.rego", bundled}},
			"a link":          {good, {"x.rego", "->/etc/passwd"}},
			"twice":           {good, good},
			"twice, in forms": {good, {"./authz.rego", bundled}},
			"wasm":            {good, {"/policy.wasm", "\x00asm"}},
			"a plan":          {good, {"/plan.json", "{}"}},
			"no Rego":         {{"/authz.rego", "package"}},
			"nothing":         {},
		} {
			if a := e.send(t, node, "HTTP/2.0", call{"POST", push, bytes.NewReader(archive(t, entries...)), media}).want(t, 422, fault.InvalidPolicy); len(a.Errors) == 0 {
				t.Errorf("%s: no error is listed: %s", name, a.body)
			}
		}
		a := e.send(t, node, "HTTP/2.0", call{"POST", push, bytes.NewReader(archive(t, good, [2]string{"/.signatures.json", `{"signatures":["x"]}`})), media}).want(t, 422, fault.InvalidPolicy)
		if !strings.Contains(a.Detail, "no JWT") {
			t.Errorf("of a signed bundle: %s", a.Detail)
		}
		e.send(t, node, "HTTP/2.0", call{"POST", push, strings.NewReader("no gzip"), media}).want(t, 400, fault.BadRequest)
		e.send(t, node, "HTTP/2.0", call{"POST", push, bytes.NewReader(grows), media}).want(t, 413, fault.TooLarge)
	})

	// And a good one is taken and decides, on every node.
	packed := archive(t, good, [2]string{"/data.json", `{"owners":{"shop":true}}`}, [2]string{"/.manifest", `{"revision":"r7","roots":["api","owners"]}`})
	a := e.send(t, 0, "HTTP/2.0", call{"POST", push, bytes.NewReader(packed), media})
	var rev struct {
		Revision    uint64
		State, Note string
	}
	must(t, json.Unmarshal(a.body, &rev))
	if a.status != 201 || rev.State != "active" || rev.Note != "r7" {
		t.Fatalf("a good bundle: %d %s", a.status, a.body)
	}
	e.each(t, func(t *testing.T, node int) {
		e.send(t, node, "HTTP/2.0", call{"PUT", cartPath, strings.NewReader(`{"owner":"bank"}`), nil}).want(t, 403, fault.PolicyDenied)
	})
	e.mustDo(t, "PUT", cartPath, `{"owner":"shop"}`)
}

func (e *edge) noPlainYes(t *testing.T) {
	for name, rules := range map[string]string{
		"two values": "allow := true if input.action\nallow := false if input.action",
		"undefined":  `allow if input.action == "never"`,
		"a text":     `allow := "true"`,
		"an object":  `allow := {"allow": true}`,
		"a number":   `allow := 1`,
	} {
		t.Run(name, func(t *testing.T) {
			content, err := json.Marshal(map[string]any{"modules": map[string]string{"a.rego": "package api.registry.authz\n\n" + rules + "\n"}})
			must(t, err)
			var rev struct{ Revision uint64 }
			must(t, json.Unmarshal(e.mustDo(t, "POST", "/v1/policy/revisions?activate=true", string(content)).body, &rev))
			e.each(t, func(t *testing.T, node int) {
				for _, tc := range []call{
					{"PUT", cartPath, strings.NewReader(`{"owner":"x"}`), nil},
					{"PUT", instancePath, strings.NewReader(`{"address":"10.0.0.9","port":9}`), nil},
					{"DELETE", cartPath, nil, nil},
				} {
					a := e.send(t, node, "HTTP/2.0", tc).want(t, 403, fault.PolicyDenied)
					if len(a.Reasons) == 0 || a.DecisionID == "" || a.PolicyRevision != rev.Revision {
						t.Errorf("%s %s: no reason, no decision, or not by revision %d: %s", tc.method, tc.path, rev.Revision, a.body)
					}
				}
				a := e.send(t, node, "HTTP/2.0", call{"POST", "/v1/authorize", strings.NewReader(`{"input":{"action":"register"}}`), nil})
				var verdict struct {
					Allow   bool
					Reasons []string
				}
				must(t, json.Unmarshal(a.body, &verdict))
				if a.status != 200 || verdict.Allow || len(verdict.Reasons) == 0 {
					t.Errorf("authorize: %d %s", a.status, a.body)
				}
			})
		})
	}
	e.mustDo(t, "POST", "/v1/policy/revisions?activate=true", `{"modules":{"a.rego":"package api.registry.authz\n\ndefault allow := true\n"}}`)
}
