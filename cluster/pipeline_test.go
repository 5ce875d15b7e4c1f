package cluster

import (
	"io"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// TestPipelineEndsWithARefusal: raft stops listening at the first answer that is
// no success, and may have one more message to send. That must not wait for ever.
func TestPipelineEndsWithARefusal(t *testing.T) {
	for name, refusal := range map[string]raft.AppendEntriesResponse{
		"refused":    {Term: 1},
		"newer term": {Term: 2, Success: true},
	} {
		t.Run(name, func(t *testing.T) {
			follower := tcp(t)
			go func() {
				for rpc := range follower.Consumer() {
					rpc.Respond(&refusal, nil)
				}
			}()
			under, err := tcp(t).AppendEntriesPipeline("follower", follower.LocalAddr())
			if err != nil {
				t.Fatal(err)
			}
			p := newPipeline(under)
			ended := make(chan error)
			go func() {
				for {
					_, err := p.AppendEntries(&raft.AppendEntriesRequest{Term: 1}, new(raft.AppendEntriesResponse))
					if err != nil {
						ended <- err
						return
					}
				}
			}()
			select {
			case <-p.Consumer(): // the only one that raft takes
			case <-time.After(time.Minute):
				t.Fatal("no answer came")
			}
			select {
			case err := <-ended:
				t.Log(err)
			case <-time.After(time.Minute):
				t.Fatal("the sender still waits for somebody to take its answers")
			}
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func tcp(t *testing.T) *raft.NetworkTransport {
	t.Helper()
	trans, err := raft.NewTCPTransport("127.0.0.1:0", nil, 2, time.Minute, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := trans.Close(); err != nil {
			t.Error(err)
		}
	})
	return trans
}
