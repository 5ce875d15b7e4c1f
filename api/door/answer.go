package door

import (
	"strings"
	"time"

	"github.com/muster-registry/muster/identity"
	"github.com/muster-registry/muster/policy"
)

// Answer is what became of a look-up.
type Answer struct {
	Who        *identity.Principal // nil where nobody proved an identity
	Operation  string              // as the edge names it; "" where none was found
	Action     policy.Action       // "" where none was found
	Form       *Form
	RequestID  string
	DecisionID string
	Status     int // as HTTP has it
	Elapsed    time.Duration
}

// Call is method and path. The query may hold what is nobody else's business.
func (f *Form) Call() string {
	path, _, _ := strings.Cut(f.Path, "?")
	return f.Method + " " + path
}

// Header gives the first value of a header by its canonical name.
func (f *Form) Header(name string) string { return f.header(name) }

// Answered tells who wants to know that the call has been answered: a look-up
// that was no error.
func (c *Call) Answered(operation string, action policy.Action, status int) {
	told := c.door.opt.Answered
	if told == nil || !action.LookUp() || status >= 400 {
		return
	}
	f := c.form
	if f == nil {
		f = new(c.req.Form())
	}
	told(&Answer{
		Who: c.Who, Operation: operation, Action: action, Form: f, RequestID: c.ID, DecisionID: c.Decision,
		Status: status, Elapsed: time.Since(c.Began),
	})
}
