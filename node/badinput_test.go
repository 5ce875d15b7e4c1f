package node_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/muster-registry/muster/fault"
)

const (
	cartPath     = "/v1/namespaces/default/services/cart"
	instancePath = cartPath + "/instances/i1"
	versionPath  = cartPath + "/versions/v1"
)

// Bad input, row by row, through every node of a running cluster: the answer,
// and that nothing has changed anywhere.
func TestBadInput(t *testing.T) {
	tr := newTrial(t, 3)
	tr.startAll()
	e := newEdge(t, tr)
	e.mustDo(t, "PUT", cartPath, `{"owner":"shop"}`)
	e.mustDo(t, "PUT", instancePath, `{"address":"10.0.0.1","port":80,"ttl":"24h","deregister_after":"24h"}`)
	e.mustDo(t, "PUT", versionPath, `{"format":"openapi","document":{"openapi":"3.1.0","info":{"title":"cart","version":"1"},"paths":{}}}`)

	t.Run("row 1, a body over the limit", e.tooLarge)
	t.Run("row 1, a body over the limit, announced", e.announced)
	t.Run("row 1, a body over the limit, sent in whole", e.wholeBodies)
	t.Run("rows 2 to 6, bodies", e.bodies)
	t.Run("row 6, names in paths", e.names)
	t.Run("row 7, paths", e.paths)
	t.Run("rows 9, 26 and 27, definitions", e.definitions)
	t.Run("row 10, gzip", e.gzip)
	t.Run("row 21, compare and set", e.oldRevision)
	t.Run("row 22, the far future", e.farFuture)
	t.Run("row 23, a forwarding loop", e.loop)
	t.Run("row 24, snapshots", e.snapshots)
	t.Run("row 11, bundles", e.bundles)
	t.Run("row 13, out of reach", e.outOfReach)
	t.Run("row 14, expensive", e.expensive)
	t.Run("row 15, no plain yes", e.noPlainYes)

	// After all of it the cluster works as before.
	e.mustDo(t, "DELETE", cartPath, "")
}

// limits are the calls that take a body and how much of one, by default.
var limits = map[string]int64{
	cartPath:                           4 << 20,
	instancePath:                       4 << 20,
	instancePath + "/status":           4 << 20,
	versionPath:                        16 << 20,
	"POST /v1/policy/revisions":        16 << 20,
	"POST /v1/authorize":               4 << 20,
	"POST /v1/tokens":                  4 << 20,
	"POST /v1/cluster/leader/transfer": 4 << 20,
}

func methodOf(target string) (method, path string) {
	if method, path, ok := strings.Cut(target, " "); ok {
		return method, path
	}
	return "PUT", target
}

func (e *edge) tooLarge(t *testing.T) {
	e.each(t, func(t *testing.T, node int) {
		for target, limit := range limits {
			method, path := methodOf(target)
			// HTTP/2 tells how much the node is willing to take: what it has
			// read, and one window.
			body := &counter{from: blanks{}}
			e.send(t, node, "HTTP/2.0", call{method, path, body, nil}).want(t, 413, fault.TooLarge)
			if most := limit + 3<<20; body.taken > most {
				t.Errorf("%s: %d bytes were taken of an endless body, the limit is %d", target, body.taken, limit)
			}
		}
		// In HTTP/1.1 a sender finds out only from the answer.
		conn := e.dial(t, node)
		defer conn.Close()
		fmt.Fprintf(conn, "PUT %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nTransfer-Encoding: chunked\r\n\r\n", cartPath, e.tr.token)
		done := make(chan int64)
		go func() {
			chunk := append(append([]byte("10000\r\n"), bytes.Repeat([]byte{' '}, 0x10000)...), "\r\n"...)
			var sent int64
			for sent < 1<<30 {
				n, err := conn.Write(chunk)
				sent += int64(n)
				if err != nil {
					break
				}
			}
			done <- sent
		}()
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		must(t, err)
		read(t, res).want(t, 413, fault.TooLarge)
		conn.Close()
		if sent := <-done; sent > 64<<20 {
			t.Errorf("%d bytes were taken of an endless chunked body", sent)
		}
	})
}

