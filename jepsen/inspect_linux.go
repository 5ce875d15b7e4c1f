package jepsen

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
)

// Snapshot is the index of the newest Raft snapshot on the node's disk, 0
// where there is none.
func (n *Node) Snapshot() (index uint64, err error) {
	entries, err := os.ReadDir(n.file("data/raft/snapshots"))
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		// term-index-time
		if parts := strings.Split(e.Name(), "-"); len(parts) == 3 && !strings.HasSuffix(e.Name(), ".tmp") {
			i, err := strconv.ParseUint(parts[1], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("%s: %w", e.Name(), err)
			}
			index = max(index, i)
		}
	}
	return index, nil
}

// Metric reads a metric without labels, 0 where it is not there.
func (n *Node) Metric(ctx context.Context, name string) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.host.Client+":9090/metrics", nil)
	if err != nil {
		return 0, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, lines.Err()
}
