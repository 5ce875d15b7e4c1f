package journal

import (
	"encoding/binary"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/hashicorp/raft"
)

// worn makes a file of small halves that were used over and over, and the store
// in front of which it stands: with entries in both halves that only the
// journal has, and records of earlier turns and generations after them. tail is
// how many entries the last record has.
func worn(t *testing.T) (disk []byte, under, want content, tail uint64) {
	t.Helper()
	f, store := &image{b: fresh(4 * block)}, &memory{}
	l, err := load(f, store)
	must(t, err)
	want = content{}
	put := func(first uint64, n int, stamp uint64) {
		logs := batch(first, n, 900, stamp)
		want.store(logs)
		must(t, l.StoreLogs(logs))
	}
	for i := range uint64(40) {
		put(i+1, 1, 1)
	}
	must(t, l.DeleteRange(35, 40)) // those come back if a generation does
	want.delete(35, 40)
	for i := range uint64(11) {
		put(35+2*i, 2, 2)
		if i == 6 {
			must(t, l.move())
		}
	}
	put(57, 3, 3)
	if n := len(l.pending); n != 11 || l.half != 0 || l.used != 4*block {
		t.Fatalf("%d entries pending, half %d used up to %d", n, l.half, l.used)
	}
	return f.b, store.c, want, 3
}

// reload opens what is on a disk in front of a store, both of them copies.
func reload(disk []byte, under content) (*Log, content, error) {
	store := &memory{c: maps.Clone(under)}
	l, err := load(&image{b: slices.Clone(disk)}, store)
	return l, store.c, err
}

// One damaged byte anywhere is either of no consequence, or refused, or has
// hit the last record, which cannot be told from one that was being written.
func TestOneDamagedByte(t *testing.T) {
	disk, under, want, tail := worn(t)
	shorter := maps.Clone(want)
	shorter.delete(last(want)-tail+1, last(want))
	var kept, refused, cut int
	for i := range disk {
		if disk[i] == 0 && i%block > 64 && i%31 > 0 {
			continue // padding: now and then is enough
		}
		disk[i] ^= 1 << (i % 8)
		_, got, err := reload(disk, under)
		disk[i] ^= 1 << (i % 8)
		switch {
		case err != nil:
			refused++
		case maps.EqualFunc(got, want, same):
			kept++
		case maps.EqualFunc(got, shorter, same):
			cut++
		default:
			t.Fatalf("with byte %d damaged: a log of entries %d to %d", i, first(got), last(got))
		}
	}
	t.Logf("%d of no consequence, %d refused, %d in the last record", kept, refused, cut)
	if refused < 1000 || cut < 1000 || kept < 500 {
		t.Error("the damage did not reach what it was made for")
	}
}

// Damage to whole blocks never makes a wrong entry, and never a hole.
func TestDamagedBlocks(t *testing.T) {
	disk, under, want, _ := worn(t)
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 3))
		hurt := slices.Clone(disk)
		for range 1 + r.IntN(3) {
			to := hurt[r.IntN(len(hurt)/block)*block:][:block]
			switch r.IntN(3) {
			case 0:
				clear(to)
			case 1:
				copy(to, hurt[r.IntN(len(hurt)/block)*block:])
			case 2:
				for i := range to[:64] {
					to[i] = byte(r.Uint32())
				}
			}
		}
		_, got, err := reload(hurt[:len(hurt)-r.IntN(2)*r.IntN(len(hurt))], under)
		if err != nil {
			continue
		}
		for i := first(want); i <= last(got); i++ {
			if got[i] == nil || want[i] == nil || !same(got[i], want[i]) {
				t.Fatalf("seed %d: entry %d is not what was stored", seed, i)
			}
		}
		if last(got) < last(under) {
			t.Fatalf("seed %d: the store lost entries", seed)
		}
	}
}

