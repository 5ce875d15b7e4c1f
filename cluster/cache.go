package cluster

import (
	"sync"

	"github.com/hashicorp/raft"
)

// cacheBytes bounds what the newest log entries may take in memory. raft's own
// LogCache counts entries, and a definition of 16 MiB is an entry.
const cacheBytes = 8 << 20

// cache keeps the newest entries of a log in memory, so that followers that
// keep up are served without reading the disk.
type cache struct {
	raft.LogStore

	mu    sync.RWMutex // guards what follows
	first uint64       // index of entries[0]
	tail  []*raft.Log  // consecutive
	bytes int
}

func size(l *raft.Log) int { return len(l.Data) + len(l.Extensions) + 128 }

func (c *cache) GetLog(index uint64, l *raft.Log) error {
	c.mu.RLock()
	if i := index - c.first; index >= c.first && i < uint64(len(c.tail)) {
		*l = *c.tail[i]
		c.mu.RUnlock()
		return nil
	}
	c.mu.RUnlock()
	return c.LogStore.GetLog(index, l)
}

func (c *cache) StoreLog(l *raft.Log) error { return c.StoreLogs([]*raft.Log{l}) }

func (c *cache) StoreLogs(logs []*raft.Log) error {
	// The cache must never show what the disk may not hold.
	if err := c.LogStore.StoreLogs(logs); err != nil {
		c.drop()
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range logs {
		if l.Index != c.first+uint64(len(c.tail)) {
			c.first, c.tail, c.bytes = l.Index, nil, 0
		}
		c.tail = append(c.tail, l)
		c.bytes += size(l)
	}
	n := 0
	for ; n < len(c.tail) && c.bytes > cacheBytes; n++ {
		c.bytes -= size(c.tail[n])
		c.tail[n] = nil
	}
	c.first += uint64(n)
	c.tail = c.tail[n:]
	return nil
}

func (c *cache) DeleteRange(from, to uint64) error {
	c.drop()
	return c.LogStore.DeleteRange(from, to)
}

func (c *cache) drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.first, c.tail, c.bytes = 0, nil, 0
}
