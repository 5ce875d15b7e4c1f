package fsm

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math/bits"
	"slices"
	"sync"

	"github.com/muster-registry/muster/registry"
)

// Hash is the state hash: the sum, modulo 2^256, of the SHA-256 of every
// stored record (bucket, key and value, each with its length). A sum does not
// depend on order, so it is kept up to date record by record, and nodes with
// equal states have equal hashes however they got there. Documents are covered
// by the digest in their version's record; bookkeeping of one cluster (applied
// index, repeats) is left out, so a restored state has the hash of its source.
//
// It is there to notice divergence by fault, not forgery: a sum is not
// collision-resistant against somebody who chooses the records.
type Hash [4]uint64

func (h *Hash) add(bucket, key string, value []byte) {
	h.combine(recordHash(bucket, key, value), false)
}

func (h *Hash) remove(bucket, key string, value []byte) {
	h.combine(recordHash(bucket, key, value), true)
}

func (h *Hash) combine(r [4]uint64, subtract bool) {
	var carry uint64
	for i := range h {
		if subtract {
			h[i], carry = bits.Sub64(h[i], r[i], carry)
		} else {
			h[i], carry = bits.Add64(h[i], r[i], carry)
		}
	}
}

// String gives the hash as 64 hex digits.
func (h Hash) String() string {
	var b [32]byte
	for i, w := range h {
		binary.BigEndian.PutUint64(b[24-8*i:], w)
	}
	return hex.EncodeToString(b[:])
}

// hashBuffers spares the applying goroutine an allocation per record.
var hashBuffers = sync.Pool{New: func() any { return new([]byte) }}

func recordHash(bucket, key string, value []byte) [4]uint64 {
	scratch := hashBuffers.Get().(*[]byte)
	defer hashBuffers.Put(scratch)
	buf := (*scratch)[:0]
	for _, part := range []string{bucket, key} {
		buf = binary.BigEndian.AppendUint64(buf, uint64(len(part)))
		buf = append(buf, part...)
	}
	buf = binary.BigEndian.AppendUint64(buf, uint64(len(value)))
	buf = append(buf, value...)
	if cap(buf) <= 64<<10 {
		*scratch = buf
	}
	sum := sha256.Sum256(buf)
	var w [4]uint64
	for i := range w {
		w[i] = binary.BigEndian.Uint64(sum[24-8*i:])
	}
	return w
}

// hashed says whether records of the bucket count for the state hash.
func hashed(bucket string) bool {
	return bucket != registry.BucketDocuments && slices.Contains(Content, bucket)
}
