package cluster

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/time/rate"
)

// repeatQuiet is how long a message that was just logged stays quiet. Raft
// says the same words several times a second about a peer that is away.
const repeatQuiet = 10 * time.Second

// raftLogger makes Raft log into slog.
func raftLogger(to *slog.Logger) hclog.Logger {
	level := hclog.Info
	if to.Enabled(context.Background(), slog.LevelDebug) {
		level = hclog.Debug
	}
	logger := hclog.NewInterceptLogger(&hclog.LoggerOptions{Output: io.Discard, Level: level})
	logger.RegisterSink(&sink{to: to.With("component", "raft"), said: map[string]time.Time{}})
	return logger
}

// sink is an hclog.SinkAdapter in front of slog.
type sink struct {
	to   *slog.Logger
	mu   sync.Mutex // guards said
	said map[string]time.Time
}

func (s *sink) Accept(_ string, level hclog.Level, msg string, args ...any) {
	to := slog.LevelDebug
	switch {
	case level >= hclog.Error:
		to = slog.LevelError
	case level == hclog.Warn:
		to = slog.LevelWarn
	case level == hclog.Info:
		to = slog.LevelInfo
	}
	if !s.to.Enabled(context.Background(), to) || (to >= slog.LevelWarn && s.repeated(msg, args)) {
		return
	}
	for i, a := range args {
		if f, ok := a.(hclog.Format); ok && len(f) > 0 {
			if layout, ok := f[0].(string); ok {
				args[i] = fmt.Sprintf(layout, f[1:]...)
			}
		}
	}
	s.to.Log(context.Background(), to, msg, args...)
}

// repeated reports whether this message, about this peer, was logged lately.
func (s *sink) repeated(msg string, args []any) bool {
	key := msg
	if len(args) > 1 {
		key += fmt.Sprint(args[1])
	}
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.said[key]) < repeatQuiet {
		return true
	}
	if len(s.said) > 1000 {
		clear(s.said)
	}
	s.said[key] = now
	return false
}

// gossipLog takes memberlist's log lines, which carry their level as text.
type gossipLog struct {
	to     *slog.Logger
	scarce *scarce // for what strangers can cause
}

func (g gossipLog) Write(line []byte) (int, error) {
	text := strings.TrimSpace(string(line))
	level := slog.LevelInfo
	for mark, l := range map[string]slog.Level{"[DEBUG]": slog.LevelDebug, "[WARN]": slog.LevelWarn, "[ERR]": slog.LevelWarn} {
		if before, after, ok := strings.Cut(text, mark); ok {
			text, level = strings.TrimSpace(before+after), l
			break
		}
	}
	text = strings.TrimPrefix(text, "memberlist: ")
	if level == slog.LevelWarn {
		g.scarce.warn(g.to, text, "component", "gossip")
	} else {
		g.to.Log(context.Background(), level, text, "component", "gossip")
	}
	return len(line), nil
}

// scarce keeps whoever reaches a port from filling the log: of the warnings that
// a stranger can cause, each with one packet, some a second have a line. The
// next line that there is says how many are missing.
type scarce struct {
	room *rate.Limiter
	left atomic.Int64
}

func newScarce() *scarce { return &scarce{room: rate.NewLimiter(10, 100)} }

func (s *scarce) warn(to *slog.Logger, msg string, args ...any) {
	if !s.room.Allow() {
		s.left.Add(1)
		return
	}
	if n := s.left.Swap(0); n > 0 {
		args = append(args, "left_out", n)
	}
	to.Warn(msg, args...)
}
