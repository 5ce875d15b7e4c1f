package fsm

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/registry"
	"github.com/muster-registry/muster/snapshot"
)

// rebuilt is the content of a snapshot as tables and records.
type rebuilt struct {
	view     *View
	header   snapshot.Header
	summary  *snapshot.Summary
	records  map[string][]record // of each bucket, by rising keys; none where they went to a file
	versions []string            // keys of all versions
	// definitions are the digests of the stored ones, which the tables do not hold.
	definitions map[string]string
}

// build reads a snapshot into fresh tables. Every record is put through the
// same loaders as at a start, so what cannot be loaded later is refused now.
func build(r io.Reader) (*rebuilt, error) { return buildInto(r, nil, snapshot.Read) }

// buildInto is build with the records written to a state file as they are read,
// instead of kept, where there is one. What to do with the file is for the
// caller to say.
func buildInto(r io.Reader, file *pageWriter, read reading) (*rebuilt, error) {
	defer spacious()()
	out := &rebuilt{view: emptyView(), records: map[string][]record{}, definitions: map[string]string{}}
	b := newBuilder(out, file)
	var err error
	out.summary, err = read(r, b)
	// Of a damaged file it is not worth saying what cannot be loaded.
	if unloaded := b.finish(); err == nil {
		err = unloaded
	}
	if err != nil {
		why := err.Error()
		if f, ok := errors.AsType[*fault.Error](err); ok {
			why = f.Detail // the code stands in the answer already
		}
		return nil, fault.Wrap(fault.InvalidSnapshot, err, "the snapshot cannot be restored: %s", why)
	}
	if err := out.complete(); err != nil {
		return nil, fault.Wrap(fault.InvalidSnapshot, err, "the snapshot cannot be restored: %v", err)
	}
	return out, nil
}

// reading is [snapshot.Read], or [snapshot.ReadKnown] where the caller compares
// the SHA-256 of the whole file with one that somebody gave who has read it.
type reading func(io.Reader, snapshot.Visitor) (*snapshot.Summary, error)

// builder takes the records as they are read, and has others load, hash and file
// them meanwhile: decompressing and checking takes about as long as loading.
type builder struct {
	out    *rebuilt
	next   run
	load   chan run
	sum    chan run
	file   chan run // nil: the records are kept
	work   sync.WaitGroup
	failed chan struct{} // closed when loading has failed
	err    error         // why; to be read after failed is closed, or work has ended
}

// run is some records of one bucket, one after the other.
type run struct {
	bucket  string
	records []record
}

const runRecords = 256

func newBuilder(out *rebuilt, file *pageWriter) *builder {
	b := &builder{out: out, load: make(chan run, 8), sum: make(chan run, 8), failed: make(chan struct{})}
	b.work.Go(b.loadAll)
	b.work.Go(b.sumUp)
	if file != nil {
		b.file = make(chan run, 8)
		b.work.Go(func() {
			in := ""
			for r := range b.file {
				if r.bucket != in {
					in = r.bucket
					file.bucket(in)
				}
				for _, rec := range r.records {
					file.put(rec.key, rec.value)
				}
			}
		})
	}
	return b
}

// Header implements snapshot.Visitor.
func (b *builder) Header(h snapshot.Header) error { b.out.header = h; return nil }

// Record implements snapshot.Visitor.
func (b *builder) Record(bucket, key string, value []byte) error {
	if bucket != b.next.bucket {
		if !slices.Contains(Content, bucket) {
			return fmt.Errorf("unknown section %q: written by a newer version?", bucket)
		}
		b.pass()
		b.next.bucket = bucket
	}
	b.next.records = append(b.next.records, record{key, bytes.Clone(value)})
	if len(b.next.records) < runRecords {
		return nil
	}
	b.pass()
	select {
	case <-b.failed:
		return b.err
	default:
		return nil
	}
}

// pass hands on what has gathered.
func (b *builder) pass() {
	if len(b.next.records) > 0 {
		b.load <- b.next
		b.sum <- b.next
		if b.file != nil {
			b.file <- b.next
		}
	}
	b.next.records = make([]record, 0, runRecords)
}

// finish waits for the others and completes the tables. It is called once,
// whether or not all was read.
func (b *builder) finish() error {
	b.pass()
	close(b.load)
	close(b.sum)
	if b.file != nil {
		close(b.file)
	}
	b.work.Wait()
	return b.err
}

func (b *builder) loadAll() {
	l := newLoader(b.out.view, newRepeats())
	for r := range b.load {
		for i := range r.records {
			if b.err != nil {
				break // the rest is only taken, so that nobody waits
			}
			if b.err = l.table(r.bucket, r.records[i].key, r.records[i].value); b.err != nil {
				close(b.failed)
			}
		}
	}
	if b.err == nil {
		b.err = l.finish()
	}
}

func (b *builder) sumUp() {
	var h Hash
	for r := range b.sum {
		if b.file == nil {
			b.out.records[r.bucket] = append(b.out.records[r.bucket], r.records...)
		}
		for _, rec := range r.records {
			if r.bucket == registry.BucketVersions {
				b.out.versions = append(b.out.versions, rec.key)
			}
			if hashed(r.bucket) {
				h.add(r.bucket, rec.key, rec.value)
			} else {
				sum := sha256.Sum256(rec.value)
				b.out.definitions[rec.key] = hex.EncodeToString(sum[:])
			}
		}
	}
	b.out.view.Hash = h
}

// complete refuses a version whose definition is missing or is another one:
// the tables hold no definitions, so nothing else would notice.
func (r *rebuilt) complete() error {
	for _, key := range r.versions {
		names := strings.Split(key, "/") // three: the loader has seen to it
		v, ok := r.view.Registry.Version(names[0], names[1], names[2])
		if !ok {
			return fmt.Errorf("version %s was not loaded", key)
		}
		if r.definitions[registry.DocumentKey(v.Namespace, v.Service, v.Version, v.Revision)] != v.Digest {
			return fmt.Errorf("the definition of version %s is missing or is another one", key)
		}
	}
	return nil
}
