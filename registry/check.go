package registry

import (
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
)

// Check is one check of an instance: what a node of the cluster asks of it again
// and again (http, tcp, grpc), or what somebody must report (ttl). The instance
// is as bad as the worst of its checks.
type Check struct {
	ID    string `json:"id"` // among the instance's checks
	Name  string `json:"name"`
	Type  string `json:"type"` // http, tcp, grpc, ttl
	Notes string `json:"notes,omitzero"`

	// TTL is how long a report counts, for type ttl; 0: until the next one.
	TTL Duration `json:"ttl,omitzero"`

	// Target is a URL for http, host:port for tcp and grpc, empty for ttl.
	Target  string              `json:"target,omitzero"`
	Service string              `json:"service,omitzero"` // grpc: the service asked for; empty: the server as a whole
	Method  string              `json:"method,omitzero"`  // http: GET when empty
	Headers map[string][]string `json:"headers,omitzero"` // http
	Body    string              `json:"body,omitzero"`    // http
	Expect  *Expect             `json:"expect,omitzero"`  // http: without it, 2xx is passing, 429 a warning
	TLS     *CheckTLS           `json:"tls,omitzero"`     // for https; tcp and grpc use TLS when it is set

	Interval               Duration `json:"interval,omitzero"`
	Timeout                Duration `json:"timeout,omitzero"`
	FailuresBeforeCritical int      `json:"failures_before_critical,omitzero"` // in a row
	SuccessesBeforePassing int      `json:"successes_before_passing,omitzero"` // in a row

	// InitialStatus is the status before the first result; passing when empty.
	InitialStatus string `json:"initial_status,omitzero"`
}

// Expect is what an http check wants for an answer.
type Expect struct {
	Status []int  `json:"status,omitzero"` // one of them; empty: 2xx
	Body   string `json:"body,omitzero"`   // the answer's first 64 KiB contain it
}

// CheckTLS says whom a check believes.
type CheckTLS struct {
	ServerName string `json:"server_name,omitzero"` // empty: the target's host
	CA         string `json:"ca,omitzero"`          // PEM; empty: the system's
	SkipVerify bool   `json:"skip_verify,omitzero"` // only where the configuration allows it
}

// CheckState is what is known of one check. Only changes are replicated: an
// output is that of the result which changed the status.
type CheckState struct {
	ID        string    `json:"id"`
	Status    string    `json:"status"` // passing, warning, critical
	Output    string    `json:"output"` // at most MaxOutput bytes
	Revision  uint64    `json:"revision"`
	ChangedAt time.Time `json:"changed_at"`
}

// The types of checks.
const (
	CheckHTTP = "http"
	CheckTCP  = "tcp"
	CheckGRPC = "grpc"
	CheckTTL  = "ttl"
)

// MaxOutput bounds the output of a check, in bytes.
const MaxOutput = 4096

// ClipOutput makes an output legal: valid UTF-8 of at most MaxOutput bytes.
func ClipOutput(s string) string {
	if len(s) > MaxOutput {
		s = s[:MaxOutput]
	}
	return strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", ""), "")
}

// CheckResult is a result that a check's state is to show.
type CheckResult struct {
	Check    string // its id
	Status   string // passing, warning, critical
	Output   string
	Observed uint64 // the state's revision that the result was decided on; 0: whatever it is
}

// Check returns a check of the instance and its state; nil when it has no such
// check.
func (i *Instance) Check(id string) (*Check, *CheckState) {
	for n := range i.Checks {
		if i.Checks[n].ID == id && n < len(i.States) {
			return &i.Checks[n], &i.States[n]
		}
	}
	return nil, nil
}

// SetCheck stores a result. It reports whether anything changed: the result is
// dropped when the instance or the check is gone, when the check's state has
// another revision than observed, and when it says what the state says.
func (t *Txn) SetCheck(st Stamp, ns, svc, id string, r CheckResult) (changed bool) {
	k := Key{ns, svc}
	n, prev, _ := t.instance(k, id)
	if prev == nil {
		return false
	}
	_, state := prev.Check(r.Check)
	output := ClipOutput(r.Output)
	if state == nil || r.Observed != 0 && r.Observed != state.Revision || rank(r.Status) == 0 ||
		state.Status == r.Status && state.Output == output {
		return false
	}
	rec := *prev
	rec.States = append([]CheckState(nil), prev.States...)
	_, state = rec.Check(r.Check)
	rec.Meta = st.stamp(&prev.Meta)
	state.Status, state.Output, state.Revision, state.ChangedAt = intern(r.Status), output, rec.Revision, rec.UpdatedAt
	rec.settle(prev.Own())
	t.store(k, n, &rec)
	return true
}

// rank orders the statuses of a check; 0 is none of them.
func rank(status string) int {
	switch status {
	case Passing:
		return 1
	case Warning:
		return 2
	case Critical:
		return 3
	}
	return 0
}

