package decision

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// logService is a log service on loopback that can be made to fail.
type logService struct {
	*httptest.Server
	mu     sync.Mutex
	answer func(w http.ResponseWriter, r *http.Request) bool // true: it has answered
	got    map[string]int                                    // events by decision id
	calls  int
}

func newLogService(t *testing.T) *logService {
	t.Helper()
	s := &logService{got: map[string]int{}}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.calls++
		answer := s.answer
		s.mu.Unlock()
		if answer != nil && answer(w, r) {
			return
		}
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			t.Errorf("the body is not compressed: %v", err)
			return
		}
		var events []struct {
			ID     string          `json:"decision_id"`
			Path   string          `json:"path"`
			Labels map[string]any  `json:"labels"`
			Input  json.RawMessage `json:"input"`
		}
		if err := json.NewDecoder(z).Decode(&events); err != nil {
			t.Errorf("the body is not an array of events: %v", err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, e := range events {
			if s.got[e.ID]++; strings.Contains(string(e.Input), "s3cret") {
				t.Errorf("an input is not masked: %s", e.Input)
			}
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *logService) behave(answer func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

func (s *logService) has(ids ...string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if s.got[id] == 0 {
			return false
		}
	}
	return true
}

func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("in vain waited until %s", what)
		}
	}
}

func newUpload(t *testing.T, o UploadOptions) (*Upload, *Metrics) {
	t.Helper()
	o.Logger, o.Interval, o.Retry = slog.New(slog.DiscardHandler), 5*time.Millisecond, 20*time.Millisecond
	if o.SpillFile == "" {
		o.SpillFile = filepath.Join(t.TempDir(), "spill")
	}
	m := NewMetrics(prometheus.NewRegistry())
	u, err := NewUpload(o, m)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = u.Close() })
	return u, m
}

// write gives the sink n events and their ids.
func write(t *testing.T, s Sink, n int, allow bool) (ids []string) {
	t.Helper()
	for range n {
		r := record(t, 200)
		r.Result.Allow = allow
		if err := s.Write(newEvent(r, defaults)); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, r.ID)
	}
	return ids
}

func TestUploadDelivers(t *testing.T) {
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("the-token\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newLogService(t)
	s.behave(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != "POST" || r.URL.Path != "/logs" || r.Header.Get("Authorization") != "Bearer the-token" || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %s %v", r.Method, r.URL, r.Header)
		}
		return false
	})
	u, m := newUpload(t, UploadOptions{URL: s.URL + "/logs", TokenFile: token, Batch: 4 << 10})
	ids := append(write(t, u, 50, true), write(t, u, 50, false)...)
	until(t, "all have arrived", func() bool { return s.has(ids...) })
	until(t, "nothing waits", func() bool { return testutil.ToFloat64(m.waiting) == 0 })
	if n := testutil.ToFloat64(m.sent); n != 100 {
		t.Errorf("sent %v", n)
	}
}

func TestUploadOutlastsAService(t *testing.T) {
	for name, fail := range map[string]func(w http.ResponseWriter, r *http.Request) bool{
		"that fails":             func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(500); return true },
		"that refuses the token": func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(403); return true },
		"that is busy": func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(429)
			return true
		},
		"that hangs up": func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) },
		"that stalls": func(_ http.ResponseWriter, r *http.Request) bool {
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
			return true
		},
		"that leads elsewhere": func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasPrefix(r.URL.Path, "/elsewhere") {
				t.Error("the redirect was followed")
			}
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newLogService(t)
			s.behave(fail)
			timeout := time.Minute
			if name == "that stalls" {
				timeout = time.Second // a good call that takes longer is made again
			}
			u, m := newUpload(t, UploadOptions{URL: s.URL, Timeout: timeout, Closing: time.Millisecond})
			ids := write(t, u, 5, false)
			until(t, "it was tried twice", func() bool { return testutil.ToFloat64(m.errors.WithLabelValues("upload")) >= 2 })
			if s.has(ids[0]) {
				t.Error("something arrived")
			}
			s.behave(nil)
			until(t, "all have arrived", func() bool { return s.has(ids...) })
		})
	}
}

// While the service is away, memory stays bounded: what was allowed goes
// first, and no refusal is lost, also over a restart.
func TestRefusalsOutlastEverything(t *testing.T) {
	s := newLogService(t)
	s.behave(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(500); return true })
	spill := filepath.Join(t.TempDir(), "spill")
	o := UploadOptions{URL: s.URL, SpillFile: spill, Buffer: 32 << 10, Batch: 8 << 10, Closing: time.Millisecond}
	u, m := newUpload(t, o)
	var refused []string
	for range 20 {
		write(t, u, 20, true)
		refused = append(refused, write(t, u, 20, false)...)
		u.mu.Lock()
		if u.bytes > o.Buffer {
			t.Fatalf("%d bytes in memory", u.bytes)
		}
		u.mu.Unlock()
	}
	if testutil.ToFloat64(m.dropped.WithLabelValues("buffer")) == 0 {
		t.Error("nothing was dropped: the test does not test")
	}
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(spill)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range refused {
		if !strings.Contains(string(b), id) {
			t.Fatalf("refusal %s does not wait on disk", id)
		}
	}
	s.behave(nil)
	u, m = newUpload(t, o)
	more := write(t, u, 5, false)
	until(t, "all refusals have arrived", func() bool { return s.has(refused...) && s.has(more...) })
	until(t, "nothing waits", func() bool { return testutil.ToFloat64(m.waiting) == 0 })
	if info, err := os.Stat(spill); err != nil || info.Size() != 0 {
		t.Errorf("%v %v", info.Size(), err)
	}
}

// A service may take less at once than a batch.
func TestUploadSendsLessAtOnce(t *testing.T) {
	s := newLogService(t)
	s.behave(func(w http.ResponseWriter, r *http.Request) bool {
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			t.Error(err)
			return false
		}
		var events []json.RawMessage
		if err := json.NewDecoder(z).Decode(&events); err != nil {
			t.Error(err)
		}
		if len(events) > 3 {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			return true
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, e := range events {
			var x struct {
				ID string `json:"decision_id"`
			}
			_ = json.Unmarshal(e, &x)
			s.got[x.ID]++
		}
		return true
	})
	u, _ := newUpload(t, UploadOptions{URL: s.URL})
	ids := write(t, u, 20, false)
	until(t, "all have arrived", func() bool { return s.has(ids...) })
}

func TestSpillAfterACrash(t *testing.T) {
	name := filepath.Join(t.TempDir(), "spill")
	long := strings.Repeat("x", 200<<10)
	if err := os.WriteFile(name, []byte(fmt.Sprintf("%q\n%q\n{\"cut", "a", long)), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := openSpill(name)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if err := s.add([]byte(`"b"`)); err != nil {
		t.Fatal(err)
	}
	var got []string
	for s.left() > 0 {
		events, next, err := s.read(100)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			got = append(got, string(e))
		}
		if err := s.done(next); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{`"a"`, fmt.Sprintf("%q", long), `"b"`}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%.300q", got)
	}
}
