// Package snapshot owns the file that `muster snapshot save` writes: what a
// cluster held at one revision, as named sections of key-value records. It
// streams both ways with bounded memory and refuses every file that is not
// exactly what a Writer finished: truncated, damaged, appended to, foreign or
// of a newer format. It knows nothing of what the records mean.
//
// A file is laid out as
//
//	"MUSTERS1"            8 bytes, the last one is the version of the outer layout
//	body                  zstd
//	seal                  SHA-256 of everything before it, then "MUSTERZ1"
//
// so that the seal covers what is stored, and `head -c -40 FILE | sha256sum`
// checks it without this package. The body, uncompressed, is
//
//	uint32 length, header as JSON
//	any number of sections:
//	  0x01  uint16 length, bucket
//	  0x02  uint16 key length, uint32 value length, key, value     (per record)
//	  0x03  uint64 records, uint64 bytes, SHA-256                  (end of section)
//	0x04  SHA-256 of all uncompressed bytes before it, "MUSTEREND"
//
// with integers in big-endian order. A section's bytes are those of its keys
// and values; its SHA-256 is taken over its records as they stand in the body,
// tag and lengths included.
package snapshot

import (
	"encoding/hex"
	"time"

	"github.com/muster-registry/muster/fault"
)

// Format is the version of the format this build writes, and the newest it reads.
const Format = 1

// Limits of the format. A Writer refuses to write beyond them, Read to read.
const (
	MaxKey      = 1 << 10  // bytes of a key; an empty one is refused too
	MaxValue    = 64 << 20 // bytes of a value
	MaxBucket   = 255      // bytes of a bucket's name; an empty one is refused too
	MaxSections = 1024
)

const (
	magic      = "MUSTERS1"
	sealMagic  = "MUSTERZ1"
	bodyEnd    = "MUSTEREND"
	maxHeader  = 64 << 10
	windowSize = 1 << 20 // what the writer uses
	maxWindow  = 8 << 20 // what the reader allows
)

const (
	tagSection byte = 1 + iota
	tagRecord
	tagSectionEnd
	tagEnd
)

// Header says what a snapshot is of. CreatedAt is given by the caller.
type Header struct {
	Format         int       `json:"format"` // the Writer fills it in
	ClusterID      string    `json:"cluster_id"`
	Revision       uint64    `json:"revision"`
	AppliedIndex   uint64    `json:"applied_index"`
	Term           uint64    `json:"term"`
	PolicyRevision uint64    `json:"policy_revision"`
	CreatedAt      time.Time `json:"created_at"`
	MusterVersion  string    `json:"muster_version"`
}

// Digest is a SHA-256, written as lower-case hex in JSON.
type Digest [32]byte

// String returns the digest as lower-case hex.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText implements encoding.TextMarshaler.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// Section sums up one section of a file.
type Section struct {
	Bucket  string `json:"bucket"`
	Records uint64 `json:"records"`
	Bytes   uint64 `json:"bytes"` // of keys and values
	SHA256  Digest `json:"sha256"`
}

// Summary sums up a whole file. Size is the file's own; SHA256 is taken over
// the uncompressed content, so it does not depend on the compressor.
type Summary struct {
	Header   Header    `json:"header"`
	Sections []Section `json:"sections"` // in the order of the file
	Size     int64     `json:"size"`
	SHA256   Digest    `json:"sha256"`
}

func invalid(format string, args ...any) error {
	return fault.New(fault.InvalidSnapshot, format, args...)
}
