package quota

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
)

const (
	storeTimeout = 250 * time.Millisecond
	storeRetry   = time.Second // a Redis that did not answer is left alone for as long
	storePrefix  = "{muster-quota}:"
)

// gcra counts hits (ARGV[1]) against all keys or none. For each key ARGV holds
// the microseconds of one hit and those of the whole burst. It answers whether
// the call is allowed, the index of the key that is nearest to its end or that
// refused, the hits it has left and the microseconds until the call may be
// tried again. Time is that of the Redis: the nodes' clocks do not matter.
var gcra = redis.NewScript(`
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local hits = tonumber(ARGV[1])
local full, at, least, left = {}, 1, nil, 0
for i, key in ipairs(KEYS) do
	local cost, burst = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1])
	local was = tonumber(redis.call('GET', key) or now)
	if was < now then was = now end
	if was > now + burst then was = now + burst end
	local is = was + hits * cost
	if is - now > burst + 0.5 then
		return {0, i, math.floor((now + burst - was) / cost), math.ceil(is - now - burst)}
	end
	full[i] = is
	local share = (now + burst - is) / burst
	if least == nil or share < least then
		least, at, left = share, i, math.floor((now + burst - is) / cost)
	end
end
for i, key in ipairs(KEYS) do
	redis.call('SET', key, string.format('%.3f', full[i]), 'PX', math.ceil((full[i] - now) / 1000) + 1)
end
return {1, at, left, 0}
`)

// store keeps the count in a Redis.
type store struct {
	password string
	logger   *slog.Logger
	up       prometheus.Gauge
	patience time.Duration // for one answer; 250 ms outside of tests

	mu      sync.Mutex // guards what follows
	address string
	client  *redis.Client
	away    time.Time // until then it is not asked
	down    bool
}

// quiet keeps the client's own messages, which are not of this program's form,
// off standard error: what they tell is in the errors.
type quiet struct{}

// Printf implements the client's logger.
func (quiet) Printf(context.Context, string, ...any) {}

func init() { redis.SetLogger(quiet{}) }

// connect gives the client for an address; nil while it is left alone.
func (s *store) connect(address string) *redis.Client {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.address != address {
		opt, err := redis.ParseURL(address)
		if err != nil { // Canonical has parsed it
			s.logger.Error("the address of the Redis cannot be read", "error", err)
			return nil
		}
		opt.Password = s.password
		opt.DialTimeout, opt.ReadTimeout, opt.WriteTimeout, opt.PoolTimeout = s.patience, s.patience, s.patience, s.patience
		opt.DialerRetries = 1
		opt.MaxRetries = -1 // a hit that was counted must not be counted again
		opt.ContextTimeoutEnabled = true
		opt.ClientName = "muster"
		if s.client != nil {
			_ = s.client.Close()
		}
		s.address, s.client, s.away = address, redis.NewClient(opt), time.Time{}
	}
	if time.Now().Before(s.away) {
		return nil
	}
	return s.client
}

// check counts a call. ok is false when the Redis did not answer; a count it
// may have made all the same is lost.
func (s *store) check(ctx context.Context, address string, limits []Limit, hits int64) (r *Result, ok bool) {
	client := s.connect(address)
	if client == nil {
		return nil, false
	}
	keys, args := make([]string, len(limits)), []any{hits}
	for i, l := range limits {
		keys[i] = storePrefix + string(l.Key)
		cost := 1e6 / l.Rate.RequestsPerSecond
		args = append(args, cost, cost*float64(l.Rate.BurstCapacity))
	}
	asking, cancel := context.WithTimeout(ctx, s.patience)
	defer cancel()
	answer, err := gcra.Run(asking, client, keys, args...).Int64Slice()
	if err != nil || len(answer) != 4 || answer[1] < 1 || int(answer[1]) > len(limits) {
		if ctx.Err() == nil { // else it is the caller who went away
			s.lost(err)
		}
		return nil, false
	}
	s.found()
	i := int(answer[1]) - 1
	if answer[0] == 0 {
		return refusal(limits, i, answer[2], time.Duration(answer[3])*time.Microsecond), true
	}
	rate := limits[i].Rate
	return &Result{Allowed: true, Limits: limits, Tightest: i, Remaining: answer[2], Reset: rate.refill(float64(rate.BurstCapacity - answer[2]))}, true
}

// ping looks whether a Redis that was away answers again.
func (s *store) ping(ctx context.Context, address string) {
	client := s.connect(address)
	if client == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, s.patience)
	defer cancel()
	if err := client.Ping(ctx).Err(); err != nil {
		s.lost(err)
		return
	}
	s.found()
}

func (s *store) lost(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = time.Now().Add(storeRetry)
	if !s.down {
		s.down = true
		s.up.Set(0)
		s.logger.Warn("the Redis of the quotas does not answer; local limits apply until it does", "error", err)
	}
}

func (s *store) found() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		s.down = false
		s.up.Set(1)
		s.logger.Info("the Redis of the quotas answers again")
	}
}

func (s *store) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client != nil {
		_ = s.client.Close()
	}
}
