package node_test

import (
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/muster-registry/muster/fault"
)

// Rows 9, 26 and 27: definitions that expand, refer elsewhere or declare
// entities are refused at every node, and nothing is fetched for them.
func (e *edge) definitions(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	fetched := make(chan net.Addr, 1)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				close(fetched)
				return
			}
			select {
			case fetched <- c.RemoteAddr():
			default:
			}
			c.Close()
		}
	}()
	outside := "http://" + l.Addr().String() + "/s.json"
	laughs := "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
	for i := 1; i <= 30; i++ {
		laughs += fmt.Sprintf("a%d: &a%d [*a%d,*a%d,*a%d,*a%d,*a%d,*a%d,*a%d,*a%d,*a%d]\n", i, i, i-1, i-1, i-1, i-1, i-1, i-1, i-1, i-1, i-1)
	}
	openapi := func(ref string) string {
		return `{"openapi":"3.1.0","info":{"title":"t","version":"1"},"components":{"schemas":{"A":{"$ref":"` + ref + `"}}}}`
	}
	asyncapi := func(ref string) string {
		return `{"asyncapi":"3.0.0","info":{"title":"t","version":"1"},"components":{"schemas":{"A":{"$ref":"` + ref + `"}}}}`
	}
	bodies := map[string][]string{
		"openapi":  {laughs, openapi(outside), openapi("file:///etc/passwd"), openapi("../x.json"), openapi("#/components/schemas/A"), openapi("#")},
		"asyncapi": {laughs, asyncapi(outside), asyncapi("file:///etc/passwd"), asyncapi("#/components/schemas/A"), `{"asyncapi":"1.0.0"}`},
		"wsdl": {`<!DOCTYPE d SYSTEM "` + outside + `"><definitions/>`, `<!DOCTYPE d [<!ENTITY a "b">]><definitions>&a;</definitions>`,
			`<definitions>&a;</definitions>`, strings.Repeat("<definitions>", 100)},
	}
	e.mustDo(t, "PUT", cartPath+"/versions/v9", `{"format":"openapi","content":"swagger: '2.0'\ninfo: {title: t, version: '1'}\nschemes: [http]\npaths: {}\n"}`)
	e.each(t, func(t *testing.T, node int) {
		// The leader found something in a definition that is accepted.
		record := e.send(t, node, "HTTP/2.0", call{method: "GET", path: cartPath + "/versions/v9?consistency=linearizable"})
		if want := `{"rule":"no-scheme-http","severity":"high","path":"/schemes/0",`; record.status != 200 || !strings.Contains(string(record.body), want) {
			t.Errorf("%d %s, want %s", record.status, record.body, want)
		}
		e.send(t, node, "HTTP/2.0", call{"PUT", "/v1/quotas", strings.NewReader(laughs), []string{"Content-Type", "application/yaml"}}).want(t, 422, fault.InvalidDefinition)
		e.send(t, node, "HTTP/2.0", call{"PUT", "/v1/quotas", strings.NewReader("a: &a [*a]"), []string{"Content-Type", "application/yaml"}}).want(t, 422, fault.InvalidDefinition)
		e.send(t, node, "HTTP/2.0", call{"PUT", "/v1/quotas", strings.NewReader("a: ["), []string{"Content-Type", "application/yaml"}}).want(t, 400, fault.BadRequest)
		for format, documents := range bodies {
			for _, d := range documents {
				body, err := json.Marshal(map[string]string{"format": format, "content": d})
				must(t, err)
				e.send(t, node, "HTTP/2.0", call{"PUT", versionPath, strings.NewReader(string(body)), nil}).want(t, 422, fault.InvalidDefinition)
			}
		}
	})
	l.Close()
	if from, ok := <-fetched; ok {
		t.Errorf("something was fetched from %v", from)
	}
}
