package node

import (
	"testing"

	"github.com/muster-registry/muster/fault"
)

// TestHeadThatWasNotToldIsDueAgain: a node that meets no leader with the first
// head of its trail does not let the cluster go without it for a minute.
func TestHeadThatWasNotToldIsDueAgain(t *testing.T) {
	h := heads{asked: true}
	for _, step := range []struct {
		name   string
		answer error
		due    bool
		asked  bool
	}{
		{"no leader", fault.New(fault.NoLeader, "there is none"), true, true},
		{"told", nil, false, true},
		{"another tells of this trail", fault.New(fault.Conflict, "it goes on elsewhere"), false, false},
	} {
		h.sent(step.answer)
		if asked, _ := h.state(); h.due(1) != step.due || asked != step.asked {
			t.Errorf("%s: due %v, compared %v; want %v, %v", step.name, h.due(1), asked, step.due, step.asked)
		}
	}
	if h.due(0) || !h.due(headLines) {
		t.Error("what is due does not go by the number of lines")
	}
}