// What is announced to be too large is refused without a byte of it.
func (e *edge) announced(t *testing.T) {
	e.each(t, func(t *testing.T, node int) {
		for target, limit := range limits {
			method, path := methodOf(target)
			conn := e.dial(t, node)
			fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n",
				method, path, e.tr.token, limit+1)
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			must(t, err)
			read(t, res).want(t, 413, fault.TooLarge)
			conn.Close()
		}
	})
}

// Who sends all of a body before it looks for the answer gets one as well, on
// every port, also where nothing takes the body.
func (e *edge) wholeBodies(t *testing.T) {
	const size = 5 << 20
	body := bytes.Repeat([]byte{' '}, size)
	e.each(t, func(t *testing.T, node int) {
		n := e.tr.nodes[node]
		for _, c := range []struct {
			base, method, path string
			status             int
		}{
			{n.control, "PUT", cartPath, 413}, {n.control, "PUT", "/v1/quotas", 413}, {n.control, "PUT", "/v1/agent/service/register", 413},
			{n.control, "PUT", "/v1/nothing", 404}, {n.control, "PUT", "/v1/services", 405}, {n.control, "PUT", "/v1/kv/a", 501}, {n.control, "PUT", "/v1//services", 400},
			{n.policy, "POST", "/v1/data/a", 413}, {n.policy, "POST", "/nothing", 404},
		} {
			for _, length := range []string{fmt.Sprintf("Content-Length: %d", size), "Transfer-Encoding: chunked"} {
				conn, err := tls.Dial("tcp", strings.TrimPrefix(c.base, "https://"), &tls.Config{RootCAs: e.pool, NextProtos: []string{"http/1.1"}})
				must(t, err)
				must(t, conn.SetDeadline(time.Now().Add(time.Minute)))
				what := fmt.Sprintf("%s %s, %s", c.method, c.path, length)
				fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n%s\r\n\r\n", c.method, c.path, e.tr.token, length)
				if strings.HasPrefix(length, "T") {
					fmt.Fprintf(conn, "%x\r\n%s\r\n0\r\n\r\n", size, body)
				} else if _, err := conn.Write(body); err != nil {
					t.Errorf("%s: cut off while it sends: %v", what, err)
				}
				res, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil {
					t.Errorf("%s: no answer: %v", what, err)
				} else if a := read(t, res); a.status != c.status {
					t.Errorf("%s: %d %s", what, a.status, a.body)
				}
				conn.Close()
			}
		}
	})
}

// writes are the calls that change something, each with a body that would.
var writes = map[string]string{
	cartPath:                           `{"owner":"other"}`,
	instancePath:                       `{"address":"10.0.0.2","port":81}`,
	instancePath + "/status":           `{"status":"warning"}`,
	versionPath:                        `{"format":"openapi","document":{"openapi":"3.1.0","info":{"title":"x","version":"1"},"paths":{}}}`,
	"POST /v1/policy/revisions":        `{"modules":{"a.rego":"package a\n"}}`,
	"POST /v1/tokens":                  `{"role":"viewer"}`,
	"POST /v1/cluster/leader/transfer": `{"to":"nobody"}`,
	"POST /v1/authorize":               `{"input":{}}`,
}

