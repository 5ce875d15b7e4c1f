package snapshot

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/muster-registry/muster/fault"
)

// Visitor receives what Read finds, in the order of the file: the header once,
// then the records. The value is valid only during the call. An error ends Read
// and is returned as it is.
//
// What a Visitor receives is not yet known to be whole: it must not be acted on
// (only put aside) until Read has returned nil.
type Visitor interface {
	Header(h Header) error
	Record(bucket, key string, value []byte) error
}

// Read reads a whole snapshot and gives its content to visit. It returns nil
// only when every byte up to the end of r is one that a Writer wrote.
//
// Errors: invalid_snapshot for a file that is truncated, damaged, of a newer
// format or no snapshot at all, with a sentence that says which; the Visitor's
// error as it is; an error of r, wrapped. Memory stays bounded whatever the
// file says: by the largest value it really holds and by MaxSections.
func Read(r io.Reader, visit Visitor) (*Summary, error) { return read(r, visit, false) }

// ReadKnown is Read for a file that is known, by a SHA-256 of all its bytes, to
// be one that Read has taken. The seal and the compressor's checksums are looked
// at, those within the content are not: they cost as much as the rest of
// reading, and say nothing about bytes that are known. The Summary has no
// SHA256. It is the caller who compares the file's own SHA-256, before anything
// is acted on.
func ReadKnown(r io.Reader, visit Visitor) (*Summary, error) { return read(r, visit, true) }

func read(r io.Reader, visit Visitor, known bool) (*Summary, error) {
	src := newSealReader(r)
	if err := checkMagic(src); err != nil {
		return nil, err
	}
	if _, err := io.CopyN(io.Discard, src, int64(len(magic))); err != nil {
		return nil, explain(src, nil, err)
	}
	zr, err := zstd.NewReader(onlyReader{src}, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(MaxValue), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return nil, explain(src, nil, err)
	}
	defer zr.Close()
	b := &body{src: bufio.NewReaderSize(zr, 64<<10), sum: sha256.New(), part: sha256.New(), known: known, seen: map[string]bool{}, visit: visit}
	if err := b.read(); err != nil {
		return nil, explain(src, b, err)
	}
	if err := src.check(); err != nil {
		if src.err != nil {
			return nil, readError(err)
		}
		return nil, err
	}
	b.summary.Size = src.n + int64(sealSize)
	return &b.summary, nil
}

// Sealed reads a whole file and says whether it is a snapshot whose seal holds:
// no byte of it has changed since it was written. That costs a small part of
// what Read does, which looks at the content. Errors are those of Read.
func Sealed(r io.Reader) error {
	src := newSealReader(r)
	if err := checkMagic(src); err != nil {
		return err
	}
	if err := src.check(); err != nil {
		if src.err != nil {
			return readError(err)
		}
		return err
	}
	return nil
}

// Verify reads a whole snapshot and keeps nothing but its summary. Its errors
// are those of Read.
func Verify(r io.Reader) (*Summary, error) { return Read(r, discard{}) }

type discard struct{}

func (discard) Header(Header) error                 { return nil }
func (discard) Record(string, string, []byte) error { return nil }

func checkMagic(src *sealReader) error {
	start, err := src.start(len(ageMagic))
	if string(start) == ageMagic {
		return encrypted()
	}
	start = start[:min(len(start), len(magic))]
	family := magic[:len(magic)-1]
	switch {
	case err != nil:
		return readError(err)
	case string(start) == magic:
		return nil
	case len(start) == 0:
		return invalid("the snapshot is empty")
	case len(start) < len(magic) && strings.HasPrefix(magic, string(start)):
		return invalid("the snapshot is truncated: it has only %d bytes", len(start))
	case len(start) == len(magic) && string(start[:len(family)]) == family && start[len(family)] > magic[len(family)] && start[len(family)] <= '9':
		return invalid("the snapshot is of the newer format %c, this muster reads up to %d: use the muster that wrote it, or a newer one", start[len(family)], Format)
	}
	return invalid("this is not a muster snapshot: it does not begin with %q", magic)
}

// visitError carries a Visitor's error past explain.
type visitError struct{ error }

// explain turns what went wrong inside the body into the most useful sentence.
// A damaged file fails anywhere, so the seal is asked first: only of an intact
// file is it worth saying what is wrong within.
func explain(src *sealReader, b *body, err error) error {
	if v, ok := err.(visitError); ok {
		return v.error
	}
	sealed := src.check()
	switch {
	case src.err != nil:
		return readError(src.err)
	case sealed == nil && fault.Is(err, fault.InvalidSnapshot):
		return err
	case sealed == nil:
		return fault.Wrap(fault.InvalidSnapshot, err, "the snapshot is malformed%s, though its checksum holds: it was not written by muster", b.where())
	}
	return fault.Wrap(fault.InvalidSnapshot, err, "%s (noticed%s)", fault.From(sealed).Detail, b.where())
}

func readError(err error) error { return fmt.Errorf("read the snapshot: %w", err) }

// body reads the uncompressed content. Its errors are raw; explain words them.
type body struct {
	src   *bufio.Reader
	sum   hash.Hash
	part  hash.Hash
	known bool // neither of them is computed
	visit Visitor

	large   bytes.Buffer // a value that does not fit src's buffer
	key     []byte       // the last one
	seen    map[string]bool
	at      string // the open section, for messages
	inside  bool
	summary Summary
}

func (b *body) where() string {
	switch {
	case b == nil || len(b.summary.Sections) == 0 && !b.inside:
		return " at its header"
	case b.inside:
		return fmt.Sprintf(" in section %q after %d records", b.at, b.summary.Sections[len(b.summary.Sections)-1].Records)
	}
	return fmt.Sprintf(" after section %q", b.at)
}

