package snapshot

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/muster-registry/muster/fault"
)

// Writer writes one snapshot. It keeps no more than a compression window in
// memory and starts no goroutine, so one that is given up needs no clean-up:
// the file it leaves has no end and every reader refuses it. After an error
// all further calls return that error. A Writer is for one goroutine.
type Writer struct {
	dst   *sealWriter
	body  *zstd.Encoder
	sum   hash.Hash // of the whole body
	part  hash.Hash // of the records of the open section
	frame []byte    // the part of a record before its value, kept for reuse

	open     bool // a section is open
	section  Section
	last     string
	seen     map[string]bool
	sections []Section
	header   Header
	summary  *Summary
	err      error
}

// NewWriter starts a snapshot in w with its header. h.Format may be left 0.
// w needs no buffer of its own.
func NewWriter(w io.Writer, h Header) (*Writer, error) {
	if h.Format != 0 && h.Format != Format {
		return nil, fault.New(fault.Internal, "this build writes snapshot format %d, not %d", Format, h.Format)
	}
	h.Format = Format
	h.CreatedAt = h.CreatedAt.UTC()
	text, err := json.Marshal(h)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "the snapshot's header cannot be written as JSON")
	}
	if len(text) > maxHeader {
		return nil, fault.New(fault.Internal, "the snapshot's header has %d bytes, at most %d are possible", len(text), maxHeader)
	}
	dst := &sealWriter{dst: w, sum: sha256.New()}
	body, err := zstd.NewWriter(dst, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(windowSize), zstd.WithEncoderCRC(true))
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "the compressor refuses its settings")
	}
	sw := &Writer{dst: dst, body: body, sum: sha256.New(), part: sha256.New(), seen: map[string]bool{}, header: h}
	if _, err := io.WriteString(dst, magic); err != nil {
		return nil, writeError(err)
	}
	return sw, sw.write(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text)
}

// Section starts the section of a bucket and ends the one before. A file has
// at most one section of a name; a section may stay empty.
func (w *Writer) Section(bucket string) error {
	if err := w.endSection(); err != nil {
		return err
	}
	switch {
	case bucket == "" || len(bucket) > MaxBucket:
		return w.refuse("a snapshot's bucket name has 1 to %d bytes, not %d", MaxBucket, len(bucket))
	case w.seen[bucket]:
		return w.refuse("the snapshot has a section %q already", bucket)
	case len(w.sections) == MaxSections:
		return w.refuse("a snapshot has at most %d sections", MaxSections)
	}
	w.seen[bucket] = true
	w.open, w.section, w.last = true, Section{Bucket: bucket}, ""
	w.part.Reset()
	b := append(w.frame[:0], tagSection)
	b = binary.BigEndian.AppendUint16(b, uint16(len(bucket)))
	w.frame = append(b, bucket...)
	return w.write(w.frame)
}

// Put adds one record to the open section. Keys must rise strictly in byte
// order. The value is not kept.
func (w *Writer) Put(key string, value []byte) error {
	switch {
	case w.err != nil:
		return w.err
	case !w.open:
		return w.refuse("a snapshot's record needs a section first")
	case key == "" || len(key) > MaxKey:
		return w.refuse("a snapshot's key has 1 to %d bytes, not %d (section %q)", MaxKey, len(key), w.section.Bucket)
	case len(value) > MaxValue:
		return w.refuse("the value of %q in section %q has %d bytes, a snapshot holds at most %d", key, w.section.Bucket, len(value), MaxValue)
	case key <= w.last:
		return w.refuse("the key %q in section %q does not come after %q", key, w.section.Bucket, w.last)
	}
	b := append(w.frame[:0], tagRecord)
	b = binary.BigEndian.AppendUint16(b, uint16(len(key)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(value)))
	w.frame = append(b, key...)
	w.part.Write(w.frame)
	w.part.Write(value)
	w.last = key
	w.section.Records++
	w.section.Bytes += uint64(len(key)) + uint64(len(value))
	return w.write(w.frame, value)
}

// Close ends the snapshot. Only after it has returned nil is the file whole.
// It does not close the writer underneath, nor sync it.
func (w *Writer) Close() error {
	if w.summary != nil {
		return nil
	}
	if err := w.endSection(); err != nil {
		return err
	}
	if err := w.write([]byte{tagEnd}); err != nil {
		return err
	}
	content := Digest(w.sum.Sum(nil))
	if err := w.write(content[:], []byte(bodyEnd)); err != nil {
		return err
	}
	if err := w.body.Close(); err != nil {
		return w.fail(writeError(err))
	}
	if err := w.dst.seal(); err != nil {
		return w.fail(writeError(err))
	}
	w.summary = &Summary{Header: w.header, Sections: w.sections, Size: w.dst.n, SHA256: content}
	w.err = fault.New(fault.Internal, "the snapshot is closed already")
	return nil
}

// Summary returns what Read will say of the file, or nil before Close has
// succeeded.
func (w *Writer) Summary() *Summary { return w.summary }

func (w *Writer) endSection() error {
	if w.err != nil || !w.open {
		return w.err
	}
	w.section.SHA256 = Digest(w.part.Sum(nil))
	w.sections = append(w.sections, w.section)
	w.open = false
	b := append(w.frame[:0], tagSectionEnd)
	b = binary.BigEndian.AppendUint64(b, w.section.Records)
	b = binary.BigEndian.AppendUint64(b, w.section.Bytes)
	w.frame = append(b, w.section.SHA256[:]...)
	return w.write(w.frame)
}

func (w *Writer) write(parts ...[]byte) error {
	for _, p := range parts {
		w.sum.Write(p)
		if _, err := w.body.Write(p); err != nil {
			return w.fail(writeError(err))
		}
	}
	return nil
}

func (w *Writer) refuse(format string, args ...any) error {
	return w.fail(fault.New(fault.Internal, format, args...))
}

func (w *Writer) fail(err error) error {
	w.err = err
	return err
}

func writeError(err error) error { return fmt.Errorf("write the snapshot: %w", err) }