func (e *edge) bodies(t *testing.T) {
	deep := strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000)
	// In each body, $ stands for the members of one that is good.
	everywhere := map[string]struct {
		body    string
		code    fault.Code
		pointer string
		says    string
	}{
		"10 000 levels":           {`{$,"x":` + deep + `}`, fault.BadRequest, "", ""},
		"10 000 levels, not shut": {strings.Repeat(`{"a":`, 10_000), fault.BadRequest, "", ""},
		"the same key twice":      {`{$,$}`, fault.BadRequest, "", "twice"},
		"an unknown field":        {`{$,"colour":"red"}`, fault.InvalidField, "/colour", ""},
		"another value follows":   {`{$} {}`, fault.BadRequest, "", ""},
		"something follows":       {`{$}x`, fault.BadRequest, "", ""},
		"a comma follows":         {`{$},`, fault.BadRequest, "", ""},
		"cut off":                 {`{$`, fault.BadRequest, "", ""},
		"invalid UTF-8":           {"{$,\"x\":\"\xff\"}", fault.BadRequest, "", ""},
		"a NUL":                   {"{$}\x00", fault.BadRequest, "", ""},
		"empty":                   {" ", fault.BadRequest, "", ""},
	}
	some := []struct {
		target, body string
		code         fault.Code
		pointer      string
		says         string
	}{
		{cartPath, `{"owner":"a","owner":"b"}`, fault.BadRequest, "", `"owner"`},
		{cartPath, `{"metadata":{"tier":1,"tier":2}}`, fault.BadRequest, "", `"tier"`},
		{cartPath, `{"metadata":{"a":{"b":[{"tier":1,"tier":1}]}}}`, fault.BadRequest, "", `"tier"`},
		{instancePath, `{"address":"10.0.0.2","port":81,"checks":[{"type":"ttl","colour":1}]}`, fault.InvalidField, "/checks/0/colour", ""},
		{instancePath, `{"address":"10.0.0.2","port":81,"checks":[{"type":"ttl","type":"tcp"}]}`, fault.BadRequest, "", `"type"`},
		{versionPath, `{"format":"openapi","format":"wsdl"}`, fault.BadRequest, "", `"format"`},
		{"POST /v1/policy/revisions", `{"modules":{"a.rego":"package a","a.rego":"package b"}}`, fault.BadRequest, "", "a.rego"},
		{"POST /v1/policy/revisions", `{"modules":{"a.rego":"package a"},"data":{"k":1,"k":2}}`, fault.BadRequest, "", "k"},
		{"POST /v1/authorize", `{"input":{"a":1,"a":2}}`, fault.BadRequest, "", "a"},
		{cartPath, `{"Owner":"other"}`, fault.InvalidField, "/Owner", ""},
		{cartPath, `{"owner":7}`, fault.InvalidField, "/owner", ""},
		{cartPath, `{"name":"ca\u0000rt"}`, fault.InvalidField, "/name", ""},
		{cartPath, `{"name":"ca\u0007rt"}`, fault.InvalidField, "/name", ""},
		{cartPath, "{\"name\":\"ca\xc0\xafrt\"}", fault.BadRequest, "", ""},
		{cartPath, `{"owner":"a\u0000b"}`, fault.InvalidField, "/owner", ""},
		{cartPath, `{"tags":["a\u0000b"]}`, fault.InvalidField, "/tags/0", ""},
		{cartPath, `{"metadata":{"a":"x\u0000y"}}`, fault.InvalidField, "/metadata", ""},
		{cartPath, `{"owner":"\ud800"}`, fault.BadRequest, "", ""},
		{instancePath, `{"id":"i\u00001","address":"10.0.0.2","port":81}`, fault.InvalidField, "/id", ""},
		{instancePath, `{"address":"10.0.0\u00002","port":81}`, fault.InvalidField, "/address", ""},
		{instancePath, `{"address":"10.0.0.2","port":81,"zone":"a\u001fb"}`, fault.InvalidField, "/zone", ""},
		{versionPath, `{"format":"openapi","version":"v\u00001","document":{}}`, fault.InvalidField, "/version", ""},
		{"POST /v1/tokens", `{"role":"viewer","namespaces":["a\u0000b"]}`, fault.InvalidField, "/namespaces/0", ""},
		{"POST /v1/policy/revisions", `{"modules":{"a\u0000.rego":"package a"}}`, fault.InvalidField, "/modules", ""},
	}
	e.each(t, func(t *testing.T, node int) {
		for target, good := range writes {
			for name, tc := range everywhere {
				body := strings.ReplaceAll(tc.body, "$", good[1:len(good)-1])
				t.Run(target+", "+name, func(t *testing.T) { e.body(t, node, target, body, tc.code, tc.pointer, tc.says) })
			}
		}
		for _, tc := range some {
			t.Run(tc.target+", "+tc.body, func(t *testing.T) { e.body(t, node, tc.target, tc.body, tc.code, tc.pointer, tc.says) })
		}
	})
}

