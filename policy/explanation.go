package policy

import "time"

// Past is a decision that was made before, as far as it takes to make it
// again.
type Past struct {
	EntryPoint string    // "a/b"; "" where the action of the input selects it
	Input      []byte    // the input document, JSON
	Document   bool      // the document at the entry point was asked for, not a verdict
	Response   bool      // the answer to a proxied request was asked for along with the verdict
	Time       time.Time // as the policy saw it
	Chance     []byte    // the JSON of [Chance]; nil is {}
}

// The outcomes of a rule.
const (
	True       = "true"        // it holds, or has a value other than false
	False      = "false"       // it has the value false, or no members
	Undefined  = "undefined"   // none of its definitions holds
	NotReached = "not reached" // the decision did not need it
)

// Explanation says how a decision came about, rule by rule.
type Explanation struct {
	EntryPoint string `json:"entrypoint"`
	Rules      []Rule `json:"rules"` // of each package that was reached, those of the entry point first
}

// Rule is one rule of a package with what came of it.
type Rule struct {
	Package     string       `json:"package"` // a.b
	Name        string       `json:"name"`
	Outcome     string       `json:"outcome"`
	Value       string       `json:"value,omitempty"` // JSON, cut off where it is long
	Definitions []Definition `json:"definitions"`
}

// Definition is one place that defines a rule.
type Definition struct {
	File    string   `json:"file"`
	Row     int      `json:"row"`
	Text    string   `json:"text"` // its first line
	Default bool     `json:"default,omitzero"`
	Outcome string   `json:"outcome"`
	Failed  *Failure `json:"failed,omitzero"` // of one that did not hold
}

// Failure is the expression at which a definition ended. Where it iterates,
// that is the one which no round got past.
type Failure struct {
	File   string            `json:"file"`
	Row    int               `json:"row"`
	Text   string            `json:"text"`
	Values map[string]string `json:"values,omitempty"` // of what it reads, as JSON; "undefined"
	Error  string            `json:"error,omitempty"`  // of a built-in
}
