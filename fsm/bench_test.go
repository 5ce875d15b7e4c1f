package fsm_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fsm"
	"github.com/muster-registry/muster/snapshot"
)

// large is a snapshot of 200 000 records: 40 000 services of four instances
// each, of 400 bytes or so.
var large = sync.OnceValue(func() []byte {
	var out bytes.Buffer
	w, err := snapshot.NewWriter(&out, snapshot.Header{ClusterID: "c", Revision: 200_000})
	if err != nil {
		panic(err)
	}
	meta := func(n int) string {
		at := time.Unix(0, began).Add(time.Duration(n) * time.Millisecond).UTC().Format(time.RFC3339Nano)
		return fmt.Sprintf(`"revision":%d,"created_at":"%s","updated_at":"%s","created_by":"token:t"}`, n+1, at, at)
	}
	const services, instances = 40_000, 4
	must := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	must(w.Section("services"))
	for i := range services {
		must(w.Put(fmt.Sprintf("default/s%06d", i), fmt.Appendf(nil, `{"namespace":"default","name":"s%06d","protocol":"rest","owner":"team-%d","description":"%s","tags":["a"],"metadata":{"tier":"gold"},%s`,
			i, i%97, strings.Repeat("the fox ", 20), meta(i))))
	}
	must(w.Section("instances"))
	for i := range services {
		for j := range instances {
			n := services + i*instances + j
			must(w.Put(fmt.Sprintf("default/s%06d/i-%d", i, j), fmt.Appendf(nil, `{"namespace":"default","service":"s%06d","id":"i-%d","address":"10.%d.%d.%d","port":8443,"version":"1.4.2","zone":"eu-west-1a","weight":100,"status":"passing",`+
				`"tags":["canary","http2"],"metadata":{"build":"%d","note":"%s"},"ttl":"24h","deregister_after":"24h","checks":[],%s`,
				i, j, n>>16&255, n>>8&255, n&255, n, strings.Repeat("the quick fox ", 5), meta(n))))
		}
	}
	must(w.Close())
	return out.Bytes()
})

// BenchmarkRestore is what one node does for a restore of 200 000 records.
func BenchmarkRestore(b *testing.B) {
	file := large()
	sum := sha256.Sum256(file)
	b.Run("verify", func(b *testing.B) {
		for b.Loop() {
			if _, err := snapshot.Verify(bytes.NewReader(file)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("load", func(b *testing.B) {
		b.SetBytes(int64(len(file)))
		for b.Loop() {
			if _, err := fsm.Inspect(bytes.NewReader(file)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("online", func(b *testing.B) {
		for b.Loop() {
			m, err := fsm.Open(b.TempDir(), fsm.Options{NoSync: true})
			if err != nil {
				b.Fatal(err)
			}
			const size = 512 << 10
			chunks := (len(file) + size - 1) / size
			must(b, apply(b, m, &command.Command{Time: began, Op: &command.Command_RestoreBegin{RestoreBegin: &command.RestoreBegin{Id: "r", Chunks: uint32(chunks), Sha256: sum[:]}}}))
			for i := range chunks {
				must(b, apply(b, m, &command.Command{Time: began, Op: &command.Command_RestoreChunk{RestoreChunk: &command.RestoreChunk{Id: "r", Seq: uint32(i), Data: file[i*size : min((i+1)*size, len(file))]}}}))
			}
			must(b, apply(b, m, &command.Command{Time: began, Op: &command.Command_RestoreCommit{RestoreCommit: &command.RestoreCommit{Id: "r"}}}))
			committed := b.Elapsed()
			m.Flush()
			b.ReportMetric(float64(b.Elapsed()-committed)/1e6, "flush-ms")
			shut(b, m)
		}
	})
	b.Run("offline", func(b *testing.B) {
		for b.Loop() {
			_, image, err := fsm.Seed(b.TempDir(), bytes.NewReader(file), 1, 1)
			if err != nil {
				b.Fatal(err)
			}
			image.Release()
		}
	})
	b.Run("start", func(b *testing.B) {
		dir := b.TempDir()
		_, image, err := fsm.Seed(dir, bytes.NewReader(file), 1, 1)
		if err != nil {
			b.Fatal(err)
		}
		image.Release()
		for b.Loop() {
			m, err := fsm.Open(dir, fsm.Options{})
			if err != nil {
				b.Fatal(err)
			}
			loaded := b.Elapsed()
			if err := m.Export(io.Discard, snapshot.Header{}); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(b.Elapsed()-loaded)/1e6, "export-ms")
			shut(b, m)
		}
	})
}