func (e *edge) body(t *testing.T, node int, target, body string, code fault.Code, pointer, says string) {
	if target == "POST /v1/cluster/leader/transfer" && strings.TrimSpace(body) == "" {
		body = " " // a body of blanks is not the missing one, which is allowed
	}
	method, path := methodOf(target)
	began := time.Now()
	a := e.send(t, node, "HTTP/1.1", call{method, path, strings.NewReader(body), nil}).want(t, 400, code)
	if pointer != "" && !slices.ContainsFunc(a.Errors, func(x struct{ Pointer, File, Message string }) bool { return x.Pointer == pointer }) {
		t.Errorf("no error is at %s: %s", pointer, a.body)
	}
	if !strings.Contains(a.Detail, says) {
		t.Errorf("%q does not name %s", a.Detail, says)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("took %v", took)
	}
}

func (e *edge) names(t *testing.T) {
	e.each(t, func(t *testing.T, node int) {
		for _, bad := range []string{"ca%00rt", "ca%01rt", "ca%0art", "ca%7frt", "ca%ffrt", "ca%c0%afrt", "%20cart", "cart%20", "Cart", "-cart", "cart-", "c_art", "%e2%80%aecart", strings.Repeat("a", 64)} {
			for _, path := range []string{
				"/v1/namespaces/default/services/" + bad,
				"/v1/namespaces/" + bad + "/services/cart",
				cartPath + "/instances/" + bad,
				"/v1/namespaces/default/services/" + bad + "/instances/i1",
				"/v1/namespaces/default/services/" + bad + "/versions/v1",
			} {
				e.raw(t, node, "PUT", path).want(t, 400, fault.InvalidField)
			}
			e.raw(t, node, "GET", "/v1/discovery/default/"+bad).want(t, 400, fault.InvalidField)
			e.raw(t, node, "GET", "/v1/discovery/"+bad+"/cart").want(t, 400, fault.InvalidField)
		}
	})
}

