package health

import (
	"container/heap"
	"math/rand/v2"
	"reflect"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/muster-registry/muster/registry"
)

func equal(a, b []string) bool { return slices.Equal(a, b) }

// owner is the member that weighs most for a check (rendezvous hashing).
func owner(key Key, members []string) (first string) {
	name := key.Namespace + "/" + key.Service + "/" + key.ID + "/" + key.Check
	var most uint64
	for _, m := range members {
		if w := xxhash.Sum64String(m + "\x00" + name); w >= most {
			first, most = m, w
		}
	}
	return first
}

// soon bounds how long a check waits for its first run after it was
// registered. Those that are taken over are many at one time: they are spread
// over a tenth of their interval more.
const soon = time.Second

// follow makes the jobs of an instance those that are this node's. The caller
// holds the lock.
func (c *Checker) follow(in *registry.Instance, now time.Time, fresh bool) {
	id := instance{in.Namespace, in.Service, in.ID}
	old := c.jobs[id]
	var jobs []*job
	for i := range in.Checks {
		check := &in.Checks[i]
		key := Key{in.Namespace, in.Service, in.ID, check.ID}
		if check.Type == registry.CheckTTL || owner(key, c.members) != c.opt.Node {
			continue
		}
		at := slices.IndexFunc(old, func(j *job) bool { return j.key == key })
		if at >= 0 && (old[at].check == check || reflect.DeepEqual(old[at].check, check)) {
			old[at].check = check // so that the record before can go
			jobs = append(jobs, old[at])
			old = slices.Delete(slices.Clone(old), at, at+1)
			continue
		}
		within := soon
		if !fresh {
			within += time.Duration(check.Interval) / 10
		}
		within = min(within, time.Duration(check.Interval))
		j := &job{key: key, check: check, next: now.Add(rand.N(within + 1)), pos: -1}
		heap.Push(&c.queue, j)
		c.count++
		jobs = append(jobs, j)
	}
	for _, j := range old {
		c.drop(j)
	}
	if len(jobs) == 0 {
		delete(c.jobs, id)
	} else {
		c.jobs[id] = jobs
	}
}

func (c *Checker) forget(id instance) {
	for _, j := range c.jobs[id] {
		c.drop(j)
	}
	delete(c.jobs, id)
}

// drop ends a job; what its probe under way finds is not looked at.
func (c *Checker) drop(j *job) {
	if j.gone {
		return
	}
	j.gone = true
	c.count--
	if j.failing {
		c.failing--
	}
	if j.pos >= 0 {
		heap.Remove(&c.queue, j.pos)
	}
	delete(c.reports, j.key)
}

// queue is the jobs that wait as a heap, the next one first.
type queue []*job

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].next.Before(q[j].next) }
func (q queue) Swap(i, j int)      { q[i], q[j] = q[j], q[i]; q[i].pos, q[j].pos = i, j }

// Push implements heap.Interface.
func (q *queue) Push(x any) { j := x.(*job); j.pos = len(*q); *q = append(*q, j) }

// Pop implements heap.Interface.
func (q *queue) Pop() any {
	old := *q
	j := old[len(old)-1]
	old[len(old)-1] = nil
	*q, j.pos = old[:len(old)-1], -1
	return j
}
