package jepsen

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// File is the path of one of the node's files; its data is in "data".
func (n *Node) File(name string) string { return n.file(name) }

// Terminate ends the node with SIGTERM. The error says that it did not end well
// within the patience.
func (n *Node) Terminate(patience time.Duration) error {
	if n.process == nil {
		return nil
	}
	return n.process.Stop(patience)
}

// Died tells that the node's process ended without being asked.
func (n *Node) Died() error {
	if n.process == nil {
		return nil
	}
	return n.process.Died()
}

// Ended is closed when the node's process, which has been started, is gone.
func (n *Node) Ended() <-chan struct{} { return n.process.done }

// Wipe removes the data of a node that does not run. Mounts stay.
func (n *Node) Wipe() error {
	entries, err := os.ReadDir(n.file("data"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(n.file("data/" + e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// Use makes the next start of the node one of another program.
func (n *Node) Use(binary string) { n.binary = binary }

// Stream makes a request whose answer is read while it comes. The caller closes
// the body; ending the context ends the stream.
func (c *Client) Stream(ctx context.Context, path string, header ...string) (body io.ReadCloser, status int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path, nil)
	if err != nil {
		return nil, 0, err
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, 0, err
	}
	return res.Body, res.StatusCode, nil
}

// Others are the nodes of the cluster but this one.
func (c *Cluster) Others(n *Node) []*Node {
	return slices.DeleteFunc(slices.Clone(c.Nodes), func(o *Node) bool { return o == n })
}

// Event is a line of a node's log about its part in Raft.
type Event struct {
	Node string
	At   time.Time
	What EventKind
	Term uint64 // of Led
}

// EventKind is what a node says of itself.
type EventKind string

// What is looked for in the logs.
const (
	Led       EventKind = "led"       // became the leader
	Followed  EventKind = "followed"  // follows, or stands
	Installed EventKind = "installed" // took over a Raft snapshot from the leader
	Began     EventKind = "began"     // the process has started
)

var says = map[string]EventKind{
	`msg="this node leads"`:           Led,
	`msg="entering follower state"`:   Followed,
	`msg="entering candidate state"`:  Followed,
	`msg="Installed remote snapshot"`: Installed,
	`msg="this node no longer leads"`: Followed,
	`msg="node is up"`:                Began,
}

// Events reads them from the logs of all nodes, in the order of time.
func (c *Cluster) Events() (events []Event, err error) {
	for _, n := range slices.Concat(c.Nodes, c.Spares) {
		right := truth{shifts: n.shifts}
		err := n.Lines(func(line string) {
			stamp, _, _ := strings.Cut(strings.TrimPrefix(line, "time="), " ")
			at, err := time.Parse(time.RFC3339Nano, stamp)
			if err != nil {
				return
			}
			at = right.of(at)
			for text, kind := range says {
				if !strings.Contains(line, text) {
					continue
				}
				e := Event{Node: n.ID, At: at, What: kind}
				if _, after, ok := strings.Cut(line, " term="); ok && kind == Led {
					number, _, _ := strings.Cut(after, " ")
					e.Term, _ = strconv.ParseUint(number, 10, 64)
				}
				events = append(events, e)
			}
		})
		if err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(events, func(a, b Event) int { return a.At.Compare(b.At) })
	return events, nil
}

// Lines gives the lines of the node's log, none where it has not run.
func (n *Node) Lines(line func(string)) error {
	f, err := os.Open(n.Log)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line(lines.Text())
	}
	if lines.Err() != nil {
		return fmt.Errorf("%s: %w", n.Log, lines.Err())
	}
	return nil
}

// Count is how many lines of the node's log hold the text.
func (n *Node) Count(text string) (count int, err error) {
	err = n.Lines(func(line string) {
		if strings.Contains(line, text) {
			count++
		}
	})
	return count, err
}

// State is the kernel's letter for what the node's process does: T is stopped.
func (n *Node) State() (string, error) {
	if n.process == nil {
		return "", fmt.Errorf("%s was never started", n.ID)
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.process.cmd.Process.Pid))
	if err != nil {
		return "", err
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	letter, _, _ := strings.Cut(after, " ")
	return letter, nil
}

// Binary is the muster that the cluster was made with.
func (c *Cluster) Binary() string { return c.settings.Binary }