// Own is the status that the instance would have without its checks, and who
// set it.
func (i *Instance) Own() (status, by string) {
	switch {
	case i.StatusBy != ByChecks:
		return i.Status, i.StatusBy
	case i.OwnStatus == "":
		return Passing, ""
	}
	return i.OwnStatus, ByCaller
}

// settle derives the status from the instance's own one and its checks: the
// worst of them, except that maintenance stays.
func (i *Instance) settle(own, by string) {
	worst := Passing
	for n := range i.States {
		if s := i.States[n].Status; rank(s) > rank(worst) {
			worst = s
		}
	}
	i.Status, i.StatusBy, i.OwnStatus = own, by, ""
	if own == Maintenance || rank(own) >= rank(worst) {
		return
	}
	i.Status, i.StatusBy = worst, ByChecks
	if own != Passing {
		i.OwnStatus = own
	}
}

// begin gives the states of the instance's checks: as they were for those that
// ask the same of the same, and the initial ones.
func (i *Instance) begin(prev *Instance) {
	i.States = nil
	for n := range i.Checks {
		c := &i.Checks[n]
		state := CheckState{ID: c.ID, Status: c.InitialStatus, Revision: i.Revision, ChangedAt: i.UpdatedAt}
		if state.Status == "" {
			state.Status = Passing
		}
		if prev != nil {
			if was, s := prev.Check(c.ID); was != nil && was.Type == c.Type && was.Target == c.Target && was.Service == c.Service {
				state = *s
			}
		}
		i.States = append(i.States, state)
	}
}

// agree makes the states those of the checks, in a record that was loaded.
func (i *Instance) agree() {
	states := i.States
	i.begin(nil)
	for n := range i.States {
		for _, s := range states {
			if s.ID == i.States[n].ID && rank(s.Status) != 0 {
				s.Status = intern(s.Status)
				i.States[n] = s
			}
		}
	}
}

// appendChecks appends the checks, which are few, as the JSON library writes
// them.
func appendChecks(b []byte, checks []Check) []byte {
	if len(checks) == 0 {
		return append(b, `,"checks":[]`...)
	}
	return appendList(append(b, `,"checks":`...), checks)
}

func appendList[T any](b []byte, list []T) []byte {
	out, err := json.Marshal(list, json.Deterministic(true))
	if err != nil {
		panic("registry: checks that were read cannot be written: " + err.Error())
	}
	return append(b, out...)
}

type checkBody struct {
	ID                     string              `json:"id"`
	Name                   string              `json:"name"`
	Type                   string              `json:"type"`
	Notes                  string              `json:"notes"`
	TTL                    *Duration           `json:"ttl"`
	Target                 string              `json:"target"`
	Service                string              `json:"service"`
	Method                 string              `json:"method"`
	Headers                map[string][]string `json:"headers"`
	Body                   string              `json:"body"`
	Expect                 *Expect             `json:"expect"`
	TLS                    *CheckTLS           `json:"tls"`
	Interval               *Duration           `json:"interval"`
	Timeout                *Duration           `json:"timeout"`
	FailuresBeforeCritical *int                `json:"failures_before_critical"`
	SuccessesBeforePassing *int                `json:"successes_before_passing"`
	InitialStatus          string              `json:"initial_status"`
}

// check fills in the defaults; taken are the ids of the checks before it.
func (b *checkBody) check(taken map[string]bool) Check {
	c := Check{ID: b.ID, Name: b.Name, Type: b.Type, Notes: b.Notes, Target: b.Target, Service: b.Service, Method: b.Method,
		Headers: b.Headers, Body: b.Body, Expect: b.Expect, TLS: b.TLS, InitialStatus: b.InitialStatus}
	if c.ID == "" {
		c.ID = c.Type
		for n := 2; taken[c.ID]; n++ {
			c.ID = c.Type + "-" + strconv.Itoa(n)
		}
	}
	if c.Name == "" {
		c.Name = c.ID
	}
	if c.Type == CheckTTL {
		c.TTL = or(b.TTL, defaultTTL)
		c.Interval, c.Timeout = or(b.Interval, 0), or(b.Timeout, 0)
		c.FailuresBeforeCritical, c.SuccessesBeforePassing = or(b.FailuresBeforeCritical, 0), or(b.SuccessesBeforePassing, 0)
		return c
	}
	c.TTL = or(b.TTL, 0)
	c.Interval = or(b.Interval, Duration(10*time.Second))
	c.Timeout = or(b.Timeout, min(Duration(2*time.Second), c.Interval))
	c.FailuresBeforeCritical, c.SuccessesBeforePassing = or(b.FailuresBeforeCritical, 3), or(b.SuccessesBeforePassing, 1)
	return c
}
