package cluster

import (
	"fmt"
	"strings"
	"sync"
	"testing"
)

// callers runs op from that many goroutines until b.N is used up.
func callers(b *testing.B, n int, op func(i int) error) {
	b.ResetTimer()
	work := make(chan int, n)
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			for i := range work {
				if err := op(i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	for i := range b.N {
		work <- i
	}
	close(work)
	all.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
}

func benchLab(b *testing.B) (leader, follower *node) {
	l := newLab(b)
	l.tune = func(*Config) {}
	nodes := l.form(3)
	leader = l.leader(nodes...)
	for _, n := range nodes {
		if n != leader {
			follower = n
		}
	}
	return leader, follower
}

// Three nodes with TLS and fsync in one process, commands of 450 B: what Raft,
// the disk and the peer port allow with a state machine that costs nothing.
func BenchmarkPropose(b *testing.B) {
	leader, follower := benchLab(b)
	spec := strings.Repeat("x", 430)
	for _, n := range []int{1, 16, 256, 1024} {
		b.Run(fmt.Sprintf("on the leader/callers=%d", n), func(b *testing.B) {
			callers(b, n, func(int) error {
				_, err := leader.Propose(b.Context(), put("name", spec))
				return err
			})
		})
	}
	for _, n := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("forwarded/callers=%d", n), func(b *testing.B) {
			callers(b, n, func(int) error {
				_, err := follower.Call(b.Context(), "put", []byte(spec))
				return err
			})
		})
	}
}

func BenchmarkReadIndex(b *testing.B) {
	leader, follower := benchLab(b)
	for name, at := range map[string]*node{"leader": leader, "follower": follower} {
		for _, n := range []int{1, 64, 256} {
			b.Run(fmt.Sprintf("%s/callers=%d", name, n), func(b *testing.B) {
				callers(b, n, func(int) error { return at.ReadIndex(b.Context()) })
			})
		}
	}
}
