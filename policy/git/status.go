package git

import (
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/policy"
)

// Outcome is how one pull ended, in one word.
type Outcome string

// The outcomes.
const (
	Unchanged   Outcome = "unchanged"     // the newest commit has been taken already
	Accepted    Outcome = "accepted"      // the newest commit went as far as the mode says
	FetchFailed Outcome = "fetch_failed"  // the repository did not answer, or sent too much
	NotForward  Outcome = "not_forward"   // the newest commit does not descend from the last accepted one
	Unverified  Outcome = "bad_signature" // no trusted key vouches for the newest commit
	BadContent  Outcome = "bad_content"   // its files are no policy
	CheckFailed Outcome = "check_failed"  // it does not compile, or its tests fail
	Failed      Outcome = "failed"        // the cluster could not take it now
)

// Outcomes lists all of them.
func Outcomes() []Outcome {
	return []Outcome{Unchanged, Accepted, FetchFailed, NotForward, Unverified, BadContent, CheckFailed, Failed}
}

// refused says whether the same commit would end the same way again, as far as
// the repository alone can tell.
func (o Outcome) refused() bool {
	return o == NotForward || o == Unverified || o == BadContent || o == CheckFailed
}

// Kept is how many events of the history are kept.
const Kept = 100

// maxMessage bounds the message of an event, in bytes.
const maxMessage = 500

// Event is one step of one pull, or its failure.
type Event struct {
	At      time.Time `json:"at"`
	Commit  string    `json:"commit,omitempty"` // "" where none was reached
	Step    string    `json:"step"`             // fetched, verified, tested, staged, shadow, active; or an outcome that is none of success
	Message string    `json:"message,omitempty"`
}

// Status is what the cluster remembers of its Git source. It is replicated, and
// all that one leader leaves to the next.
type Status struct {
	Source   policy.Source `json:"source"`                   // its commit is the last accepted one; "": none yet
	Revision uint64        `json:"policy_revision,omitzero"` // made of that commit
	Refused  *Refusal      `json:"refused,omitzero"`         // of the newest commit; nil when it was not
	Outcome  Outcome       `json:"outcome,omitempty"`        // of the last pull that changed anything here
	History  []Event       `json:"history,omitempty"`        // the newest last
}

// Refusal says why the newest commit was not accepted. The one before it
// stays in force.
type Refusal struct {
	Commit  string  `json:"commit"`
	Outcome Outcome `json:"outcome"`
	Message string  `json:"message"`
}

// Encode gives the status as JSON, as it is stored.
func (s *Status) Encode() []byte {
	b, err := json.Marshal(s)
	if err != nil {
		panic("git: a status does not encode: " + err.Error())
	}
	return b
}

// Decode reads what Encode gave.
func Decode(b []byte) (*Status, error) {
	s := new(Status)
	return s, json.Unmarshal(b, s)
}

// add appends an event, and forgets the oldest.
func (s *Status) add(e Event) {
	s.History = append(s.History, e)
	if over := len(s.History) - Kept; over > 0 {
		s.History = s.History[over:]
	}
}

// clip makes a message one that may be kept and shown: a Git server can put
// into it what it likes.
func clip(message string) string {
	message = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError {
			return ' '
		}
		return r
	}, strings.TrimSpace(message))
	if len(message) > maxMessage {
		return strings.ToValidUTF8(message[:maxMessage], "") + "…"
	}
	return message
}
