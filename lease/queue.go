package lease

// queue is the deadlines as a heap, the next one first.
type queue []*deadline

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].queued.Before(q[j].queued) }
func (q queue) Swap(i, j int)      { q[i], q[j] = q[j], q[i]; q[i].pos, q[j].pos = i, j }

// Push implements heap.Interface.
func (q *queue) Push(x any) { d := x.(*deadline); d.pos = len(*q); *q = append(*q, d) }

// Pop implements heap.Interface.
func (q *queue) Pop() any {
	old := *q
	d := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	return d
}
