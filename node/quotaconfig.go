package node

import (
	"errors"
	"fmt"
	"math"
	"strconv"
)

// complete takes the static limits from the environment where they stand
// there, and checks them.
func (q *QuotaSettings) complete(env func(string) string) (err error) {
	if v := env("MUSTER_QUOTA_REQUESTS_PER_SECOND"); v != "" {
		if q.RequestsPerSecond, err = strconv.ParseFloat(v, 64); err != nil {
			return fmt.Errorf("MUSTER_QUOTA_REQUESTS_PER_SECOND: %q is not a number", v)
		}
	}
	if v := env("MUSTER_QUOTA_BURST_CAPACITY"); v != "" {
		if q.BurstCapacity, err = strconv.ParseInt(v, 10, 64); err != nil {
			return fmt.Errorf("MUSTER_QUOTA_BURST_CAPACITY: %q is not a whole number", v)
		}
	}
	if !(q.RequestsPerSecond >= 0 && q.RequestsPerSecond <= 1e7) {
		return errors.New("quota.requests_per_second: is out of range; from 0 to 10000000")
	}
	if q.BurstCapacity < 0 || q.BurstCapacity > 1e8 {
		return errors.New("quota.burst_capacity: is out of range; from 0 to 100000000")
	}
	if q.RequestsPerSecond > 0 && q.BurstCapacity == 0 {
		q.BurstCapacity = int64(math.Ceil(q.RequestsPerSecond))
	}
	return nil
}
