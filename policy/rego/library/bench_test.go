package library_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/muster-registry/muster/policy/rego/library"
	"github.com/muster-registry/muster/registry/definition"
)

// synthetic is an OpenAPI document of about a megabyte: n operations with
// bodies, parameters and answers of their own.
func synthetic(n int) []byte {
	var b strings.Builder
	b.WriteString(`{"openapi":"3.0.3","info":{"title":"t","version":"1"},"servers":[{"url":"https://api.example"}],"security":[{"s":["a"]}],"paths":{`)
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `"/things%d/{id}":{"post":{"operationId":"op%d","tags":["tag%d"],"security":[{"s":["scope%d"]}],"parameters":[{"name":"id%d","in":"path","required":true,"schema":{"type":"string"}}],`+
			`"requestBody":{"content":{"application/json":{"schema":{"type":"object","properties":{"name":{"type":"string","maxLength":%d},"count":{"type":"integer"},"items":{"type":"array","items":{"$ref":"#/components/schemas/A%d"}}}}}}},`+
			`"responses":{"200":{"description":"ok","content":{"application/json":{"schema":{"$ref":"#/components/schemas/A%d"}}}},"4%02d":{"description":"no"}}}}`, i, i, i%50, i%20, i%300, i, i%100, i%100, i%30)
	}
	b.WriteString(`},"components":{"securitySchemes":{"s":{"type":"oauth2","flows":{"clientCredentials":{"tokenUrl":"https://a.example","scopes":{"a":"b"}}}}},"schemas":{"A0":{}`)
	for i := 1; i < 100; i++ {
		fmt.Fprintf(&b, `,"A%d":{"type":"object","properties":{"next":{"$ref":"#/components/schemas/A%d"}}}`, i, i-1)
	}
	b.WriteString(`}}}`)
	return []byte(b.String())
}

// BenchmarkReview is all of it, from the document to the findings; judge is
// what remains when the document is in normal form.
func BenchmarkReview(b *testing.B) {
	documents := map[string][]byte{"synthetic": synthetic(1600)}
	for _, f := range []string{"openapi/xero-accounting.yaml", "openapi/twilio-verify-v2.json", "swagger2/slack-web-api.json", "swagger2/netlify.yaml"} {
		document, err := os.ReadFile(filepath.Join(corpus(b), f))
		if err != nil {
			b.Fatal(err)
		}
		documents[filepath.Base(f)] = document
	}
	l := open(b, library.Options{})
	for name, document := range documents {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(document)))
			b.ReportAllocs()
			used := processorTime(b)
			for b.Loop() {
				if r := l.Review(b.Context(), nil, "openapi", document, nil); r.Counts == nil {
					b.Fatal(r.Findings)
				}
			}
			b.ReportMetric(float64((processorTime(b)-used).Microseconds())/1000/float64(b.N), "cpu-ms/op")
		})
		b.Run(name+"/normalise", func(b *testing.B) {
			b.SetBytes(int64(len(document)))
			b.ReportAllocs()
			used := processorTime(b)
			for b.Loop() {
				if _, err := definition.Normalise("openapi", document, nil); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64((processorTime(b)-used).Microseconds())/1000/float64(b.N), "cpu-ms/op")
		})
	}
}

// processorTime is what this process has used so far, garbage collection
// included: it does not depend on what else the machine does.
func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
