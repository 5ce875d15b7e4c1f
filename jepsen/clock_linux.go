package jepsen

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// Programs ask the vDSO for the time: code that the kernel maps into each
// process. A process whose copy of it is another has another wall clock, while
// the clock that only counts goes on, as when a time service or a person sets
// the time. No namespace can do that, and the program under test is the one that
// is shipped.

// wrong is the wall clock of one process that was tampered with.
type wrong struct {
	at uint64 // address of the word that is added to it, in seconds; 0: nothing was done yet
}

// SetClock moves what the node's process takes for the time of day to be by so
// much off the truth, in whole seconds; 0 sets it right. A process that is
// started again has the right time. The process stands still for a few
// milliseconds meanwhile.
func (n *Node) SetClock(by time.Duration) error {
	if n.process == nil || !n.process.Alive() {
		return fmt.Errorf("%s does not run", n.ID)
	}
	if err := n.process.setClock(int64(by / time.Second)); err != nil {
		return fmt.Errorf("the clock of %s: %w", n.ID, err)
	}
	n.shifts = append(n.shifts, shift{at: time.Now(), by: by})
	return nil
}

// ClockOff is how far the time of day in an answer is off, as far as a second
// and the time of the call let that be told.
func (a *Answer) ClockOff() (time.Duration, error) {
	said, err := http.ParseTime(a.Header.Get("Date"))
	if err != nil {
		return 0, fmt.Errorf("the answer has no date: %w", err)
	}
	return said.Sub(a.Invoke.Add(a.Took() / 2).Truncate(time.Second)), nil
}

// Tamperable says why the clocks of processes cannot be moved here; nil where
// they can.
func Tamperable() error {
	if runtime.GOARCH != "amd64" {
		return fmt.Errorf("the clock of a process can be moved on amd64 alone, not on %s", runtime.GOARCH)
	}
	if self, err := os.Readlink("/proc/self"); err != nil || self != strconv.Itoa(os.Getpid()) {
		return fmt.Errorf("/proc shows other process numbers than this namespace has: %q, %v", self, err)
	}
	_, _, err := clockIn(os.Getpid())
	return err
}

func (p *Process) setClock(seconds int64) (err error) {
	pid := p.cmd.Process.Pid
	if err := p.Pause(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Resume()) }()
	memory, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer memory.Close()
	if p.wrong.at == 0 {
		if p.wrong.at, err = tamper(pid, p, memory); err != nil {
			return err
		}
	} else if _, err := p.standsStill(pid); err != nil {
		return err
	}
	_, err = memory.WriteAt(binary.LittleEndian.AppendUint64(nil, uint64(seconds)), int64(p.wrong.at))
	return err
}

// code is where a function is in the memory of a process.
type code struct{ at, size uint64 }

// clockIn finds, in the vDSO of a process, the function that tells the time,
// and one that Go never calls, whose room can be used.
func clockIn(pid int) (clock, room code, err error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return clock, room, err
	}
	var from, to uint64
	for line := range strings.Lines(string(maps)) {
		if strings.HasSuffix(line, "[vdso]\n") {
			if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err != nil {
				return clock, room, err
			}
		}
	}
	if from == 0 {
		return clock, room, fmt.Errorf("process %d has no vDSO: its clock cannot be moved", pid)
	}
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return clock, room, err
	}
	defer memory.Close()
	image := make([]byte, to-from)
	if _, err := memory.ReadAt(image, int64(from)); err != nil {
		return clock, room, err
	}
	file, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return clock, room, fmt.Errorf("the vDSO: %w", err)
	}
	symbols, err := file.DynamicSymbols()
	if err != nil {
		return clock, room, fmt.Errorf("the vDSO: %w", err)
	}
	for _, s := range symbols {
		switch s.Name {
		case "__vdso_clock_gettime":
			clock = code{from + s.Value, s.Size}
		case "__vdso_gettimeofday":
			room = code{from + s.Value, s.Size}
		}
	}
	if clock.size < jump || room.size < uint64(len(lie))+16 {
		return clock, room, fmt.Errorf("the vDSO of this kernel has no room: clock_gettime takes %d bytes, gettimeofday %d", clock.size, room.size)
	}
	return clock, room, nil
}

// jump is the length of a jump to anywhere near.
const jump = 5