func (e *edge) paths(t *testing.T) {
	bad := []string{
		"/a/../admin", "/v1/namespaces/a/../b", "/..", "/.", "/../", "/v1/..", "/v1/./services", "/v1/services/..", "/v1/services/../services",
		"/v1/%2e%2e/services", "/v1/%2E%2E/services", "/v1/.%2e/services", "/v1/%2e./services", "/v1/%2e/services", "/%2e%2e/%2e%2e/etc/passwd",
		"//", "//v1/services", "/v1//services", "/v1/namespaces//services", "/v1/discovery//cart", "/v1/discovery/default//", "///",
		`/v1\services`, `/v1/namespaces/a\..\b`, `/\`, `/v1/namespaces/default/services/cart\`,
		"/v1%2fservices", "/v1%2Fservices", "/%2f", "/v1/namespaces/default%2fservices/cart", "/v1/discovery/default%2Fcart", "/v1/discovery/default/cart%2f..",
		"/v1%5cservices", "/v1/namespaces/a%5c..%5cb", "/%5C", "/v1/discovery/default/cart%5c",
		"/v1/services;x=1", "/v1;/services", "/;", "/v1/namespaces/default/services/cart;v=1", "/v1/discovery/default/cart;x",
		"/v1/ser%00vices", "/%00", "/v1/%ff", "/v1/%c0%ae%c0%ae/services", "/v1/ser%0d%0avices",
		"/livez/..", "/livez;x", "//livez", "/readyz/../v1/services",
	}
	e.each(t, func(t *testing.T, node int) {
		for _, path := range bad {
			for _, method := range []string{"GET", "PUT"} {
				e.raw(t, node, method, path).want(t, 400, fault.BadPath)
			}
			e.raw(t, node, "DELETE", path+"?consistency=local").want(t, 400, fault.BadPath)
		}
		// In absolute form, the path is the same.
		e.raw(t, node, "GET", "https://x/v1/../services").want(t, 400, fault.BadPath)
		// A NUL as it is makes no request at all.
		if a := e.raw(t, node, "GET", "/v1/ser\x00vices"); a.status != 400 {
			t.Errorf("a raw NUL in the path: %d %s", a.status, a.body)
		}
		// HTTP/2 says the path in another way, and is held to the same.
		for _, path := range []string{"/v1/namespaces/a/../b", "/v1//services", "/v1/%2e%2e/services", "/v1%2fservices", "/v1%5cservices", "/v1;/services"} {
			e.send(t, node, "HTTP/2.0", call{"PUT", path, strings.NewReader("{}"), nil}).want(t, 400, fault.BadPath)
		}
		// What is only written otherwise is served as what it is.
		if a := e.raw(t, node, "GET", "/v1/discovery/default/%63art"); a.status != 200 {
			t.Errorf("an escaped letter: %d %s", a.status, a.body)
		}
	})
}

// bomb is an endless stream of gzip that grows a thousand times: one member
// after the other, all the same, so that to make it costs nothing.
type bomb struct {
	member []byte
	at     int
}

func newBomb(t *testing.T) *bomb {
	t.Helper()
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	must(t, err)
	_, err = z.Write(make([]byte, 1<<20))
	must(t, err)
	must(t, z.Close())
	return &bomb{member: b.Bytes()}
}

func (b *bomb) Read(p []byte) (n int, err error) {
	for n < len(p) {
		took := copy(p[n:], b.member[b.at:])
		n, b.at = n+took, (b.at+took)%len(b.member)
	}
	return n, nil
}

func (e *edge) gzip(t *testing.T) {
	packed := func(s string) []byte {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, err := z.Write([]byte(s))
		must(t, err)
		must(t, z.Close())
		return b.Bytes()
	}
	zipped := []string{"Content-Encoding", "gzip"}
	e.each(t, func(t *testing.T, node int) {
		for target, limit := range limits {
			method, path := methodOf(target)
			body := &counter{from: newBomb(t)}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			e.send(t, node, "HTTP/2.0", call{method, path, body, zipped}).want(t, 413, fault.TooLarge)
			runtime.ReadMemStats(&after)
			// The limit unpacked is a thousandth of it packed; the rest is what
			// one window lets through.
			if body.taken > limit/500+3<<20 {
				t.Errorf("%s: %d bytes were taken of an endless bomb", target, body.taken)
			}
			if grown := after.TotalAlloc - before.TotalAlloc; grown > uint64(16*limit) {
				t.Errorf("%s: a bomb took %d MiB at a limit of %d MiB", target, grown>>20, limit>>20)
			}
			for name, body := range map[string][]byte{
				"no gzip":   []byte(`{"owner":"x"}`),
				"cut short": packed(`{"owner":"x"}`)[:20],
				"empty":     nil,
			} {
				if a := e.send(t, node, "HTTP/1.1", call{method, path, bytes.NewReader(body), zipped}); a.status != 400 || a.Code != fault.BadRequest {
					t.Errorf("%s, says gzip and is %s: %d %s", target, name, a.status, a.body)
				}
			}
		}
	})
}

func (e *edge) oldRevision(t *testing.T) {
	now := e.send(t, 0, "HTTP/2.0", call{method: "GET", path: cartPath})
	current := strings.Trim(now.header.Get("ETag"), `"`)
	e.each(t, func(t *testing.T, node int) {
		for _, tc := range []call{
			{"PUT", cartPath, strings.NewReader(`{"owner":"x"}`), []string{"If-Match", `"1"`}},
			{"PUT", cartPath, strings.NewReader(`{"owner":"x"}`), []string{"If-None-Match", `*`}},
			{"DELETE", cartPath, nil, []string{"If-Match", `"1"`}},
			{"DELETE", cartPath, nil, []string{"If-Match", `"18446744073709551615"`}},
		} {
			a := e.send(t, node, "HTTP/1.1", tc).want(t, 412, fault.RevisionMismatch)
			if a.Current == nil || fmt.Sprint(*a.Current) != current {
				t.Errorf("%s: the current revision %s is not told: %s", tc.method, current, a.body)
			}
		}
		a := e.send(t, node, "HTTP/1.1", call{"PUT", cartPath + "x", strings.NewReader(`{}`), []string{"If-Match", `"1"`}}).want(t, 412, fault.RevisionMismatch)
		if a.Current == nil || *a.Current != 0 {
			t.Errorf("of no record: %s", a.body)
		}
		for _, unclear := range []string{`1`, `W/"1"`, `"1", "2"`, `*`, `"01"`, `"-1"`, `""`} {
			e.send(t, node, "HTTP/1.1", call{"PUT", cartPath, strings.NewReader(`{}`), []string{"If-Match", unclear}}).want(t, 400, fault.BadRequest)
		}
	})
}

func (e *edge) farFuture(t *testing.T) {
	e.each(t, func(t *testing.T, node int) {
		for _, path := range []string{cartPath, "/v1/discovery/default/cart", "/v1/services", instancePath, versionPath} {
			for _, revision := range []string{"1000000", "18446744073709551615"} {
				began := time.Now()
				a := e.send(t, node, "HTTP/2.0", call{method: "GET", path: path + "?min_revision=" + revision + "&wait=150ms"}).want(t, 503, fault.TooStale)
				if took := time.Since(began); took < 150*time.Millisecond || took > 20*time.Second {
					t.Errorf("%s: answered after %v, the deadline was 150ms", path, took)
				}
				if a.header.Get("Retry-After") == "" {
					t.Errorf("%s: no Retry-After", path)
				}
			}
		}
	})
}

func (e *edge) loop(t *testing.T) {
	leader := e.leader(t)
	forwarded := []string{"Muster-Hops", "1"}
	e.each(t, func(t *testing.T, node int) {
		for target, body := range writes {
			method, path := methodOf(target)
			if node == leader || path == "/v1/authorize" { // needs no other node
				continue
			}
			if a := e.send(t, node, "HTTP/2.0", call{method, path, strings.NewReader(body), forwarded}); a.status != 508 || a.Code != fault.LoopDetected {
				t.Errorf("%s: %d %s", target, a.status, a.body)
			}
		}
		for _, tc := range []call{{"DELETE", cartPath, nil, forwarded}, {"POST", instancePath + "/heartbeat", nil, forwarded}, {"DELETE", "/v1/cluster/members/n9", nil, forwarded}} {
			if node != leader {
				e.send(t, node, "HTTP/2.0", tc).want(t, 508, fault.LoopDetected)
			}
		}
		if node == leader {
			// One hop leads here, and is the last that is needed.
			e.send(t, node, "HTTP/2.0", call{"DELETE", cartPath + "x", nil, forwarded}).want(t, 404, fault.ServiceNotFound)
		}
		for _, unclear := range []string{"x", "-1", "1.5"} {
			e.send(t, node, "HTTP/2.0", call{"DELETE", cartPath, nil, []string{"Muster-Hops", unclear}}).want(t, 400, fault.BadRequest)
		}
	})
}
