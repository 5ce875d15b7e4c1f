package journal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
)

// Peek gives the entries that the journal in the directory holds beyond end,
// the last index of its store, and changes nothing. No node may be running
// there. Without a journal there are none.
func Peek(dir string, end uint64) ([]*raft.Log, error) {
	f, err := os.Open(filepath.Join(dir, "journal"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m, _, err := readMarks(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	logs, err := m.held(f, end)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return logs, nil
}
