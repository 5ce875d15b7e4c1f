package journal

import (
	"fmt"
	"testing"

	"github.com/hashicorp/raft"
)

// Appends of entries of 450 B, synced, by the real store alone and behind the
// journal; what is moved meanwhile is part of it.
func BenchmarkStoreLogs(b *testing.B) {
	for _, n := range []int{1, 64} {
		for _, name := range []string{"store alone", "journal"} {
			b.Run(fmt.Sprintf("%s/entries=%d", name, n), func(b *testing.B) {
				dir := b.TempDir()
				under := bolt(b, dir, false)
				var log raft.LogStore = under
				if name == "journal" {
					l, err := Open(dir, under, Options{})
					must(b, err)
					b.Cleanup(func() { must(b, l.Close()) })
					log = l
				}
				next := uint64(1)
				for b.Loop() {
					logs := batch(next, n, 450, 1)
					next += uint64(n)
					must(b, log.StoreLogs(logs))
				}
				b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
			})
		}
	}
}
