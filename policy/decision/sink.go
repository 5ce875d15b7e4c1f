package decision

import (
	"errors"
	"io"

	"github.com/DeRuina/timberjack"
)

// Console is a sink that writes one short line for each event: what was asked
// by whom and what came out, without the input.
type Console struct {
	To       io.Writer
	Text     bool // name="value"; else JSON
	Refusals bool // and nothing else
}

// Write implements [Sink].
func (c *Console) Write(e *Event) error {
	if c.Refusals && !e.Refusal {
		return nil
	}
	line := e.Short
	if c.Text {
		line = func() ([]byte, error) { return e.Text(), nil }
	}
	b, err := line()
	if err != nil {
		return err
	}
	_, err = c.To.Write(b)
	return err
}

// Flush implements [Sink].
func (c *Console) Flush() error { return nil }

// Close implements [Sink].
func (c *Console) Close() error { return nil }

// Lines is a sink that writes each event in full as one line of JSON.
type Lines struct {
	To      io.Writer
	waiting []byte
}

// NewFile gives a sink of whole events in a file, which is replaced by a new
// one when it has grown to the size. Up to keep old ones stay, compressed. The
// error says that the file cannot be written.
func NewFile(name string, size int64, keep int) (*Lines, error) {
	f := &timberjack.Logger{Filename: name, MaxSize: int(max(1, size>>20)), MaxBackups: keep, Compression: "gzip", FileMode: 0o600}
	if _, err := f.Write(nil); err != nil { // opens it
		return nil, err
	}
	return &Lines{To: f}, nil
}

// Write implements [Sink].
func (l *Lines) Write(e *Event) error {
	b, err := e.JSON(), error(nil)
	if len(l.waiting)+len(b) >= maxKept { // a file takes no more at once than it may hold
		err = l.Flush()
	}
	l.waiting = append(append(l.waiting, b...), '\n')
	return err
}

// Flush implements [Sink].
func (l *Lines) Flush() error {
	if len(l.waiting) == 0 {
		return nil
	}
	_, err := l.To.Write(l.waiting)
	if l.waiting = l.waiting[:0]; cap(l.waiting) > 4*maxKept {
		l.waiting = nil
	}
	return err
}

// Close implements [Sink].
func (l *Lines) Close() error {
	err := l.Flush()
	if c, ok := l.To.(*timberjack.Logger); ok {
		return errors.Join(err, c.Close())
	}
	return err
}
