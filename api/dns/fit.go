package dns

import (
	"slices"

	"github.com/miekg/dns"
)

// fit makes an answer no larger than size. First go the addresses beside it,
// which can be asked for; then records of the answer itself, and the answer
// says that it is truncated: what is left is valid, and the whole is to be had
// over TCP.
func fit(res *dns.Msg, size int) {
	res.Compress = true
	if res.Len() <= size {
		return
	}
	kept := slices.DeleteFunc(slices.Clone(res.Extra), func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
	opt := res.IsEdns0()
	with := func(n int) []dns.RR {
		extra := slices.Clone(kept[:n])
		if opt != nil {
			extra = append(extra, opt)
		}
		return extra
	}
	low, high := 0, len(kept)
	for low < high { // the most that fit
		mid := (low + high + 1) / 2
		if res.Extra = with(mid); res.Len() <= size {
			low = mid
		} else {
			high = mid - 1
		}
	}
	res.Extra = with(low)
	if res.Len() > size {
		res.Truncate(size)
	}
}