func (b *body) read() error {
	if err := b.header(); err != nil {
		return err
	}
	for {
		tag, err := b.take(1)
		if err != nil {
			return err
		}
		switch tag[0] {
		case tagSection:
			err = b.section()
		case tagEnd:
			return b.end()
		default:
			err = fmt.Errorf("unknown tag %#x", tag[0])
		}
		if err != nil {
			return err
		}
	}
}

func (b *body) header() error {
	p, err := b.take(4)
	if err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(p)
	if n > maxHeader {
		return fmt.Errorf("a header of %d bytes", n)
	}
	text, err := b.take(int(n))
	if err != nil {
		return err
	}
	var version struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(text, &version); err != nil {
		return err
	}
	if version.Format > Format {
		return invalid("the snapshot is of the newer format %d, this muster reads up to %d: use the muster that wrote it, or a newer one", version.Format, Format)
	}
	if version.Format != Format {
		return fmt.Errorf("no format %d", version.Format)
	}
	if err := json.Unmarshal(text, &b.summary.Header); err != nil {
		return err
	}
	return wrapVisit(b.visit.Header(b.summary.Header))
}

func (b *body) section() error {
	p, err := b.take(2)
	if err != nil {
		return err
	}
	n := binary.BigEndian.Uint16(p)
	if n == 0 || n > MaxBucket {
		return fmt.Errorf("a bucket name of %d bytes", n)
	}
	text, err := b.take(int(n))
	if err != nil {
		return err
	}
	name := string(text)
	if b.seen[name] {
		return fmt.Errorf("section %q twice", name)
	}
	if len(b.seen) == MaxSections {
		return fmt.Errorf("more than %d sections", MaxSections)
	}
	b.seen[name] = true
	b.at, b.inside = name, true
	b.summary.Sections = append(b.summary.Sections, Section{Bucket: name})
	sec := &b.summary.Sections[len(b.summary.Sections)-1]
	b.part.Reset()
	b.key = b.key[:0]
	for {
		tag, err := b.take(1)
		if err != nil {
			return err
		}
		switch tag[0] {
		case tagRecord:
			err = b.record(sec)
		case tagSectionEnd:
			return b.sectionEnd(sec)
		default:
			err = fmt.Errorf("unknown tag %#x", tag[0])
		}
		if err != nil {
			return err
		}
	}
}

var recordTag = []byte{tagRecord}

func (b *body) record(sec *Section) error {
	p, err := b.take(6)
	if err != nil {
		return err
	}
	keySize, valueSize := binary.BigEndian.Uint16(p), binary.BigEndian.Uint32(p[2:])
	if keySize == 0 || keySize > MaxKey {
		return fmt.Errorf("a key of %d bytes", keySize)
	}
	if valueSize > MaxValue {
		return fmt.Errorf("a value of %d bytes", valueSize)
	}
	if !b.known {
		b.part.Write(recordTag)
		b.part.Write(p)
	}
	key, err := b.take(int(keySize))
	if err != nil {
		return err
	}
	if !b.known {
		b.part.Write(key)
	}
	if bytes.Compare(key, b.key) <= 0 {
		return fmt.Errorf("key %q does not come after %q", key, b.key)
	}
	b.key = append(b.key[:0], key...)
	value, err := b.take(int(valueSize))
	if err != nil {
		return err
	}
	if !b.known {
		b.part.Write(value)
	}
	if err := b.visit.Record(b.at, string(b.key), value); err != nil {
		return wrapVisit(err)
	}
	sec.Records++
	sec.Bytes += uint64(keySize) + uint64(valueSize)
	return nil
}

func (b *body) sectionEnd(sec *Section) error {
	p, err := b.take(16 + sha256.Size)
	if err != nil {
		return err
	}
	if !b.known {
		sec.SHA256 = Digest(b.part.Sum(nil))
	}
	if binary.BigEndian.Uint64(p) != sec.Records || binary.BigEndian.Uint64(p[8:]) != sec.Bytes || !b.known && !bytes.Equal(p[16:], sec.SHA256[:]) {
		return errors.New("the section's count, size or checksum does not match its records")
	}
	b.inside = false
	return nil
}

func (b *body) end() error {
	if !b.known {
		b.summary.SHA256 = Digest(b.sum.Sum(nil))
	}
	p, err := b.take(sha256.Size + len(bodyEnd))
	if err != nil {
		return err
	}
	if !b.known && !bytes.Equal(p[:sha256.Size], b.summary.SHA256[:]) || string(p[sha256.Size:]) != bodyEnd {
		return errors.New("the content's checksum or end mark does not match")
	}
	if _, err := b.src.ReadByte(); err != io.EOF {
		if err == nil {
			err = errors.New("content after its end")
		}
		return err
	}
	return nil
}

// take reads n bytes, valid until the next take. It never makes room for bytes
// that have not come yet beyond twice those that have.
func (b *body) take(n int) ([]byte, error) {
	var p []byte
	var err error
	if n <= b.src.Size() {
		if p, err = b.src.Peek(n); err == nil {
			_, err = b.src.Discard(n)
		}
	} else {
		b.large.Reset()
		_, err = io.CopyN(&b.large, b.src, int64(n))
		p = b.large.Bytes()
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, err
	}
	if !b.known {
		b.sum.Write(p)
	}
	return p, nil
}

func wrapVisit(err error) error {
	if err == nil {
		return nil
	}
	return visitError{err}
}
