package rego

import (
	"errors"
	"io"
	"slices"

	"github.com/muster-registry/muster/fault"
)

// meter reads at most so many bytes, and remembers what went wrong below the
// archive.
type meter struct {
	from io.Reader
	left int64
	err  error
}

func (m *meter) Read(p []byte) (int, error) {
	if m.err != nil {
		return 0, m.err
	}
	if m.left == 0 {
		// One byte more tells a full archive from one that is too long.
		p = p[:min(1, len(p))]
	}
	n, err := m.from.Read(p[:min(int64(len(p)), max(m.left, 1))])
	if int64(n) > m.left {
		n, err = 0, m.tooLarge()
	}
	m.left -= int64(n)
	m.err = err
	return n, err
}

func (m *meter) tooLarge() error {
	return fault.New(fault.TooLarge, "the bundle unpacks to more than the limit")
}

// explain says what an error of the archive comes from.
func (m *meter) explain(err error) error {
	switch {
	case fault.Is(m.err, fault.TooLarge):
		return m.err
	case m.err != nil && !errors.Is(m.err, io.EOF):
		return fault.Wrap(fault.BadRequest, m.err, "the body is damaged or was cut short: its gzip stream does not hold")
	}
	return refusedBundle("", "the bundle is not a whole tar archive: %v", err)
}

// end reads what follows the archive: its padding and the checksum, and nothing
// that another reader might take for more of it.
func (m *meter) end() error {
	buf := make([]byte, 4096)
	for {
		n, err := m.Read(buf)
		if slices.ContainsFunc(buf[:n], func(b byte) bool { return b != 0 }) {
			return refusedBundle("", "something follows the end of the archive; send one archive only")
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return m.explain(err)
		}
	}
}
