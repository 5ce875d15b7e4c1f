package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

const (
	openToAll = "package api.registry.authz\n\ndefault allow := true\n"
	needsText = "package api.registry.authz\n\ndefault allow := true\n\ndeny contains \"say what it is for\" if input.resource.payload.description == \"\"\n"
)

// shadows tries a policy revision out beside the active one, as a user would.
func shadows(t *testing.T, s shell) {
	contains(t, s.ok(t, "policy", "push", "--activate", write(t, "authz.rego", openToAll)), "active")
	if _, err, code := s.do(t, "policy", "shadow", "report"); code != exitNotFound {
		t.Errorf("a report without a shadow: exit code %d: %s", code, err)
	}
	if _, err, code := s.do(t, "policy", "push", "--shadow", "--share", "1.5", write(t, "authz.rego", needsText)); code != exitError || !strings.Contains(err, "share") {
		t.Errorf("exit code %d: %s", code, err)
	}
	name := strings.TrimSpace(s.ok(t, "policy", "push", "--shadow", "--share", "1", "-o", "name", write(t, "authz.rego", needsText)))
	contains(t, s.ok(t, "policy", "list"), "shadow")

	in, tried := s, 0
	try := func() (code int) {
		tried++
		in.in = fmt.Sprintf("kind: Service\nname: tried%d\nspec: {}\n", tried)
		_, _, code = in.do(t, "apply", "-f", "-")
		return code
	}
	eventually(t, time.Minute, func() error {
		if code := try(); code != exitDone {
			t.Errorf("the active revision allows it: exit code %d", code)
		}
		if out := s.ok(t, "policy", "shadow", "report"); !strings.Contains(out, "would_deny") || !strings.Contains(out, "say what it is for") {
			return errors.New("no difference is told: " + out)
		}
		return nil
	})
	contains(t, s.ok(t, "policy", "shadow", "report", "-o", "json"), `"kind": "would_deny"`, `"decision_id"`)

	out, _, code := s.do(t, "policy", "diff", strings.TrimPrefix(name, "policy/"))
	if code != exitError {
		t.Errorf("revisions that differ: exit code %d", code)
	}
	contains(t, out, "added", "api.registry.authz.deny", "+deny contains \"say what it is for\" if input")
	if out, _, code := s.do(t, "policy", "diff", name, name); code != exitDone || !strings.Contains(out, "decide by the same") {
		t.Errorf("a revision and itself: exit code %d: %s", code, out)
	}
	if _, _, code := s.do(t, "policy", "diff", "999"); code != exitNotFound {
		t.Errorf("a revision that is not there: exit code %d", code)
	}

	out, _, code = s.do(t, "policy", "diff", "--replay", "--since", "1h")
	if code != exitError {
		t.Errorf("decisions that differ: exit code %d", code)
	}
	contains(t, out, "would_deny", "say what it is for")
	contains(t, s.ok(t, "policy", "shadow", "stop"), "staged")
	contains(t, s.ok(t, "policy", "shadow", name, "--share", "0.5"), "shadow")
	if _, err, code := s.do(t, "policy", "activate", name, "--if-active", "999"); code != exitConflict || !strings.Contains(err, "is active, not 999") {
		t.Errorf("what is active is another one: exit code %d: %s", code, err)
	}
	contains(t, s.ok(t, "policy", "activate", name), "active")
	if _, _, code := s.do(t, "policy", "shadow", "report"); code != exitNotFound {
		t.Errorf("the shadow is active now: exit code %d", code)
	}
	if code := try(); code != exitDenied {
		t.Errorf("exit code %d", code)
	}
	contains(t, s.ok(t, "policy", "rollback"), "active")
	if code := try(); code != exitDone {
		t.Errorf("after the rollback: exit code %d", code)
	}
}
