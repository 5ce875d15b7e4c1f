package journal

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

const childDir = "MUSTER_JOURNAL_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		if err := appendForEver(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func numbered(i uint64) *raft.Log {
	return &raft.Log{Index: i, Term: 1, Data: fmt.Appendf(make([]byte, 0, 2000), "%0*d", 100+i%1900, i)}
}

type fatal struct{}

func (fatal) Fatal(v ...any) { panic(fmt.Sprint(v...)) }

// appendForEver prints each index once its entry is stored, and deletes the old.
func appendForEver(dir string) error {
	l, err := Open(dir, bolt(fatal{}, dir, false), Options{Half: 32 * block, Delay: 3 * time.Millisecond})
	if err != nil {
		return err
	}
	kept, err := l.FirstIndex()
	if err != nil {
		return err
	}
	i, err := l.LastIndex()
	for err == nil {
		n := 1 + i%3
		var logs []*raft.Log
		for range n {
			i++
			logs = append(logs, numbered(i))
		}
		if err = l.StoreLogs(logs); err == nil {
			_, err = fmt.Println(i)
		}
		if err == nil && i > kept+450 {
			kept = i - 400
			err = l.DeleteRange(1, kept-1)
		}
	}
	return err
}

// A process that is killed while it appends has lost nothing it acknowledged.
func TestKilledProcesses(t *testing.T) {
	dir := t.TempDir()
	self, err := os.Executable()
	must(t, err)
	var acked uint64
	for life := range 8 {
		child := exec.CommandContext(t.Context(), self)
		child.Env = append(os.Environ(), childDir+"="+dir)
		child.Stderr = os.Stderr
		out, err := child.StdoutPipe()
		must(t, err)
		must(t, child.Start())
		lines := bufio.NewScanner(out)
		for n := 20 + rand.IntN(200); n > 0 && lines.Scan(); n-- {
			acked, err = strconv.ParseUint(lines.Text(), 10, 64)
			must(t, err)
		}
		must(t, child.Process.Kill())
		for lines.Scan() { // what it had said before it died
			if i, err := strconv.ParseUint(lines.Text(), 10, 64); err == nil {
				acked = max(acked, i)
			}
		}
		_ = child.Wait()

		under := bolt(t, dir, false)
		l, err := Open(dir, under, Options{})
		must(t, err)
		from, err := l.FirstIndex()
		must(t, err)
		to, err := l.LastIndex()
		must(t, err)
		if to < acked || to > from+460 {
			t.Fatalf("life %d: entries %d to %d after %d was acknowledged", life, from, to, acked)
		}
		for i := from; i <= to; i++ {
			var got raft.Log
			must(t, l.GetLog(i, &got))
			if string(got.Data) != string(numbered(i).Data) {
				t.Fatalf("life %d: entry %d is another", life, i)
			}
		}
		must(t, l.Close())
		must(t, under.Close())
	}
	if acked < 200 {
		t.Errorf("only %d entries were ever acknowledged", acked)
	}
}
