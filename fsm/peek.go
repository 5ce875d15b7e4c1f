package fsm

import (
	"errors"
	"os"
	"path/filepath"
)

// Peek loads the state file in the directory of a stopped node and changes
// nothing. A node that has never written it has the empty state.
func Peek(dir string) (*View, error) {
	path := filepath.Join(dir, "state.db")
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return emptyView(), nil
	}
	v, _, err := loadFile(path)
	return v, err
}
