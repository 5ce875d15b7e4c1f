package jepsen

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
)

// TestCurlFollowsChanges has curl follow a service's changes as server-sent
// events while its node is killed, each time anew: with the id of the last event
// it goes on at another node, and sees each change once and in order.
func TestCurlFollowsChanges(t *testing.T) {
	x := cluster(t, nil)
	s := Set{History: x.history, Service: "followed", Patience: patience}
	x.fill(s, x.Nodes, "first", 1)
	writing := x.writers(s, 1)
	begin := time.Now()
	x.next(begin, slack*5*time.Second)
	var mu sync.Mutex
	told := map[string]bool{} // by an instance's id
	newest := uint64(0)
	last := fmt.Sprint(x.history.Ops(func(op *Op) bool { return op.Key == "first-0" })[0].Revision)
	events := 0
	for round := range 4 {
		n := x.Nodes[round%len(x.Nodes)]
		ctx, cancel := context.WithTimeout(x.ctx, slack*30*time.Second)
		curl := exec.CommandContext(ctx, "curl", "--silent", "--show-error", "--no-buffer", "--fail", "--cacert", x.CA, "--header", "Authorization: Bearer "+x.Token,
			"--header", "Last-Event-ID: "+last, "https://"+n.host.Client+":"+controlPort+"/v1/watch?namespace="+namespace+"&service=followed")
		out, err := curl.StdoutPipe()
		x.must(err)
		x.must(curl.Start())
		seen := make(chan struct{})
		ended := make(chan error, 1)
		go func() {
			once := sync.OnceFunc(func() { close(seen) })
			got := 0
			err := lines(out, func(id string, data []byte) error {
				mu.Lock()
				defer mu.Unlock()
				if id != "" {
					last = id
				}
				var e struct {
					Kind     string `json:"kind"`
					ID       string `json:"id"`
					Revision uint64 `json:"revision"`
				}
				if err := json.Unmarshal(data, &e); err != nil {
					return err
				}
				if e.Kind != "instance" {
					return nil
				}
				if told[e.ID] || e.Revision <= newest {
					return fmt.Errorf("%s of revision %d was told twice or late: %d was told before", e.ID, e.Revision, newest)
				}
				told[e.ID], newest = true, e.Revision
				events++
				if got++; got == 50 {
					once()
				}
				return nil
			})
			once()
			ended <- err
		}()
		<-seen
		if round < 3 {
			x.kill(n)
			x.must(<-ended)
			_ = curl.Wait() // it says that the transfer broke off
			x.restart(n)
			cancel()
			continue
		}
		writing.stop()
		ops := x.history.Ops(func(op *Op) bool { return op.Kind == Write && op.Outcome == OK && op.Invoke >= x.history.Since(begin) })
		x.must(Until(ctx, func() error {
			mu.Lock()
			defer mu.Unlock()
			for _, op := range ops {
				if op.Key == probed {
					continue
				}
				if !told[op.Key] {
					return fmt.Errorf("%s was acknowledged, and curl was not told", op.Key)
				}
			}
			return nil
		}))
		cancel()
		<-ended // cut off by cancel, perhaps in the middle of a line
		_ = curl.Wait()
	}
	x.atLeast(events, 200, "changes that curl was told of, each once, at four nodes of which three were killed")
}

// lines gives the ids and the data of server-sent events; what breaks off before
// the empty line that ends it is no event.
func lines(r io.Reader, tell func(id string, data []byte) error) error {
	in := bufio.NewScanner(r)
	in.Buffer(nil, 1<<20)
	var id, data string
	for in.Scan() {
		switch name, value, _ := strings.Cut(in.Text(), ": "); name {
		case "id":
			id = value
		case "data":
			data = value
		case "":
			if data != "" {
				if err := tell(id, []byte(data)); err != nil {
					return err
				}
			}
			id, data = "", ""
		}
	}
	return in.Err()
}
