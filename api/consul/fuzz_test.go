package consul

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/registry"
)

// Whatever a registration says, it is refused or becomes a legal record, under
// an id that is a name, with the metadata that Consul's clients do not see.
func FuzzRegistration(f *testing.F) {
	for _, s := range []string{`{"Name":"web","Port":80}`, `{"ID":"a/b","Name":"Web","Port":80,"Check":{"TTL":"10s"},"Checks":[{"http":"http://a/","interval":1e9,"deregister_critical_service_after":"1m"}]}`,
		`{"Name":"web","Port":80,"TaggedAddresses":{"lan":{"Address":"x","Port":1}},"Meta":{"a":"b"},"Connect":null,"Weights":{"Passing":2}}`,
		`{"Name":"web","Port":80,"Checks":[{"GRPC":"h:1/s","GRPCUseTLS":true,"Interval":"1s"},{"TCP":"[::1]:1","Interval":"5s","Timeout":"1h"}]}`, `{"name":"a","NAME":"b"}`, `[]`, `{"Check":{"TTL":-1}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		_ = namespaceIn(body)
		var b serviceBody
		if err := decode(body, &b); err != nil {
			if !fault.Is(err, fault.BadRequest) {
				t.Fatalf("%v", err)
			}
			return
		}
		id := b.ID
		if id == "" {
			id = b.Name
		}
		if b.offered() != nil || printable("/ID", id) != nil {
			return
		}
		service, err := named(b.Name)
		if err != nil {
			return
		}
		b.Address = "10.0.0.1"
		d := draft{service: service, id: recordID(id), node: map[string]string{metaNode: "n1"}, body: &b}
		if d.checks, err = b.checks(id); err != nil {
			return
		}
		spec, err := d.spec("default")
		if err != nil {
			return
		}
		reg := registry.New().Txn(nil)
		in, _, err := reg.PutInstance(registry.Stamp{Revision: 1}, "default", service, d.id, spec, 0, true)
		if err != nil {
			t.Fatalf("%s: what was made canonical is refused: %v", spec, err)
		}
		found := foundRecord(in)
		if found.consulID() != id || len(checksOf(&found)) != len(d.checks) {
			t.Fatalf("%s is found as %q with %d checks", body, found.consulID(), len(checksOf(&found)))
		}
		for name := range found.meta() {
			if strings.HasPrefix(name, reserved) {
				t.Fatalf("%s shows %s", body, name)
			}
		}
	})
}

// A query string is answered or refused, in bounded time: also a filter whose
// parser would take exponential time.
func FuzzQuery(f *testing.F) {
	for _, s := range []string{"index=1&wait=10s", "filter=Node+==+a", "filter=" + strings.Repeat("(", 500), "filter=" + strings.Repeat("not+", 300) + "a+in+b", "stale&cached", "node-meta=a:b&tag=x&tag=y",
		"filter=ServiceTags+matches+`" + strings.Repeat("(a*)*", 100) + "`"} {
		f.Add(s)
	}
	rows := []CatalogService{{Node: "a", ServiceTags: []string{strings.Repeat("a", 100) + "b"}, ServiceMeta: map[string]string{"a": "b"}}}
	f.Fuzz(func(t *testing.T, raw string) {
		values, err := url.ParseQuery(raw)
		if err != nil {
			return
		}
		began := time.Now()
		q := query{values: values}
		if q.check("dc1") != nil || q.read("max-age=1") != nil || q.compile() != nil {
			return
		}
		_, _ = sift(&q, still, append([]CatalogService(nil), rows...))
		if took := time.Since(began); took > 10*time.Second {
			t.Fatalf("%q took %s", raw, took)
		}
	})
}

func TestFilterTakesBoundedTime(t *testing.T) {
	for _, text := range []string{strings.Repeat("(", 1000) + "Node == a" + strings.Repeat(")", 1000), strings.Repeat("not ", 500) + "Node == a", strings.Repeat("Node == a and ", 140) + "Node == a",
		strings.Repeat("(", 300), strings.Repeat("(Node == a or ", 100) + "Node == a" + strings.Repeat(")", 100)} {
		began := time.Now()
		_, err := filter(text)
		t.Logf("%d characters: %s, %v", len(text), time.Since(began), err != nil)
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("a filter of %d characters took %s", len(text), took)
		}
	}
	for text, want := range map[string]int{`Node == a`: 1, `ServiceMeta.none == x`: 0, `"x" in ServiceTags`: 1, `ServiceMeta contains env`: 1, `ServiceMeta.env is not empty`: 1, `Node matches "^b"`: 0, `ServicePort == 80 and not Node == b`: 1} {
		f, err := filter(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		rows, err := sift(&query{filter: f}, still, []CatalogService{{Node: "a", ServicePort: 80, ServiceTags: []string{"x"}, ServiceMeta: map[string]string{"env": "prod"}}})
		if err != nil || len(rows) != want {
			t.Errorf("%s: %d rows, %v", text, len(rows), err)
		}
	}
}

func still() error { return nil }

// Who has gone keeps nobody busy: the rest of the items is not looked at.
func TestAFilterEndsWithItsCaller(t *testing.T) {
	f, err := filter(`ServicePort == 80`)
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	gone := func() error {
		if asked++; asked > 1 {
			return fault.New(fault.NotReady, "gone")
		}
		return nil
	}
	rows, err := sift(&query{filter: f}, gone, make([]CatalogService, 100_000))
	if !fault.Is(err, fault.NotReady) || rows != nil || asked != 2 {
		t.Errorf("%d rows, %v, asked %d times", len(rows), err, asked)
	}
}
