package mirror

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/klauspost/compress/gzip"
	"google.golang.org/protobuf/proto"

	logs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	record "go.opentelemetry.io/proto/otlp/logs/v1"
	resource "go.opentelemetry.io/proto/otlp/resource/v1"

	"github.com/muster-registry/muster/egress"
)

// HTTPOptions configure a sink that is posted to.
type HTTPOptions struct {
	URL     string
	Dialer  *egress.Dialer
	TLS     *tls.Config                       // nil: the system's authorities
	Headers func() (map[string]string, error) // of each call; secrets. nil: none
	Plain   bool                              // bodies are sent as they are, not compressed

	// What the resource says, for OTLP.
	Node, Version string
}

// poster is both sinks that are posted to.
type poster struct {
	opt    HTTPOptions
	client *http.Client
	media  string
	body   func(to []byte, events [][]byte) ([]byte, error)
	plain  []byte // room for a body, before it is packed
	packed bytes.Buffer
	zip    *gzip.Writer
	// answer reads how many of the events the sink has rejected; nil: it does not say.
	answer func(body []byte) (rejected int)
}

// NewHTTP gives a sink that takes arrays of events in JSON, compressed by gzip
// unless the options say otherwise.
func NewHTTP(o HTTPOptions) Sink {
	return newPoster(o, "application/json", array, nil)
}

// NewOTLP gives a sink that takes log records as OTLP over HTTP has them, in
// protobuf, compressed as by NewHTTP. The body of a record is the event.
func NewOTLP(o HTTPOptions) Sink {
	p := newPoster(o, "application/x-protobuf", nil, func(b []byte) int {
		answer := new(logs.ExportLogsServiceResponse)
		if proto.Unmarshal(b, answer) != nil {
			return 0
		}
		return int(max(0, answer.GetPartialSuccess().GetRejectedLogRecords()))
	})
	p.body = p.records
	return p
}

func newPoster(o HTTPOptions, media string, body func([]byte, [][]byte) ([]byte, error), answer func([]byte) int) *poster {
	if o.TLS == nil {
		o.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	// The level is one that there is. A writer takes a megabyte, so there is one.
	zip, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed)
	return &poster{opt: o, media: media, body: body, answer: answer, zip: zip, client: &http.Client{
		// No proxy: it would connect past the rules about addresses.
		Transport: &http.Transport{DialContext: o.Dialer.DialContext, TLSClientConfig: o.TLS, ForceAttemptHTTP2: true, MaxIdleConns: 1, IdleConnTimeout: time.Minute},
		// A redirect would take the headers and the lines to somebody else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Settle implements Sink: there is an answer.
func (p *poster) Settle() time.Duration { return 0 }

// Check implements Sink.
func (p *poster) Check() error { return nil }

// Close implements Sink.
func (p *poster) Close() error {
	p.client.CloseIdleConnections()
	return nil
}

// Send implements Sink.
func (p *poster) Send(ctx context.Context, events [][]byte) (rejected int, err error) {
	body, err := p.pack(events)
	if err != nil {
		return 0, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.opt.URL, bytes.NewReader(body))
	if err != nil {
		return 0, errors.New("the URL of the sink cannot be called")
	}
	req.Header.Set("Content-Type", p.media)
	if !p.opt.Plain {
		req.Header.Set("Content-Encoding", "gzip")
	}
	req.Header.Set("User-Agent", "muster/"+p.opt.Version)
	if p.opt.Headers != nil {
		headers, err := p.opt.Headers()
		if err != nil {
			return 0, err
		}
		for name, value := range headers {
			req.Header.Set(name, value)
		}
	}
	res, err := p.client.Do(req)
	if failed, ok := errors.AsType[*url.Error](err); ok {
		return 0, failed.Err // without the URL, which may hold a key
	}
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	said, _ := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	switch {
	case res.StatusCode/100 == 2:
		if p.answer != nil {
			rejected = min(len(events), p.answer(said))
		}
		return rejected, nil
	case res.StatusCode == http.StatusRequestEntityTooLarge:
		return 0, ErrTooLarge
	}
	// Also what looks like a mistake of the sender's is tried again: lines are
	// not lost because a token has run out.
	return 0, fmt.Errorf("the sink answered %s", res.Status)
}

// pack makes the body of a call, and gives a copy: the transport may go on reading
// it after Do has returned. It is compressed in one piece: each write to the
// compressor has its price.
func (p *poster) pack(events [][]byte) (body []byte, err error) {
	if p.plain, err = p.body(p.plain[:0], events); err != nil {
		return nil, err
	}
	defer func() {
		if cap(p.plain) > 4<<20 {
			p.plain = nil
		}
	}()
	if p.opt.Plain {
		return bytes.Clone(p.plain), nil
	}
	p.packed.Reset()
	p.zip.Reset(&p.packed)
	if _, err := p.zip.Write(p.plain); err != nil {
		return nil, err
	}
	if err := p.zip.Close(); err != nil {
		return nil, err
	}
	return bytes.Clone(p.packed.Bytes()), nil
}

// array appends the events as one JSON array.
func array(to []byte, events [][]byte) ([]byte, error) {
	to = append(to, '[')
	for i, e := range events {
		if i > 0 {
			to = append(to, ',')
		}
		to = append(to, e...)
	}
	return append(to, ']'), nil
}

// numbers of OpenTelemetry for syslog's severities.
var otlpSeverities = map[int]record.SeverityNumber{
	1: record.SeverityNumber_SEVERITY_NUMBER_ERROR, 4: record.SeverityNumber_SEVERITY_NUMBER_WARN,
	5: record.SeverityNumber_SEVERITY_NUMBER_INFO2, informational: record.SeverityNumber_SEVERITY_NUMBER_INFO,
}

// records appends the events as an OTLP request.
func (p *poster) records(to []byte, events [][]byte) ([]byte, error) {
	now := uint64(time.Now().UnixNano())
	all := make([]*record.LogRecord, len(events))
	for i, e := range events {
		kind := text(e, "type")
		severity, ok := severities[kind]
		if !ok {
			severity = informational
		}
		r := &record.LogRecord{
			ObservedTimeUnixNano: now, SeverityNumber: otlpSeverities[severity], EventName: "muster.audit." + kind,
			Body: word(string(e)), Attributes: []*common.KeyValue{pair("muster.audit.type", kind)},
		}
		if t, err := time.Parse(time.RFC3339Nano, text(e, "time")); err == nil {
			r.TimeUnixNano = uint64(t.UnixNano())
		}
		all[i] = r
	}
	return proto.MarshalOptions{}.MarshalAppend(to, &logs.ExportLogsServiceRequest{ResourceLogs: []*record.ResourceLogs{{
		Resource: &resource.Resource{Attributes: []*common.KeyValue{
			pair("service.name", "muster"), pair("service.version", p.opt.Version), pair("service.instance.id", p.opt.Node),
		}},
		ScopeLogs: []*record.ScopeLogs{{Scope: &common.InstrumentationScope{Name: "github.com/muster-registry/muster/audit"}, LogRecords: all}},
	}}})
}

func word(s string) *common.AnyValue {
	return &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: s}}
}

func pair(key, value string) *common.KeyValue { return &common.KeyValue{Key: key, Value: word(value)} }
