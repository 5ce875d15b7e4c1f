package rest_test

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/muster-registry/muster/api/rest"
)

// A body that does not come is not waited for: neither from a stranger, who is
// answered at once, nor from a caller, whose request ends at the time-out.
func TestABodyThatDoesNotCome(t *testing.T) {
	e := newEdge(t, rest.Options{BodyTimeout: 100 * time.Millisecond})
	server := httptest.NewServer(e.api)
	defer server.Close()
	for authorization, status := range map[string]int{"": 401, "Authorization: Bearer publisher-token\r\n": 400} {
		for _, gzip := range []string{"", "Accept-Encoding: gzip\r\n"} {
			conn, err := net.Dial("tcp", server.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			fmt.Fprintf(conn, "PUT %s HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n%s%s\r\n{", cart, authorization, gzip)
			_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatalf("%q is not answered: %v", authorization, err)
			}
			if res.StatusCode != status {
				t.Errorf("%q: %d, want %d", authorization, res.StatusCode, status)
			}
		}
	}
}

// What a page of another origin makes a browser send changes nothing, whatever
// certificate the browser holds.
func TestPagesOfOtherOrigins(t *testing.T) {
	e := newEdge(t, rest.Options{})
	for name, h := range map[string]http.Header{
		"fetch metadata": header("Sec-Fetch-Site", "cross-site"),
		"origin":         header("Origin", "https://evil.example"),
	} {
		if w := e.do(ask{caller: "operator", method: "POST", path: "/v1/policy/rollback", header: h}); w.Code != 403 {
			t.Errorf("%s: %d, want 403", name, w.Code)
		}
	}
	if w := e.do(ask{caller: "operator", method: "PUT", path: cart, body: `{}`, header: header("Origin", "https://muster.test", "Sec-Fetch-Site", "same-origin")}); w.Code == 403 {
		t.Errorf("a page of muster's own is refused: %s", w.Body)
	}
}
