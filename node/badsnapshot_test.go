package node_test

import (
	"bytes"
	"crypto/sha256"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/muster-registry/muster/fault"
)

// sealed gives a snapshot whose seal fits what stands before it.
func sealed(body []byte) []byte {
	sum := sha256.Sum256(body)
	return append(append(bytes.Clone(body), sum[:]...), "MUSTERZ1"...)
}

const seal = sha256.Size + 8

// newer rewrites a snapshot as one that says it is of format 2, once in each of
// the places where it says so; both are whole and sealed.
func newer(t *testing.T, file []byte) (outer, inner []byte) {
	t.Helper()
	outer = bytes.Clone(file[:len(file)-seal])
	outer[7] = '2'

	dec, err := zstd.NewReader(nil)
	must(t, err)
	defer dec.Close()
	body, err := dec.DecodeAll(file[8:len(file)-seal], nil)
	must(t, err)
	changed := bytes.Replace(body, []byte(`"format":1`), []byte(`"format":2`), 1)
	if bytes.Equal(changed, body) {
		t.Fatal("the header does not say its format")
	}
	const end = "MUSTEREND"
	content := changed[:len(changed)-len(end)-sha256.Size]
	sum := sha256.Sum256(content)
	enc, err := zstd.NewWriter(nil)
	must(t, err)
	defer enc.Close()
	whole := append(append(bytes.Clone(content), sum[:]...), end...)
	return sealed(outer), sealed(append([]byte("MUSTERS1"), enc.EncodeAll(whole, nil)...))
}

func (e *edge) snapshots(t *testing.T) {
	save := func(node int) []byte {
		a := e.send(t, node, "HTTP/2.0", call{method: "GET", path: "/v1/snapshot"})
		if a.status != 200 {
			t.Fatalf("save: %d %s", a.status, a.body)
		}
		return a.body
	}
	file := save(0)
	outer, inner := newer(t, file)
	foreign := e.foreign(t)
	e.each(t, func(t *testing.T, node int) {
		bad := map[string][]byte{
			"empty": nil, "no snapshot": []byte("hello"), "one byte": file[:1], "half": file[:len(file)/2], "without its seal": file[:len(file)-seal],
			"a byte short": file[:len(file)-1], "a byte more": append(bytes.Clone(file), 0), "twice": append(bytes.Clone(file), file...),
			"newer, outside": outer, "newer, inside": inner, "no seal that fits": append(bytes.Clone(file[:len(file)-seal]), outer[len(outer)-seal:]...),
		}
		for range 24 {
			at := rand.IntN(len(file) * 8)
			flipped := bytes.Clone(file)
			flipped[at/8] ^= 1 << (at % 8)
			bad["a bit flipped"] = flipped
			e.restore(t, node, "", flipped).want(t, 422, fault.InvalidSnapshot)
		}
		for name, b := range bad {
			// Force allows to replace, never to damage.
			for _, query := range []string{"", "?dry_run=true", "?force=true"} {
				if a := e.restore(t, node, query, b); a.status != 422 || a.Code != fault.InvalidSnapshot {
					t.Errorf("%s%s: %d %s", name, query, a.status, a.body)
				}
			}
		}
		for name, b := range map[string][]byte{"newer, outside": outer, "newer, inside": inner} {
			if a := e.restore(t, node, "", b); !strings.Contains(a.Detail, "newer") {
				t.Errorf("%s is said to be: %s", name, a.Detail)
			}
		}
		for _, query := range []string{"", "?dry_run=true"} {
			if a := e.restore(t, node, query, foreign).want(t, 422, fault.InvalidSnapshot); !strings.Contains(a.Detail, "another cluster") {
				t.Errorf("of another cluster%s: %s", query, a.Detail)
			}
		}
		e.restore(t, node, "", file).want(t, 409, fault.Conflict) // it is ours, and would replace
		if a := e.restore(t, node, "?dry_run=true", file); a.status != 200 {
			t.Errorf("ours, as a dry run: %d %s", a.status, a.body)
		}
		if a := e.restore(t, node, "?dry_run=true&force=true", foreign); a.status != 200 {
			t.Errorf("of another cluster, forced, as a dry run: %d %s", a.status, a.body)
		}
	})

	// What was saved comes back, and nothing has piled up on the way.
	was := e.content(t)
	e.mustDo(t, "PUT", cartPath+"/instances/later", `{"address":"10.0.0.3","port":82,"ttl":"24h"}`)
	if a := e.restore(t, 1, "?force=true", file); a.status != 200 {
		t.Fatalf("restore: %d %s", a.status, a.body)
	}
	if now := e.content(t); now != was {
		t.Errorf("restored\n%s\nsaved\n%s", now, was)
	}
	e.states(t)
}

func (e *edge) restore(t *testing.T, node int, query string, file []byte) *answer {
	t.Helper()
	return e.send(t, node, "HTTP/2.0", call{"PUT", "/v1/snapshot" + query, bytes.NewReader(file), nil})
}

// content is what the second node has of cart.
func (e *edge) content(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, path := range []string{cartPath, instancePath, versionPath, versionPath + "/document", cartPath + "/instances/later"} {
		a := e.send(t, 1, "HTTP/2.0", call{method: "GET", path: path + "?consistency=linearizable"})
		if a.status == 200 {
			all.Write(a.body)
		}
		all.WriteByte('\n')
	}
	return all.String()
}

// foreign is a snapshot of another cluster. It also shows that a new cluster,
// which holds nothing, takes a snapshot of another without being forced.
func (e *edge) foreign(t *testing.T) []byte {
	t.Helper()
	tr := newTrial(t, 1)
	tr.startAll()
	other := newEdge(t, tr)
	ours := e.send(t, 0, "HTTP/2.0", call{method: "GET", path: "/v1/snapshot"}).body
	if a := other.restore(t, 0, "", ours); a.status != 200 {
		t.Fatalf("a new cluster does not take a snapshot: %d %s", a.status, a.body)
	}
	if a := other.send(t, 0, "HTTP/2.0", call{method: "GET", path: cartPath}); a.status != 200 {
		t.Fatalf("the restored service: %d %s", a.status, a.body)
	}
	file := other.send(t, 0, "HTTP/2.0", call{method: "GET", path: "/v1/snapshot"}).body
	tr.stop(0)
	return file
}
