package decision

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/hex"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

// Report is a record as people may see it: masked.
type Report struct {
	Record
	Masked      []string     `json:"masked,omitempty"` // pointers to what was taken out
	Explanation *Explanation `json:"explanation,omitzero"`
}

// Explanation is what a replay of the decision gave.
type Explanation struct {
	// Same says that the replay gave the result that is on record. It can only
	// be false where the decision was not answered in time, or where the engine
	// has changed.
	Same   bool   `json:"same"`
	Replay Result `json:"replay"`
	*policy.Explanation
}

// NewReport masks a record.
func NewReport(r *Record, m *Masker) *Report {
	out := &Report{Record: *r}
	hide := m.Hide("input", r.Input)
	if r.Input != nil {
		out.Input, out.Masked = m.Mask("input", r.Input)
	}
	out.Chance, out.Result.Reasons, out.Query = hidden(r.Chance, hide), texts(r.Result.Reasons, hide), hide(r.Query)
	if r.Result.Filtered == nil && r.Result.Value == nil {
		return out
	}
	result, err := json.Marshal(out.Result)
	if err != nil {
		return out
	}
	result, masked := m.Mask("result", result)
	var shown Result
	if err := json.Unmarshal(result, &shown); err != nil { // masked as a whole
		shown = Result{Allow: r.Result.Allow}
	}
	out.Result, out.Masked = shown, append(out.Masked, masked...)
	return out
}

// texts goes through messages of a policy, which may repeat what it was sent.
func texts(messages []string, hide func(string) string) []string {
	if len(messages) == 0 {
		return messages
	}
	out := make([]string, len(messages))
	for i, m := range messages {
		out[i] = hide(m)
	}
	return out
}

// hidden goes through the texts of a JSON value.
func hidden(v jsontext.Value, hide func(string) string) jsontext.Value {
	if v == nil {
		return nil
	}
	out := jsontext.Value(hide(string(v)))
	if !out.IsValid() {
		return jsontext.Value(`"` + Masked + `"`)
	}
	return out
}

// Explained puts a replay beside what is on record.
func Explained(r *Record, again *policy.Decision, told *policy.Explanation) *Explanation {
	replay := Result{
		Allow: again.Allow, Reasons: again.Reasons, Filtered: again.Filtered, Missed: again.Missed, Default: again.Default, Cause: again.Why(), Value: again.Result,
	}
	e := &Explanation{Replay: replay, Explanation: told}
	was := r.Result
	if r.Document { // its reasons only say which value it has
		was.Reasons, replay.Reasons = nil, nil
	}
	// A replay is the policy's own word: what break-glass lifted is a refusal again.
	e.Same = was.Allow == (replay.Allow || was.BreakGlass) && was.Default == replay.Default && slices.Equal(was.Reasons, replay.Reasons) &&
		bytes.Equal(was.Filtered, replay.Filtered) && (was.ValueBytes == len(replay.Value) || bytes.Equal(was.Value, replay.Value))
	// They are part of the report already, masked.
	e.Replay.Filtered, e.Replay.Value = nil, nil
	return e
}

// WithoutRules is the explanation of a decision that no rule of a policy made,
// by the built-in roles or by webhooks, and of a query, of which there is none.
func WithoutRules(r *Record) *Explanation {
	replay := r.Result
	replay.Filtered, replay.Value = nil, nil
	return &Explanation{Same: true, Replay: replay, Explanation: &policy.Explanation{EntryPoint: r.EntryPoint, Rules: []policy.Rule{}}}
}

// Hide gives a function that takes the secrets of a document out of a text
// made from it: as they stand in it, without their scheme, and the parts of a
// JWT, also decoded.
func (m *Masker) Hide(name string, document []byte) func(string) string {
	return hider(m.Secrets(name, document))
}

func hider(secrets []string) func(string) string {
	var texts []string
	add := func(s string) {
		if len(s) < 4 { // would take the text apart and hide nothing
			return
		}
		texts = append(texts, s)
		if quoted := policy.AppendText(nil, s); len(quoted) != len(s)+2 {
			texts = append(texts, string(quoted[1:len(quoted)-1]))
		}
	}
	for _, secret := range secrets {
		add(secret)
		for _, word := range strings.Fields(secret) {
			add(word)
			for _, part := range append(strings.Split(word, "."), word) {
				if len(part) >= 16 {
					add(part)
				}
				decoded(part, add)
			}
		}
	}
	// The longest first: one may be a part of another.
	slices.SortStableFunc(texts, func(a, b string) int { return cmp.Or(len(b)-len(a), strings.Compare(a, b)) })
	texts = slices.Compact(texts)
	return func(s string) string {
		for _, t := range texts {
			s = strings.ReplaceAll(s, t, Masked)
		}
		return s
	}
}

// decoded adds what a part of a credential may be shown as: the signature of a
// JWT as rules see it, and name and password of basic authentication.
func decoded(part string, add func(string)) {
	if b, err := base64.RawURLEncoding.DecodeString(part); err == nil && len(b) >= 16 {
		add(hex.EncodeToString(b))
	}
	if b, err := base64.StdEncoding.DecodeString(part); err == nil {
		if _, password, ok := strings.Cut(string(b), ":"); ok {
			add(string(b))
			add(password)
		}
	}
}

// Get gives the record of a decision of this node, and waits a moment for one
// that is on its way there.
func (l *Log) Get(ctx context.Context, id string) (*Record, error) {
	r, err := l.opt.Store.Get(id)
	if !fault.Is(err, fault.NotFound) {
		return r, err
	}
	l.settle(ctx)
	return l.opt.Store.Get(id)
}

// settle waits until what is in the queue now is kept, but not for long.
func (l *Log) settle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	l.mu.Lock()
	until := l.taken + uint64(len(l.queue))
	l.mu.Unlock()
	t := time.NewTicker(time.Millisecond)
	defer t.Stop()
	for ctx.Err() == nil {
		l.mu.Lock()
		done := l.stored >= until
		l.mu.Unlock()
		if done {
			return
		}
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
}
