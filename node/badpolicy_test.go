package node_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"os"
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

// outOfReach pushes policies that call what they may not, as modules and as a
// bundle.
func (e *edge) outOfReach(t *testing.T) {
	const push = "/v1/policy/revisions?activate=true"
	e.each(t, func(t *testing.T, node int) {
		for _, rules := range []string{
			`allow if http.send({"method": "GET", "url": "http://127.0.0.1/"}).status_code == 200`,
			"f(x) := true\nallow if f({\"method\": \"GET\", \"url\": \"http://127.0.0.1/\"}) with f as http.send",
			`allow if net.lookup_ip_addr("localhost")`,
			`allow if net.cidr_contains("10.0.0.0/8", "10.0.0.1")`,
			"f(x) := true\nallow if f(\"localhost\") with f as net.lookup_ip_addr",
			`allow if opa.runtime().env.PATH`,
			"f() := true\nallow if f() with f as opa.runtime",
			`allow if rego.parse_module("x", "package x")`,
		} {
			module := "package api.registry.authz\n\n" + rules + "\n"
			body, err := json.Marshal(map[string]any{"modules": map[string]string{"a.rego": module}})
			must(t, err)
			for media, body := range map[string][]byte{"application/json": body, "application/gzip": archive(t, [2]string{"/a.rego", module})} {
				a := e.send(t, node, "HTTP/2.0", call{"POST", push, bytes.NewReader(body), []string{"Content-Type", media}}).want(t, 422, fault.InvalidPolicy)
				if len(a.Errors) == 0 || a.Errors[0].File != "a.rego" {
					t.Errorf("%s as %s: no place is named: %s", rules, media, a.body)
				}
			}
		}
	})
}

// expensive activates policies that cost too much for some callers: those are
// refused, all others are answered, and each node names what happened.
func (e *edge) expensive(t *testing.T) {
	const when = "input.resource.payload.owner == \"mallory\"\n\t"
	for name, rules := range map[string]string{
		"a huge product":    "n := numbers.range(1, 5000)\ndeny contains \"x\" if {\n\t" + when + "count([1 | some a in n; some b in n; some c in n; a + b == c]) < 0\n}",
		"texts that double": "t0 := input.action\n" + chain(40) + "deny contains \"x\" if {\n\t" + when + "t40 == \"x\"\n}",
		// Without a bound of muster's own, this overflows the stack of the process.
		"documents of shared parts": "a0 := {\"x\": input.action}\nb0 := {\"x\": input.action}\n" + shared(22) + "deny contains \"x\" if {\n\t" + when + "a22 == b22\n}",
	} {
		t.Run(name, func(t *testing.T) {
			content, err := json.Marshal(map[string]any{"modules": map[string]string{"a.rego": "package api.registry.authz\n\ndefault allow := true\n\n" + rules + "\n"}})
			must(t, err)
			var rev struct{ Revision uint64 }
			must(t, json.Unmarshal(e.mustDo(t, "POST", "/v1/policy/revisions?activate=true", string(content)).body, &rev))
			e.each(t, func(t *testing.T, node int) {
				a := e.send(t, node, "HTTP/2.0", call{"PUT", cartPath, strings.NewReader(`{"owner":"mallory"}`), nil})
				if a.status != 403 && a.status != 503 || len(a.body) == 0 {
					t.Errorf("%d %s", a.status, a.body)
				}
				a = e.send(t, node, "HTTP/2.0", call{"POST", "/v1/authorize", strings.NewReader(`{"input":{"action":"register","resource":{"payload":{"owner":"mallory"}}}}`), nil})
				var verdict struct {
					Allow   bool
					Reasons []string
				}
				must(t, json.Unmarshal(a.body, &verdict))
				if a.status != 200 || verdict.Allow || len(verdict.Reasons) == 0 {
					t.Errorf("authorize: %d %s", a.status, a.body)
				}
				log, err := os.ReadFile(e.tr.file(e.tr.nodes[node].id + ".log"))
				must(t, err)
				if want := fmt.Sprintf("policy_revision=%d entry_point=api/registry/authz", rev.Revision); !strings.Contains(string(log), want) {
					t.Errorf("%s is not in the node's log", want)
				}
			})
			e.mustDo(t, "PUT", cartPath, `{"owner":"shop"}`)
		})
	}
	e.mustDo(t, "POST", "/v1/policy/revisions?activate=true", `{"modules":{"a.rego":"package api.registry.authz\n\ndefault allow := true\n"}}`)
}

func chain(times int) string {
	var b strings.Builder
	for i := range times {
		fmt.Fprintf(&b, "t%d := concat(\"\", [t%d, t%d])\n", i+1, i, i)
	}
	return b.String()
}

func shared(times int) string {
	var b strings.Builder
	for i := range times {
		for _, v := range []string{"a", "b"} {
			fmt.Fprintf(&b, "%s%d := object.union({\"l\": %s%d, \"r\": %s%d}, {})\n", v, i+1, v, i, v, i)
		}
	}
	return b.String()
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
