package rest_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/api/rest"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/flow"
	"github.com/muster-registry/muster/identity"
)

func TestTokens(t *testing.T) {
	e := newEdge(t, rest.Options{})
	w := e.call("operator", "POST", "/v1/tokens", `{"role":"publisher","namespaces":["shop","bank","shop"],"ttl":"1h"}`, 201)
	var made rest.NewToken
	if err := json.Unmarshal(w.Body.Bytes(), &made, json.RejectUnknownMembers(true)); err != nil {
		t.Fatal(err)
	}
	if left := time.Until(made.ExpiresAt); left > time.Hour || left < 59*time.Minute || strings.Join(made.Namespaces, " ") != "bank shop" || made.Role != "publisher" {
		t.Errorf("made %+v", made)
	}
	if w.Header().Get("Location") != "/v1/tokens/"+made.ID || w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("headers %v", w.Header())
	}
	use := ask{method: "PUT", path: cart, body: `{}`, header: header("Authorization", "Bearer "+made.Token)}
	if w := e.do(use); w.Code != 201 {
		t.Fatalf("the token is refused: %d %s", w.Code, w.Body)
	}
	elsewhere := use
	elsewhere.path = "/v1/namespaces/other/services/cart"
	refused(t, e.do(elsewhere), 403, fault.Forbidden)
	list := e.call("operator", "GET", "/v1/tokens", "", 200).Body.String()
	if !strings.Contains(list, made.ID) || strings.Contains(list, made.Token) || strings.Contains(list, identity.Hash(made.Token)) {
		t.Errorf("the list is %s", list)
	}
	e.call("operator", "DELETE", "/v1/tokens/"+made.ID, "", 204)
	refused(t, e.do(use), 401, fault.Unauthenticated)
	refused(t, e.do(ask{caller: "operator", method: "DELETE", path: "/v1/tokens/" + made.ID}), 404, fault.NotFound)
	refused(t, e.do(ask{caller: "operator", method: "DELETE", path: "/v1/tokens/x"}), 400, fault.InvalidField)
	for body, code := range map[string]fault.Code{
		`{}`: fault.InvalidField, `{"role":"root"}`: fault.InvalidField, `{"role":"viewer","ttl":"1ms"}`: fault.InvalidField, `{"role":"viewer","ttl":3600}`: fault.InvalidField,
		`{"role":"viewer","ttl":"-1h"}`: fault.InvalidField, `{"role":"viewer","namespaces":["A"]}`: fault.InvalidField, `{"role":"viewer","id":"x"}`: fault.InvalidField, ``: fault.BadRequest,
	} {
		refused(t, e.do(ask{caller: "operator", method: "POST", path: "/v1/tokens", body: body}), 400, code)
	}
}

// A repeat cannot show the secret again, and must not show another's.
func TestTokenOfARepeat(t *testing.T) {
	e := newEdge(t, rest.Options{})
	var first *command.Put
	e.submit = func(in *command.Intent) error {
		if put := in.Command.GetPut(); put != nil && first == nil {
			first = put
		} else if put != nil {
			put.Name = "fedcba9876543210" // as if the first answer were given again
		}
		return nil
	}
	for i, status := range []int{201, 409} {
		w := e.do(ask{caller: "operator", method: "POST", path: "/v1/tokens", body: `{"role":"viewer"}`, header: header("Idempotency-Key", "k")})
		if w.Code != status || (i == 1 && strings.Contains(w.Body.String(), "muster_")) {
			t.Errorf("%d %s, want %d", w.Code, w.Body, status)
		}
	}
}

func TestCredentialsThatAreNone(t *testing.T) {
	e := newEdge(t, rest.Options{})
	for _, h := range []http.Header{
		header("Authorization", ""), header("Authorization", "Bearer"), header("Authorization", "Basic b3BlcmF0b3I6eA=="), header("Authorization", "operator-token"),
		header("Authorization", "Bearer operator-token", "Authorization", "Bearer viewer-token"), header("Authorization", "Bearer "+strings.Repeat(".", 1<<20)),
	} {
		refused(t, e.do(ask{method: "GET", path: "/v1/services", header: h}), 401, fault.Unauthenticated)
	}
}

func TestTooManyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEdgeBehind(t, door.Options{Flow: flow.New(flow.Limits{Blocked: 2, BlockedPerCaller: 2})}, rest.Options{})
		e.call("publisher", "PUT", cartA+"?create_service=true", instance, 201)
		_, one := e.begin(ask{caller: "viewer", method: "GET", path: find + "?index=1&wait=1m"})
		_, two := e.begin(ask{caller: "viewer", method: "GET", path: find + "?index=1&wait=1m"})
		synctest.Wait()
		// Those that wait are bounded apart, and take nothing from the others.
		refused(t, e.do(ask{caller: "viewer", method: "GET", path: find + "?index=1&wait=1m"}), 429, fault.RateLimited)
		e.call("viewer", "GET", find, "", 200)
		e.call("", "GET", "/livez", "", 200)
		e.call("", "GET", "/readyz", "", 200)
		<-one
		<-two
		e.call("viewer", "GET", find, "", 200)
	})
}

