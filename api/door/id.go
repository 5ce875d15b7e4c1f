package door

import (
	"crypto/rand"
	"encoding/hex"
	"strconv"
	"strings"
	"sync/atomic"
)

// maxRequestID bounds the X-Request-Id of a caller that is taken over.
const maxRequestID = 128

// requestIDs makes identifiers that are unique among all processes: a random
// part per process and a counter.
type requestIDs struct {
	prefix string
	next   atomic.Uint64
}

func (g *requestIDs) init() {
	var b [8]byte
	rand.Read(b[:])
	g.prefix = hex.EncodeToString(b[:]) + "-"
}

// of takes over the caller's identifier where it is harmless in a log and in
// a header, and makes one otherwise.
func (g *requestIDs) of(given []string) string {
	if len(given) == 1 && Harmless(given[0]) {
		return given[0]
	}
	var buf [40]byte
	b := append(buf[:0], g.prefix...)
	return string(strconv.AppendUint(b, g.next.Add(1), 36))
}

// Harmless says whether an identifier can stand in a log and in a header as it is.
func Harmless(id string) bool {
	if id == "" || len(id) > maxRequestID {
		return false
	}
	for i := range len(id) {
		b := id[i]
		if (b < 'a' || b > 'z') && (b < 'A' || b > 'Z') && (b < '0' || b > '9') && strings.IndexByte("-_.:/=+", b) < 0 {
			return false
		}
	}
	return true
}
