package fsm_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fsm"
	"github.com/muster-registry/muster/snapshot"
)

// One bit of a definition that the disk turns is noticed by whoever reads it: it
// is not served, no snapshot is made with it, and no node starts on it.
func TestADamagedDefinitionIsNoticed(t *testing.T) {
	dir := t.TempDir()
	m := open(t, dir)
	must(t, apply(t, m, service("cart", 0)))
	document := []byte(strings.Repeat("the definition of a cart, ", 400))
	put := must(t, apply(t, m, &command.Command{Time: began, Op: &command.Command_Put{Put: &command.Put{
		Kind: command.Kind_VERSION, Namespace: "default", Service: "cart", Name: "1.0.0", Document: document,
		Spec: fmt.Appendf(nil, `{"format":"graphql","lifecycle":"draft","digest":"%x","size":%d,"content_type":"text/plain","routes":[],"findings":[]}`, sha256.Sum256(document), len(document)),
	}}}))
	shut(t, m)
	m = open(t, dir) // what is on its way to the file is not read from it
	defer shut(t, m)
	if b, err := m.Document("default", "cart", "1.0.0", put.Revision); err != nil || !bytes.Equal(b, document) {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	file := filepath.Join(dir, "state.db")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(b, document) + len(document)/2
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{b[at] ^ 4}, int64(at)); err != nil {
		t.Fatal(err)
	}
	if b, err := m.Document("default", "cart", "1.0.0", put.Revision); err == nil {
		t.Errorf("%d bytes are served", len(b))
	}
	var out bytes.Buffer
	if err := m.Export(&out, snapshot.Header{}); err == nil {
		t.Error("a snapshot is made of it")
	}
	if b, err = os.ReadFile(file); err != nil {
		t.Fatal(err)
	}
	other := t.TempDir()
	if err := os.WriteFile(filepath.Join(other, "state.db"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	started, err := fsm.Open(other, fsm.Options{})
	if err == nil {
		shut(t, started)
	}
	if err == nil || !strings.Contains(err.Error(), "definition default/cart/1.0.0@2") || !strings.Contains(err.Error(), "empty one") {
		t.Errorf("a node starts on it: %v", err)
	}
}
