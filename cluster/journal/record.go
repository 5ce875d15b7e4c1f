package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"github.com/hashicorp/raft"
)

// The file is two header blocks and two halves:
//
//	header  magic 8, generation 8, salt 8, bytes of a half 8, CRC32C 4
//	record  CRC32C 4, payload's length 4, salt 8, sequence 8, payload, zeros up to a whole block
//	entry   index 8, term 8, type 1, seconds 8, nanoseconds 4, data's length 4, extensions' length 4, data, extensions
//
// all little-endian. A record begins on a block of its own, so that no block
// with an acknowledged record in it is ever written again while it is needed.
const (
	magic    = "musterj1"
	block    = 4096
	headLen  = 24
	entryLen = 37
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// mark is what both headers hold: the generation in force. The salt is chosen
// by chance and is in each record's checksum, so that neither a record of an
// earlier generation nor bytes that a client has put into a command can be
// taken for a record of this one.
type mark struct {
	generation, salt uint64
	half             int64
}

func (m mark) encode() []byte {
	b := make([]byte, block)
	copy(b, magic)
	binary.LittleEndian.PutUint64(b[8:], m.generation)
	binary.LittleEndian.PutUint64(b[16:], m.salt)
	binary.LittleEndian.PutUint64(b[24:], uint64(m.half))
	binary.LittleEndian.PutUint32(b[32:], checksum(b[:32]))
	return b
}

func decodeMark(b []byte) (m mark, ok bool) {
	m = mark{
		generation: binary.LittleEndian.Uint64(b[8:]), salt: binary.LittleEndian.Uint64(b[16:]),
		half: int64(binary.LittleEndian.Uint64(b[24:])),
	}
	return m, string(b[:8]) == magic && binary.LittleEndian.Uint32(b[32:]) == checksum(b[:32]) &&
		m.half >= block && m.half <= maxHalf && m.half%block == 0
}

// readMarks gives the newest generation and which of the headers holds it.
func readMarks(f io.ReaderAt) (newest mark, slot int, err error) {
	b := make([]byte, 2*block)
	if _, err := f.ReadAt(b, 0); err != nil {
		return mark{}, 0, err
	}
	first, ok0 := decodeMark(b[:block])
	second, ok1 := decodeMark(b[block:])
	switch {
	case !ok0 && !ok1:
		return mark{}, 0, errors.New("neither of its headers is intact")
	case !ok1 || ok0 && first.generation >= second.generation:
		return first, 0, nil
	}
	return second, 1, nil
}

// recordLen is what the entries take in the file.
func recordLen(logs []*raft.Log) int64 {
	n := int64(headLen)
	for _, l := range logs {
		n += entryLen + int64(len(l.Data)) + int64(len(l.Extensions))
	}
	return (n + block - 1) / block * block
}

// record writes the entries into b, which must have room for exactly recordLen.
func (m mark) record(b []byte, sequence uint64, logs []*raft.Log) {
	p := b[:headLen]
	for _, l := range logs {
		p = binary.LittleEndian.AppendUint64(p, l.Index)
		p = binary.LittleEndian.AppendUint64(p, l.Term)
		p = append(p, byte(l.Type))
		p = binary.LittleEndian.AppendUint64(p, uint64(l.AppendedAt.Unix()))
		p = binary.LittleEndian.AppendUint32(p, uint32(l.AppendedAt.Nanosecond()))
		p = binary.LittleEndian.AppendUint32(p, uint32(len(l.Data)))
		p = binary.LittleEndian.AppendUint32(p, uint32(len(l.Extensions)))
		p = append(p, l.Data...)
		p = append(p, l.Extensions...)
	}
	clear(b[len(p):])
	binary.LittleEndian.PutUint32(b[4:], uint32(len(p)-headLen))
	binary.LittleEndian.PutUint64(b[8:], m.salt)
	binary.LittleEndian.PutUint64(b[16:], sequence)
	binary.LittleEndian.PutUint32(b, checksum(p[4:]))
}

// read looks at the record that b begins with. length is what it takes in the
// file; 0 when there is no intact one of this generation.
func (m mark) read(b []byte) (sequence uint64, payload []byte, length int) {
	if len(b) < headLen || binary.LittleEndian.Uint64(b[8:]) != m.salt {
		return 0, nil, 0
	}
	n := int64(headLen) + int64(binary.LittleEndian.Uint32(b[4:]))
	if n > int64(len(b)) || binary.LittleEndian.Uint32(b) != checksum(b[4:n]) {
		return 0, nil, 0
	}
	return binary.LittleEndian.Uint64(b[16:]), b[headLen:n], int((n + block - 1) / block * block)
}

// entries decodes a payload. The entries share its memory.
func entries(to []*raft.Log, b []byte) ([]*raft.Log, error) {
	cut := func(n uint32) []byte {
		v := b[:n:n]
		if b = b[n:]; n == 0 {
			return nil
		}
		return v
	}
	for len(b) > 0 {
		if len(b) < entryLen {
			return nil, errors.New("an entry is cut short")
		}
		h := b[:entryLen]
		data, extensions := binary.LittleEndian.Uint32(h[29:]), binary.LittleEndian.Uint32(h[33:])
		b = b[entryLen:]
		if uint64(data)+uint64(extensions) > uint64(len(b)) {
			return nil, errors.New("an entry is cut short")
		}
		to = append(to, &raft.Log{
			Index: binary.LittleEndian.Uint64(h), Term: binary.LittleEndian.Uint64(h[8:]), Type: raft.LogType(h[16]),
			AppendedAt: time.Unix(int64(binary.LittleEndian.Uint64(h[17:])), int64(binary.LittleEndian.Uint32(h[25:]))).UTC(),
			Data:       cut(data), Extensions: cut(extensions),
		})
	}
	return to, nil
}

// run is the records at the beginning of a half, up to the first that is not
// the next one.
type run struct {
	first, last uint64 // sequence numbers; none when first is 0
	payloads    [][]byte
}

func (m mark) run(half []byte) (r run) {
	for {
		sequence, payload, length := m.read(half)
		if length == 0 || r.first > 0 && sequence != r.last+1 {
			return r
		}
		if r.last = sequence; r.first == 0 {
			r.first = sequence
		}
		r.payloads = append(r.payloads, payload)
		half = half[min(length, len(half)):]
	}
}

// newest is the highest sequence number of any intact record on any block.
func (m mark) newest(halves []byte) (top uint64) {
	for ; len(halves) > 0; halves = halves[block:] {
		sequence, _, _ := m.read(halves)
		top = max(top, sequence)
	}
	return top
}

// replay gives the entries to be found in the two halves, in order; see the
// package comment for why these are the right ones. They may begin too late:
// that shows when they do not follow upon the log they are moved to.
func (m mark) replay(halves []byte) ([]*raft.Log, error) {
	older, newer := m.run(halves[:m.half]), m.run(halves[m.half:])
	if older.first > newer.first {
		older, newer = newer, older
	}
	// A crash can damage only the record that was being written, which is the
	// last. An intact one beyond the end of the run was acknowledged.
	if top := m.newest(halves); top != newer.last {
		return nil, fmt.Errorf("record %d is damaged, and record %d after it is not", newer.last+1, top)
	}
	payloads := newer.payloads
	if older.last+1 == newer.first {
		payloads = append(older.payloads, payloads...)
	}
	var logs []*raft.Log
	var err error
	for _, p := range payloads {
		if logs, err = entries(logs, p); err != nil {
			return nil, err
		}
	}
	return logs, nil
}
