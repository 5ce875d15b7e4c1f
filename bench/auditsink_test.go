package main

import (
	"bytes"
	"compress/gzip"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestSinkMissesLines: what came twice is counted once, and what did not come is
// missed.
func TestSinkMissesLines(t *testing.T) {
	s := &auditSink{nodes: map[string]*sunk{}}
	post := func(zip bool, body string) {
		r := httptest.NewRequest("POST", "/", strings.NewReader(body))
		if zip {
			var b bytes.Buffer
			z := gzip.NewWriter(&b)
			if _, err := z.Write([]byte(body)); err != nil {
				t.Fatal(err)
			}
			if err := z.Close(); err != nil {
				t.Fatal(err)
			}
			r = httptest.NewRequest("POST", "/", &b)
			r.Header.Set("Content-Encoding", "gzip")
		}
		w := httptest.NewRecorder()
		if s.ServeHTTP(w, r); w.Code != http.StatusOK {
			t.Fatal(w.Code)
		}
	}
	post(false, `[{"seq":7,"node":"n1","type":"lookup"},{"seq":8,"node":"n1","type":"change"}]`)
	post(true, `[{"seq":8,"node":"n1","type":"change"},{"seq":9,"node":"n1","type":"lookup"},{"seq":1,"node":"n2","type":"lookup"}]`)
	if err := s.check(); err != nil {
		t.Fatal(err)
	}
	if n := s.nodes["n1"]; n.last != 9 || n.lines != 3 || n.lookups != 2 {
		t.Errorf("%+v", n)
	}
	post(true, `[{"seq":11,"node":"n1","type":"lookup"}]`)
	if err := s.check(); err == nil || !strings.Contains(err.Error(), "line 11 of node n1 after its line 9") {
		t.Errorf("a line is missing, and the check says %v", err)
	}
}
