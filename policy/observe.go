package policy

import "time"

// Question is what was asked: about an input of the registry's own, or about
// exactly the JSON that a caller sent. It is immutable.
type Question struct {
	Entrypoint string // "a/b"; "" where the action selects it
	Input      *Input // nil where Raw is given
	Raw        []byte
}

// Observer is told of every decision after it was made, on the goroutine of
// whoever asked: it must return at once. It may keep what it is given, and must
// change none of it.
type Observer interface {
	Decided(rev *Revision, q *Question, d *Decision, took time.Duration)
}
