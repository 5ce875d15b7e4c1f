package cluster

import (
	"context"
	"encoding/json"
	"io"
	"maps"
	"sync"

	"github.com/hashicorp/raft"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"google.golang.org/protobuf/proto"
)

// kv is the tests' state machine: it keeps the specs of puts by name.
type kv struct {
	mu      sync.Mutex
	changed chan struct{}
	state   kvState
	largest int // commands in one entry
}

type kvState struct {
	Applied, Revision uint64
	Level             uint32
	ID                string
	Values            map[string]string
}

func newKV() *kv {
	return &kv{changed: make(chan struct{}), state: kvState{Values: map[string]string{}}}
}

func (m *kv) Apply(l *raft.Log) any { return m.ApplyBatch([]*raft.Log{l})[0] }

func (m *kv) ApplyBatch(logs []*raft.Log) []any {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]any, len(logs))
	for i, l := range logs {
		if l.Index <= m.state.Applied {
			continue // replayed after a restart on the disk it was kept on
		}
		if l.Type == raft.LogCommand {
			var b command.Batch
			if err := proto.Unmarshal(l.Data, &b); err != nil {
				panic(err)
			}
			m.state.Level = max(m.state.Level, b.Format)
			results := make([]command.Result, len(b.Commands))
			m.largest = max(m.largest, len(b.Commands))
			for j, cmd := range b.Commands {
				results[j] = m.one(cmd)
			}
			out[i] = results
		}
		m.state.Applied = l.Index
	}
	close(m.changed)
	m.changed = make(chan struct{})
	return out
}

func (m *kv) one(cmd *command.Command) command.Result {
	switch op := cmd.Op.(type) {
	case *command.Command_ClusterInit:
		if m.state.ID != "" {
			return command.Result{Err: fault.New(fault.Conflict, "twice")}
		}
		m.state.ID = op.ClusterInit.ClusterId
	case *command.Command_Put:
		if op.Put.Name == "refused" {
			return command.Result{Err: fault.New(fault.RevisionMismatch, "refused")}
		}
		m.state.Values[op.Put.Name] = string(op.Put.Spec)
	}
	m.state.Revision++
	return command.Result{Receipt: &command.Receipt{Revision: m.state.Revision}}
}

func (m *kv) AppliedIndex() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state.Applied
}

func (m *kv) Level() uint32 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return max(m.state.Level, command.Base)
}

func (m *kv) ClusterID() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state.ID
}

func (m *kv) get(name string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state.Values[name]
}

func (m *kv) AwaitApplied(ctx context.Context, index uint64) error {
	for {
		m.mu.Lock()
		applied, changed := m.state.Applied, m.changed
		m.mu.Unlock()
		if applied >= index {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (m *kv) Snapshot() (raft.FSMSnapshot, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.state
	s.Values = maps.Clone(s.Values)
	return s, nil
}

func (s kvState) Persist(sink raft.SnapshotSink) error {
	if err := json.NewEncoder(sink).Encode(s); err != nil {
		return err
	}
	return sink.Close()
}
func (s kvState) Release() {}

func (m *kv) Restore(r io.ReadCloser) error {
	var s kvState
	if err := json.NewDecoder(r).Decode(&s); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state = s
	close(m.changed)
	m.changed = make(chan struct{})
	return nil
}
