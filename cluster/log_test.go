package cluster

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Whoever reaches the gossip port, and holds no key, does not fill the log, one
// line for each packet; and the log says what is missing.
func TestStrangersDoNotFillTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said bytes.Buffer
		g := gossipLog{slog.New(slog.NewTextHandler(&said, nil)), newScarce()}
		flood := func(n int) {
			for i := range n {
				fmt.Fprintf(g, "[ERR] memberlist: Decrypt packet failed: unsupported encryption version %d from=192.0.2.1:7\n", i%200)
			}
		}
		flood(50_000)
		if lines := strings.Count(said.String(), "\n"); lines != 100 {
			t.Errorf("50 000 packets make %d lines", lines)
		}
		fmt.Fprintln(g, "[INFO] memberlist: Marking n3 as failed, suspect timeout reached")
		if !strings.Contains(said.String(), "Marking n3") {
			t.Error("what is not a stranger's doing is left out")
		}
		time.Sleep(time.Second)
		said.Reset()
		flood(1)
		if !strings.Contains(said.String(), "left_out=49900") {
			t.Errorf("the next line is %s", &said)
		}
	})
}