func TestAnswersAreCompressedForWhoAsks(t *testing.T) {
	e := newEdge(t, rest.Options{})
	for _, id := range []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"} {
		e.call("publisher", "PUT", cart+"/instances/"+id+"?create_service=true", instance, 201)
	}
	plain := e.call("viewer", "GET", find, "", 200)
	if plain.Header().Get("Content-Encoding") != "" || plain.Body.Len() < 1024 {
		t.Fatalf("%d bytes, %v", plain.Body.Len(), plain.Header())
	}
	w := e.do(ask{caller: "viewer", method: "GET", path: find, header: header("Accept-Encoding", "gzip")})
	if w.Header().Get("Content-Encoding") != "gzip" {
		t.Fatalf("headers %v", w.Header())
	}
	complete(t, w)
	z, err := gzip.NewReader(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(z); err != nil || !bytes.Equal(got, plain.Body.Bytes()) {
		t.Errorf("unpacked to %s, %v", got, err)
	}
	// What is small stays as it is, and so do refusals and empty answers.
	for path, status := range map[string]int{cart + "/instances/a": 200, "/v1/nothing": 404} {
		w := e.do(ask{caller: "viewer", method: "GET", path: path, header: header("Accept-Encoding", "gzip")})
		if w.Code != status || w.Header().Get("Content-Encoding") != "" {
			t.Errorf("%s: %d %v", path, w.Code, w.Header())
		}
	}
	w = e.do(ask{caller: "publisher", method: "POST", path: cartA + "/heartbeat", header: header("Accept-Encoding", "gzip")})
	if w.Code != 204 || w.Body.Len() != 0 {
		t.Errorf("%d %q", w.Code, w.Body)
	}
}

func TestSnapshots(t *testing.T) {
	e := newEdge(t, rest.Options{})
	content := "snapshot" + strings.Repeat("0123456789abcdef", 1000)
	e.snapshot = func(w io.Writer) error { _, err := io.WriteString(w, content); return err }
	w := e.do(ask{caller: "operator", method: "GET", path: "/v1/snapshot", header: header("Accept-Encoding", "gzip")})
	if w.Code != 200 || w.Body.String() != content || w.Header().Get("Content-Type") != "application/octet-stream" || w.Header().Get("Content-Encoding") != "" {
		t.Errorf("%d, %d bytes, %v", w.Code, w.Body.Len(), w.Header())
	}
	complete(t, w)

	e.snapshot = func(io.Writer) error { return fault.New(fault.NotReady, "a restore is in progress") }
	refused(t, e.do(ask{caller: "operator", method: "GET", path: "/v1/snapshot"}), 503, fault.NotReady)

	w = e.call("operator", "PUT", "/v1/snapshot?dry_run=true", content, 200)
	if !strings.HasPrefix(w.Body.String(), `{"dry_run":true,"cluster_id":"c1"`) {
		t.Errorf("the report is %s", w.Body)
	}
	e.call("operator", "PUT", "/v1/snapshot?dry_run=false&force=true", content, 200)
	refused(t, e.do(ask{caller: "operator", method: "PUT", path: "/v1/snapshot", body: "something"}), 422, fault.InvalidSnapshot)
	refused(t, e.do(ask{caller: "operator", method: "PUT", path: "/v1/snapshot?force=maybe", body: content}), 400, fault.BadRequest)
	refused(t, e.do(ask{caller: "operator", method: "PUT", path: "/v1/snapshot", body: content, header: header("Content-Encoding", "gzip")}), 415, fault.UnsupportedMediaType)
}

// Nobody is to take half a snapshot for a whole one.
func TestSnapshotThatBreaksOff(t *testing.T) {
	e := newEdge(t, rest.Options{})
	e.snapshot = func(w io.Writer) error {
		_, _ = w.Write(make([]byte, 1<<20))
		return errors.New("disk failure")
	}
	s := e.serve()
	for _, encoding := range []string{"identity", "gzip"} {
		r, err := http.NewRequest(http.MethodGet, s.URL+"/v1/snapshot", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer operator-token")
		r.Header.Set("Accept-Encoding", encoding)
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			continue // broken off before the first byte left
		}
		_, err = io.Copy(io.Discard, res.Body)
		res.Body.Close()
		if err == nil {
			t.Errorf("%s: half a snapshot arrived as a whole one", encoding)
		}
	}
}

// A definition that was replaced while it was looked up is looked up again.
func TestDocumentThatIsReplacedMeanwhile(t *testing.T) {
	e := newEdge(t, rest.Options{})
	e.call("publisher", "PUT", cart, `{}`, 201)
	e.call("publisher", "PUT", cartV1, `{"format":"openapi","document":`+openapi+`}`, 201)
	before := e.State()
	second := strings.Replace(openapi, `"cart"`, `"cart2"`, 1)
	e.call("publisher", "PUT", cartV1, `{"format":"openapi","document":`+second+`}`, 200)
	after := e.State()
	for key := range e.docs {
		if strings.HasSuffix(key, "@2") {
			delete(e.docs, key)
		}
	}
	e.state.Store(before)
	reads := 0
	late := lagging{e.memory, func() {
		if reads++; reads == 1 {
			e.state.Store(after)
		}
	}}
	api, err := rest.New(late, door.New(late, authentic(t), door.Options{}), rest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	api.ServeHTTP(w, ask{caller: "viewer", method: "GET", path: cartV1 + "/document"}.request())
	if w.Code != 200 || w.Body.String() != second || w.Header().Get("ETag") != `"3"` {
		t.Errorf("%d %s %v", w.Code, w.Body, w.Header())
	}
}

// lagging does something before each look at a document.
type lagging struct {
	*memory
	before func()
}

func (l lagging) Document(ns, svc, v string, revision uint64) ([]byte, error) {
	l.before()
	return l.memory.Document(ns, svc, v, revision)
}
