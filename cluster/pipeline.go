package cluster

import (
	"sync"

	"github.com/hashicorp/raft"
)

// pipeline ends itself after an answer with which raft stops listening: a newer
// term, a refusal, a broken connection. raft's own (v1.7.3) may send once more at
// that moment and then waits for ever for somebody to take the answers: the
// follower gets no entry any more from a leader whose heartbeats it still gets,
// and the node cannot end. See hashicorp/raft issue 612.
type pipeline struct {
	raft.AppendPipeline
	answers chan raft.AppendFuture
	once    sync.Once
	closed  chan struct{}
	ended   error // of the pipeline below, once closed
}

func newPipeline(under raft.AppendPipeline) *pipeline {
	p := &pipeline{AppendPipeline: under, answers: make(chan raft.AppendFuture), closed: make(chan struct{})}
	go p.pass()
	return p
}

// Consumer gives the answers in order, up to the one that ends the pipeline.
func (p *pipeline) Consumer() <-chan raft.AppendFuture { return p.answers }

// Close lets an AppendEntries that waits return with an error. It may be called
// more than once.
func (p *pipeline) Close() error {
	p.once.Do(func() {
		p.ended = p.AppendPipeline.Close()
		close(p.closed)
	})
	return p.ended
}

func (p *pipeline) pass() {
	for {
		select {
		case f := <-p.AppendPipeline.Consumer():
			// Both are raft's again once it has the answer.
			last := !f.Response().Success || f.Response().Term > f.Request().Term
			select {
			case p.answers <- f:
			case <-p.closed:
				return
			}
			if last {
				_ = p.Close() // raft closes it once more, and hears of an error then
				return
			}
		case <-p.closed:
			return
		}
	}
}