// lie is clock_gettime(id, to) by way of the kernel, and then a number of
// seconds added, where the clock is that of the day. The number is the word
// after it, at the next multiple of 8; its distance is filled in.
var lie = []byte{
	0xb8, 228, 0, 0, 0, // mov eax, SYS_clock_gettime
	0x0f, 0x05, // syscall
	0x85, 0xff, // test edi, edi: CLOCK_REALTIME is 0
	0x75, 15, // jne to the end
	0x48, 0x85, 0xc0, // test rax, rax
	0x75, 10, // jne to the end
	0x48, 0x8b, 0x15, 0, 0, 0, 0, // mov rdx, [rip+distance]
	0x48, 0x01, 0x16, // add [rsi], rdx
	0xc3, // ret
}

const distanceAt = 19 // of the distance in lie

// tamper gives a process that stands still another clock_gettime. It returns
// the address of the number of seconds that it adds, which is 0 yet.
func tamper(pid int, p *Process, memory *os.File) (at uint64, err error) {
	clock, room, err := clockIn(pid)
	if err != nil {
		return 0, err
	}
	for range 100 {
		counters, err := p.standsStill(pid)
		if err != nil {
			return 0, err
		}
		if !within(counters, code{clock.at, jump}) && !within(counters, room) {
			return replace(memory, clock, room)
		}
		// Let who is in the midst of it go on.
		if err := errors.Join(p.Resume(), p.Pause()); err != nil {
			return 0, err
		}
	}
	return 0, fmt.Errorf("process %d never leaves the function that tells the time", pid)
}

func replace(memory *os.File, clock, room code) (at uint64, err error) {
	program := bytes.Clone(lie)
	at = (room.at + uint64(len(program)) + 7) &^ 7
	binary.LittleEndian.PutUint32(program[distanceAt:], uint32(at-(room.at+distanceAt+4)))
	leap := binary.LittleEndian.AppendUint32([]byte{0xe9}, uint32(int32(int64(room.at)-int64(clock.at)-jump)))
	for _, w := range []struct {
		at   uint64
		what []byte
	}{{at, make([]byte, 8)}, {room.at, program}, {clock.at, leap}} {
		if _, err := memory.WriteAt(w.what, int64(w.at)); err != nil {
			return 0, fmt.Errorf("write into the vDSO: %w", err)
		}
	}
	return at, nil
}

func within(counters []uint64, s code) bool {
	for _, c := range counters {
		if c >= s.at && c < s.at+s.size {
			return true
		}
	}
	return false
}

// standsStill waits until all threads of a stopped process are, and tells where
// in the program each of them is.
func (p *Process) standsStill(pid int) (counters []uint64, err error) {
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		counters, err = threads(pid)
		if err == nil || time.Now().After(end) {
			return counters, err
		}
	}
}

func threads(pid int) (counters []uint64, err error) {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil, err
	}
	for _, t := range tasks {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/stat", pid, t.Name()))
		if err != nil {
			return nil, err
		}
		if _, after, _ := strings.Cut(string(stat), ") "); !strings.HasPrefix(after, "T") {
			return nil, fmt.Errorf("thread %s does not stand still", t.Name())
		}
		// "-1 stack counter", or the number of a call to the kernel and its
		// arguments before those two.
		where, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/syscall", pid, t.Name()))
		if err != nil {
			return nil, err
		}
		words := strings.Fields(string(where))
		counter, err := strconv.ParseUint(strings.TrimPrefix(words[len(words)-1], "0x"), 16, 64)
		if err != nil {
			return nil, fmt.Errorf("thread %s is at %q", t.Name(), where)
		}
		counters = append(counters, counter)
	}
	return counters, nil
}

// shift is a move of a node's clock.
type shift struct {
	at time.Time
	by time.Duration
}

// truth turns the stamps of a node's log, in their order, into the right time.
type truth struct {
	shifts []shift
	last   time.Time
}

// leeway is what the stamps of neighbouring lines, and the moment of a shift,
// may be off.
const leeway = 500 * time.Millisecond

// of gives the right time of the next line: by the first of the clock's shifts
// that puts it between the line before and the next shift.
func (t *truth) of(stamp time.Time) time.Time {
	by := time.Duration(0)
	for i, s := range t.shifts {
		right := stamp.Add(-by)
		if right.Before(s.at.Add(leeway)) && !right.Before(t.last.Add(-leeway)) {
			break
		}
		by = t.shifts[i].by
	}
	right := stamp.Add(-by)
	if right.After(t.last) {
		t.last = right
	}
	return right
}
