package fsm

import (
	"encoding/binary"
	"errors"
	"hash/fnv"
	"os"
	"slices"
	"strings"
)

// A state file that is made of nothing but sorted records is written from its
// first page to its last, in the format of bbolt 1.3 and later (its version 2),
// which reads and changes it from then on. bbolt's own way, a transaction, costs
// several times as much: it looks for the place of each record, and writes each
// page by a call of its own.

const (
	pageHead    = 16 // id, flags, count, overflow
	pageElement = 16
	flushPages  = 1 << 20 // bytes that are written at once

	branchPage   = 0x01
	leafPage     = 0x02
	metaPage     = 0x04
	freelistPage = 0x10

	bucketElement = 0x01

	boltMagic   = 0xED0CDAED
	boltVersion = 2

	branchLeast = 2 // bbolt holds that no branch has less
)

// pageWriter writes a whole bbolt file. Buckets come one after the other, in any
// order, their records by rising keys. After an error it does nothing more, and
// finish returns it.
type pageWriter struct {
	file *os.File
	size int    // of a page
	next uint64 // id of the next page
	buf  []byte // whole pages that are not written yet
	err  error

	buckets []element // of the finished ones, with their first pages
	name    string    // of the open one
	open    bool
	leaf    []element // of the page that is being filled
	used    int       // its bytes so far
	below   []element // the finished pages of the open bucket, with their first keys
}

// element is a record in a leaf, or a page in a branch.
type element struct {
	key   string
	value []byte
	page  uint64
	flags uint32
}

// writePages makes a file of what fill puts into it, and syncs it if that is
// wanted. What was there under that name is gone; after an error there is none.
func writePages(path string, sync bool, fill func(*pageWriter) error) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	w := newPageWriter(f)
	if err = fill(w); err == nil {
		err = w.finish()
	}
	if err == nil && sync {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// newPageWriter begins a file, which must be empty.
func newPageWriter(f *os.File) *pageWriter {
	w := &pageWriter{file: f, size: os.Getpagesize()}
	w.buf = make([]byte, 2*w.size, flushPages+1<<16) // for the two meta pages
	w.next = 2
	w.page(freelistPage, nil)
	return w
}

// bucket begins a bucket, and ends the one before.
func (w *pageWriter) bucket(name string) {
	w.end()
	w.name, w.open = name, true
}

// put adds a record to the open bucket. Key and value must not change until the
// file is finished.
func (w *pageWriter) put(key string, value []byte) {
	n := pageElement + len(key) + len(value)
	if len(w.leaf) > 0 && w.used+n > w.full() {
		w.endLeaf()
	}
	w.leaf = append(w.leaf, element{key: key, value: value})
	w.used += n
}

// full is how many bytes go into a page.
func (w *pageWriter) full() int { return int(filled*float64(w.size)) - pageHead }

func (w *pageWriter) endLeaf() {
	first := ""
	if len(w.leaf) > 0 {
		first = w.leaf[0].key
	}
	w.below = append(w.below, element{key: first, page: w.page(leafPage, w.leaf)})
	w.leaf, w.used = w.leaf[:0], 0
}

// end finishes the open bucket.
func (w *pageWriter) end() {
	if !w.open {
		return
	}
	w.open = false
	root := binary.NativeEndian.AppendUint64(nil, w.root())
	w.buckets = append(w.buckets, element{key: w.name, value: append(root, make([]byte, 8)...), flags: bucketElement})
}

// root writes what is left of the open tree, and gives its first page.
func (w *pageWriter) root() uint64 {
	if len(w.leaf) > 0 || len(w.below) == 0 {
		w.endLeaf()
	}
	for len(w.below) > 1 {
		var above []element
		for rest := w.below; len(rest) > 0; {
			n, used := 0, 0
			for n < len(rest) && (n < branchLeast || used+pageElement+len(rest[n].key) <= w.full()) {
				used += pageElement + len(rest[n].key)
				n++
			}
			if len(rest)-n < branchLeast && n < len(rest) {
				n = len(rest)
			}
			above = append(above, element{key: rest[0].key, page: w.page(branchPage, rest[:n])})
			rest = rest[n:]
		}
		w.below = above
	}
	page := w.below[0].page
	w.below = w.below[:0]
	return page
}

// page writes a page, with as many behind it as its content needs, and gives
// its id.
func (w *pageWriter) page(kind uint16, elements []element) uint64 {
	id, from := w.next, len(w.buf)
	w.head(id, kind, len(elements), 0)
	data := pageHead + pageElement*len(elements)
	for i, e := range elements {
		pos := uint32(data - pageHead - pageElement*i) // from its element
		if kind == branchPage {
			w.buf = binary.NativeEndian.AppendUint32(w.buf, pos)
			w.buf = binary.NativeEndian.AppendUint32(w.buf, uint32(len(e.key)))
			w.buf = binary.NativeEndian.AppendUint64(w.buf, e.page)
		} else {
			for _, n := range []uint32{e.flags, pos, uint32(len(e.key)), uint32(len(e.value))} {
				w.buf = binary.NativeEndian.AppendUint32(w.buf, n)
			}
		}
		data += len(e.key) + len(e.value)
	}
	for _, e := range elements {
		w.buf = append(w.buf, e.key...)
		w.buf = append(w.buf, e.value...)
	}
	pages := (data + w.size - 1) / w.size
	w.buf = append(w.buf, make([]byte, pages*w.size-data)...)
	binary.NativeEndian.PutUint32(w.buf[from+12:], uint32(pages-1))
	w.next += uint64(pages)
	if len(w.buf) >= flushPages {
		w.write()
	}
	return id
}

func (w *pageWriter) head(id uint64, kind uint16, count int, overflow uint32) {
	w.buf = binary.NativeEndian.AppendUint64(w.buf, id)
	w.buf = binary.NativeEndian.AppendUint16(w.buf, kind)
	w.buf = binary.NativeEndian.AppendUint16(w.buf, uint16(count))
	w.buf = binary.NativeEndian.AppendUint32(w.buf, overflow)
}

func (w *pageWriter) write() {
	if w.err == nil {
		_, w.err = w.file.Write(w.buf)
	}
	w.buf = w.buf[:0]
}

// finish completes the file. It does not sync it.
func (w *pageWriter) finish() error {
	w.end()
	slices.SortFunc(w.buckets, func(a, b element) int { return strings.Compare(a.key, b.key) })
	w.below, w.leaf = w.below[:0], w.buckets
	root := w.root()
	w.write()
	for id := range uint64(2) {
		w.meta(id, root)
	}
	if w.err == nil {
		_, w.err = w.file.WriteAt(w.buf, 0)
	}
	return w.err
}

// meta makes one of the two pages that the file begins with.
func (w *pageWriter) meta(id, root uint64) {
	from := len(w.buf)
	w.head(id, metaPage, 0, 0)
	for _, n := range []uint32{boltMagic, boltVersion, uint32(w.size), 0} {
		w.buf = binary.NativeEndian.AppendUint32(w.buf, n)
	}
	const freelist, sequence = 2, 0
	for _, n := range []uint64{root, sequence, freelist, w.next, 2 - id} { // the first one is the newer
		w.buf = binary.NativeEndian.AppendUint64(w.buf, n)
	}
	sum := fnv.New64a()
	_, _ = sum.Write(w.buf[from+pageHead:])
	w.buf = binary.NativeEndian.AppendUint64(w.buf, sum.Sum64())
	w.buf = append(w.buf, make([]byte, w.size-(len(w.buf)-from))...)
}