// Either header alone keeps the generation, also when the power goes while it
// is being replaced.
func TestOneDamagedHeader(t *testing.T) {
	disk, under, want, _ := worn(t)
	for slot := range 2 {
		for seed := range uint64(400) {
			hurt := slices.Clone(disk)
			hurt[slot*block+9] ^= 1
			m := &machine{disk: hurt, kept: under, seen: under, steps: int(seed % 12)}
			_, _ = load(simFile{m}, &simStore{machine: m})
			m = m.cut(true, rand.New(rand.NewPCG(seed, 4)))
			m.steps = 1 << 30
			l, err := load(simFile{m}, &simStore{machine: m})
			if err != nil {
				t.Fatalf("header %d, seed %d: %v", slot, seed, err)
			}
			if err := want.differs(l); err != nil {
				t.Fatalf("header %d, seed %d: %v", slot, seed, err)
			}
		}
	}
	clear(disk[:2*block])
	if _, _, err := reload(disk, under); err == nil {
		t.Error("a journal without a header was opened")
	}
}

// A record that was being written over an old one may leave the old one's
// beginning: then the half begins with a run that has nothing to do with the
// end of the journal.
func TestAnOldBeginning(t *testing.T) {
	f, store := &image{b: fresh(4 * block)}, &memory{}
	l, err := load(f, store)
	must(t, err)
	want := content{}
	for i := range uint64(9) { // the first into the store, four into each half
		want.store(batch(i+1, 1, 900, 1))
		must(t, l.StoreLogs(batch(i+1, 1, 900, 1)))
	}
	before := slices.Clone(f.b)
	must(t, l.StoreLogs(batch(10, 2, 4000, 2))) // over the first half: never acknowledged
	disk := slices.Clone(f.b)
	copy(disk[2*block:3*block], before[2*block:]) // its first block did not get to the disk
	_, got, err := reload(disk, store.c)
	must(t, err)
	if !maps.EqualFunc(got, want, same) {
		t.Errorf("a log of entries %d to %d", first(got), last(got))
	}
}

// What looks like a record inside of an entry is not taken for one.
func TestForgedRecords(t *testing.T) {
	f, store := &image{b: fresh(testHalf)}, &memory{}
	l, err := load(f, store)
	must(t, err)
	must(t, l.StoreLogs(batch(1, 1, 10, 1)))
	forged := make([]byte, block)
	mark{salt: l.mark.salt ^ 1, half: testHalf}.record(forged, 2, batch(3, 1, 10, 9))
	data := make([]byte, block-headLen-entryLen)
	e := &raft.Log{Index: 2, Term: 1, Data: append(data, forged...)}
	must(t, l.StoreLogs([]*raft.Log{e}))
	// The first block of it is written over by an intact, shorter record.
	l.mark.record(f.b[2*block:3*block], 1, []*raft.Log{{Index: 2, Term: 1}})
	l, err = load(f, store)
	must(t, err)
	if n, _ := l.LastIndex(); n != 2 {
		t.Errorf("the log ends with %d", n)
	}
	// With a true salt but lengths that lie, decoding is an error and no panic.
	for _, at := range []int{29, 33} {
		b := make([]byte, block)
		l.mark.record(b, 1, []*raft.Log{{Index: 3, Term: 1, Data: []byte("data")}})
		n := headLen + int(binary.LittleEndian.Uint32(b[4:]))
		binary.LittleEndian.PutUint32(b[headLen+at:], 1<<31)
		binary.LittleEndian.PutUint32(b, checksum(b[4:n]))
		copy(f.b[2*block:], b)
		if _, err := load(f, store); err == nil {
			t.Error("an entry longer than its record was read")
		}
	}
}

// A process is killed while it resets the journal on its way back, and the power
// goes while the next one does the same: what the first wrote and did not sync
// could be read by the second, and is lost.
func TestKilledAndThenCutWhileComingBack(t *testing.T) {
	disk, under, want, _ := worn(t)
	for seed := range uint64(9 * 9 * 30) {
		r := rand.New(rand.NewPCG(seed, 5))
		m := &machine{disk: slices.Clone(disk), kept: under, seen: under, steps: 4 + int(seed%9)}
		_, _ = load(simFile{m}, &simStore{machine: m})
		m = m.cut(false, r)
		m.steps = 4 + int(seed/9%9)
		_, _ = load(simFile{m}, &simStore{machine: m})
		m = m.cut(true, r)
		m.steps = 1 << 30
		l, err := load(simFile{m}, &simStore{machine: m})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if err := want.differs(l); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}
