package quota

import (
	"math"
	"strconv"
	"strings"
)

// PolicyField is the value of the field RateLimit-Policy of
// draft-ietf-httpapi-ratelimit-headers-10: every limit by its kind, with its
// burst as quota and the time in which that comes in as window. It is "" where
// no limit concerns the call.
func (r *Result) PolicyField() string {
	var all []string
	for _, l := range r.Limits {
		all = append(all, `"`+string(l.Key.Kind())+`";q=`+strconv.FormatInt(l.Rate.BurstCapacity, 10)+";w="+strconv.FormatInt(l.Rate.Window(), 10))
	}
	return strings.Join(all, ", ")
}

// LimitField is the value of the field RateLimit: what is left of the limit
// that is nearest to its end. It is "" where no limit concerns the call.
func (r *Result) LimitField() string {
	if len(r.Limits) == 0 {
		return ""
	}
	return `"` + string(r.Limits[r.Tightest].Key.Kind()) + `";r=` + strconv.FormatInt(r.Remaining, 10) +
		";t=" + strconv.FormatInt(int64(math.Ceil(r.Reset.Seconds())), 10)
}
