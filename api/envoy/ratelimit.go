package envoy

import (
	"context"
	"math"
	"strconv"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	descriptorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/quota"
)

// maxDescriptors bounds what one request may count against.
const maxDescriptors = 32

// rateLimit is Envoy's rate limit service. It counts as POST /v1/quota/check
// does. What is wrong with a question is an error of the call: it lies in
// Envoy's configuration.
type rateLimit struct {
	ratelimitv3.UnimplementedRateLimitServiceServer
	find   Find
	quotas Quotas
}

// ShouldRateLimit implements ratelimitv3.RateLimitServiceServer. Each
// descriptor is a call to be counted; see [counted].
func (s rateLimit) ShouldRateLimit(ctx context.Context, req *ratelimitv3.RateLimitRequest) (*ratelimitv3.RateLimitResponse, error) {
	c := s.find(ctx, "POST", "/v1/quota/check")
	// Who may not count at all learns nothing about the question.
	if err := c.Permit(policy.Spend, "quota", ""); err != nil {
		return nil, err
	}
	if n := len(req.GetDescriptors()); n == 0 || n > maxDescriptors {
		return nil, fault.Invalid("/descriptors", "are %d; from 1 to %d", n, maxDescriptors)
	}
	calls := make([]quota.Call, len(req.GetDescriptors()))
	for i, d := range req.GetDescriptors() {
		var err error
		if calls[i], err = counted(req, d, "/descriptors/"+strconv.Itoa(i)); err != nil {
			return nil, err
		}
		if err := c.Permit(policy.Spend, "quota", calls[i].Namespace); err != nil {
			return nil, err
		}
	}
	if err := c.Young(); err != nil {
		return nil, err
	}
	out := &ratelimitv3.RateLimitResponse{OverallCode: ratelimitv3.RateLimitResponse_OK}
	var tightest *quota.Result
	for _, call := range calls {
		r, err := s.quotas.CheckQuota(ctx, call)
		if err != nil {
			return nil, err
		}
		out.Statuses = append(out.Statuses, told(r))
		if !r.Allowed {
			out.OverallCode = ratelimitv3.RateLimitResponse_OVER_LIMIT
		}
		if tightest == nil || tighter(r, tightest) {
			tightest = r
		}
	}
	out.ResponseHeadersToAdd = fields(tightest)
	return out, nil
}

// counted is the call that a descriptor stands for. Its domain is the
// namespace of the service, unless an entry says otherwise.
func counted(req *ratelimitv3.RateLimitRequest, d *descriptorv3.RateLimitDescriptor, at string) (quota.Call, error) {
	c := quota.Call{Namespace: req.GetDomain(), Hits: max(1, int64(req.GetHitsAddend()))}
	if d.GetLimit() != nil || d.GetIsNegativeHits() {
		return c, fault.Invalid(at, "sets a limit of its own or takes hits back; the quotas document sets all limits, and what was counted stays counted")
	}
	if h := d.GetHitsAddend(); h != nil {
		c.Hits = int64(min(h.GetValue(), math.MaxInt64))
	}
	for _, e := range d.GetEntries() {
		switch e.GetKey() {
		case "service_id", "generic_key", "destination_cluster":
			if c.ServiceID != "" {
				return c, fault.Invalid(at, "names the service twice; of service_id, generic_key and destination_cluster give one")
			}
			c.ServiceID = e.GetValue()
		case "namespace":
			c.Namespace = e.GetValue()
		case "principal":
			c.Principal = e.GetValue()
		default:
			return c, fault.Invalid(at, "has the key %q; the keys are service_id (or generic_key, or destination_cluster), namespace and principal", e.GetKey())
		}
	}
	if err := c.Check(); err != nil {
		f := fault.From(err)
		for i := range f.Fields {
			f.Fields[i].Pointer = at + f.Fields[i].Pointer
		}
		return c, f
	}
	return c, nil
}

func tighter(a, b *quota.Result) bool {
	if a.Allowed != b.Allowed {
		return !a.Allowed
	}
	return len(a.Limits) > 0 && (len(b.Limits) == 0 || a.Remaining < b.Remaining)
}

// told is the answer about one descriptor.
func told(r *quota.Result) *ratelimitv3.RateLimitResponse_DescriptorStatus {
	s := &ratelimitv3.RateLimitResponse_DescriptorStatus{Code: ratelimitv3.RateLimitResponse_OK}
	if !r.Allowed {
		s.Code = ratelimitv3.RateLimitResponse_OVER_LIMIT
	}
	if len(r.Limits) == 0 {
		return s
	}
	l := r.Limits[r.Tightest]
	s.CurrentLimit = limit(l)
	s.LimitRemaining = uint32(min(max(r.Remaining, 0), math.MaxUint32))
	s.DurationUntilReset = durationpb.New(r.Reset)
	return s
}

// limit writes a rate in the smallest unit that has it as a whole number of
// requests, or else in the largest one, rounded down.
func limit(l quota.Limit) *ratelimitv3.RateLimitResponse_RateLimit {
	out := &ratelimitv3.RateLimitResponse_RateLimit{Name: string(l.Key.Kind())}
	for _, u := range []struct {
		unit    ratelimitv3.RateLimitResponse_RateLimit_Unit
		seconds float64
	}{{ratelimitv3.RateLimitResponse_RateLimit_SECOND, 1}, {ratelimitv3.RateLimitResponse_RateLimit_MINUTE, 60}, {ratelimitv3.RateLimitResponse_RateLimit_HOUR, 3600}, {ratelimitv3.RateLimitResponse_RateLimit_DAY, 86400}} {
		n := l.Rate.RequestsPerSecond * u.seconds
		out.Unit, out.RequestsPerUnit = u.unit, uint32(min(n, math.MaxUint32))
		if n >= math.MaxUint32 || n == math.Trunc(n) {
			break
		}
	}
	return out
}

// fields are the headers for the caller, as REST answers with them.
func fields(r *quota.Result) []*corev3.HeaderValue {
	if len(r.Limits) == 0 {
		return nil
	}
	all := []*corev3.HeaderValue{{Key: "ratelimit-policy", Value: r.PolicyField()}, {Key: "ratelimit", Value: r.LimitField()}}
	if !r.Allowed {
		all = append(all, &corev3.HeaderValue{Key: "retry-after", Value: strconv.FormatInt(max(1, int64(math.Ceil(r.RetryAfter.Seconds()))), 10)})
	}
	return all
}
