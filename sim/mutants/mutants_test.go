package main

import (
	"fmt"
	"path/filepath"
	"testing"
)

// Every patch applies to the code as it is, and every law has one.
func TestPatchesApply(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	mutants, err := Read(".")
	if err != nil {
		t.Fatal(err)
	}
	laws := map[string]bool{}
	for _, m := range mutants {
		laws[m.Law] = true
		if _, err := m.Overlay(root, t.TempDir()); err != nil {
			t.Error(err)
		}
	}
	for law := 1; law <= 11; law++ {
		if !laws[fmt.Sprint(law)] {
			t.Errorf("no deliberate bug breaks law %d", law)
		}
	}
}
