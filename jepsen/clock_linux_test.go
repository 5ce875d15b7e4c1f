package jepsen

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// clockEnv makes this program what TestClock moves the clock of: it writes the
// time of day, and the time since its start, over and over, in many threads.
const clockEnv = "JEPSEN_CLOCK"

func runClock() error {
	began := time.Now()
	for range 4 {
		go func() {
			for {
				_ = time.Now() // somebody is nearly always in the midst of it
			}
		}()
	}
	for {
		now := time.Now()
		if _, err := fmt.Println(now.UnixNano(), now.Sub(began).Nanoseconds()); err != nil {
			return err
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// A process whose clock is moved has another time of day, at once and as often
// as it is moved; the clock that only counts goes on.
func TestClock(t *testing.T) {
	if why := Tamperable(); why != nil {
		leftOut(t, why)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(t.TempDir(), "log")
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), clockEnv+"=1")
	p, err := Launch(cmd, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	// off is how far the newest time that it told is from the truth.
	off := func() (by time.Duration, since int64) {
		t.Helper()
		b, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		lines := bytes.Split(b, []byte("\n"))
		if len(lines) < 2 {
			return 0, 0
		}
		var told int64
		if _, err := fmt.Sscan(string(lines[len(lines)-2]), &told, &since); err != nil {
			t.Fatal(err)
		}
		return time.Unix(0, told).Sub(time.Now().Round(0)), since
	}
	await := func(want time.Duration) {
		t.Helper()
		_, was := off()
		for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
			by, since := off()
			if since > was && (by-want).Abs() < 20*time.Second {
				return
			}
			if time.Now().After(end) || p.Died() != nil {
				t.Fatalf("its clock is off by %s, want %s; %v", by, want, p.Died())
			}
		}
	}
	await(0)
	for i := range 20 {
		want := []time.Duration{time.Minute, -time.Minute, 0}[i%3]
		if err := p.setClock(int64(want / time.Second)); err != nil {
			t.Fatal(err)
		}
		await(want)
	}
	p.Kill()
	b, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	var last int64
	for line := range strings.Lines(string(b)) {
		var told, since int64
		if n, _ := fmt.Sscan(line, &told, &since); n < 2 {
			continue // it was killed in the midst of it
		}
		if since < last {
			t.Fatalf("the clock that counts went back: %s after %d", line, last)
		}
		last = since
	}
	if last == 0 {
		t.Fatal("it told nothing")
	}
}

// Stamps of a log are put right by what was done to its clock.
func TestTruth(t *testing.T) {
	t0 := time.Unix(1e9, 0)
	at := func(s float64) time.Time { return t0.Add(time.Duration(s * float64(time.Second))) }
	shifts := []shift{{at(100), time.Minute}, {at(104), 0}, {at(108), -time.Minute}, {at(112), 0}}
	right := truth{shifts: shifts}
	for s := 0.0; s < 120; s += 0.7 {
		stamp := at(s)
		for _, sh := range shifts {
			if !sh.at.After(at(s)) {
				stamp = at(s).Add(sh.by)
			}
		}
		if got := right.of(stamp); got.Sub(at(s)).Abs() > 2*leeway {
			t.Errorf("at %.1f s the log says %s, taken for %s", s, stamp.Sub(t0), got.Sub(t0))
		}
	}
}
