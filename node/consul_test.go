package node_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/muster-registry/muster/audit"
)

// consul speaks Consul's API with a node. Headers are name, value, name, value…
func (e *edge) consul(t *testing.T, node int, method, path, body string, header ...string) *answer {
	t.Helper()
	return e.send(t, node, "HTTP/1.1", call{method, path, strings.NewReader(body), header})
}

func (e *edge) ok(t *testing.T, node int, method, path, body string) *answer {
	t.Helper()
	a := e.consul(t, node, method, path, body)
	for end := time.Now().Add(time.Minute); a.status == http.StatusServiceUnavailable && time.Now().Before(end); {
		time.Sleep(50 * time.Millisecond) // a machine that stood still: the node asks its leader first
		a = e.consul(t, node, method, path, body)
	}
	if a.status != http.StatusOK {
		t.Fatalf("%s %s at node %d: %d %s", method, path, node+1, a.status, a.body)
	}
	return a
}

// consulEntry is what health tells of an instance.
type consulEntry struct {
	Node    struct{ Node, Address string }
	Service struct {
		ID, Service, Address string
		Port                 int
		Tags                 []string
		Meta                 map[string]string
		TaggedAddresses      map[string]struct {
			Address string
			Port    int
		}
	}
	Checks []struct{ CheckID, Status, Output, Node, ServiceID, Notes string }
}

func (e *edge) entries(t *testing.T, node int, path string) (all []consulEntry, index uint64) {
	t.Helper()
	a := e.ok(t, node, "GET", path, "")
	must(t, json.Unmarshal(a.body, &all))
	index, err := strconv.ParseUint(a.header.Get("X-Consul-Index"), 10, 64)
	if err != nil || index < 1 {
		t.Errorf("%s: index %q", path, a.header.Get("X-Consul-Index"))
	}
	return all, index
}

// healthOf asks for the health of an instance or a service, both ways.
func (e *edge) healthOf(t *testing.T, node int, what string, status int, word string) {
	t.Helper()
	path := "/v1/agent/health/service/" + what
	a, text := e.consul(t, node, "GET", path, ""), e.consul(t, node, "GET", path+"?format=text", "")
	if a.status != status || !strings.Contains(string(a.body), `"AggregatedStatus":"`+word+`"`) || text.status != status || string(text.body) != word {
		t.Errorf("the health of %s: %d %s, %d %s", what, a.status, a.body, text.status, text.body)
	}
}

// What is registered at one node is found, reported about and taken out at the
// others, at once and by the ids that the client gave.
func TestConsulClusterIsOneAgent(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	tr.startAll()
	e := newEdge(t, tr)
	for i, id := range []string{"web-1", "web:10.0.0.1:8080", "Web_2/a b"} {
		at := func(n int) int { return (i + n) % 3 }
		path := strings.ReplaceAll(id, " ", "%20")
		e.ok(t, at(0), "PUT", "/v1/agent/service/register", `{"ID":"`+id+`","Name":"Web","Address":"10.0.0.1","Port":8080,"Tags":["a"],"Meta":{"env":"x"},
			"Check":{"TTL":"1h","Notes":"n"}}`)
		all, _ := e.entries(t, at(1), "/v1/health/service/web")
		if len(all) != 1 || all[0].Service.ID != id || all[0].Service.Service != "web" || all[0].Node.Node != tr.nodes[at(0)].id || len(all[0].Service.Meta) != 1 {
			t.Fatalf("%s: %+v", id, all)
		}
		if c := all[0].Checks; len(c) != 1 || c[0].CheckID != "service:"+id || c[0].Status != "critical" || c[0].ServiceID != id || c[0].Notes != "n" {
			t.Fatalf("%s: a check begins as %+v", id, c)
		}
		passing := func(n int) []consulEntry {
			t.Helper()
			all, _ := e.entries(t, n, "/v1/health/service/web?passing")
			return all
		}
		if all := passing(at(2)); len(all) != 0 {
			t.Errorf("%s is passing before anybody said so: %+v", id, all)
		}
		e.ok(t, at(2), "PUT", "/v1/agent/check/pass/service:"+path+"?note=up", "")
		if all := passing(at(0)); len(all) != 1 || all[0].Checks[0].Output != "up" {
			t.Errorf("%s after it passed: %+v", id, all)
		}
		e.ok(t, at(1), "PUT", "/v1/agent/check/update/service:"+path, `{"Status":"warning","Output":"slow"}`)
		if all, _ := e.entries(t, at(2), "/v1/health/service/web"); all[0].Checks[0].Status != "warning" || all[0].Checks[0].Output != "slow" {
			t.Errorf("%s after the warning: %+v", id, all)
		}
		// A renewal keeps what is known of the checks.
		e.ok(t, at(2), "PUT", "/v1/agent/service/register", `{"ID":"`+id+`","Name":"web","Address":"10.0.0.2","Port":8081,"Check":{"TTL":"1h"}}`)
		if all, _ := e.entries(t, at(0), "/v1/health/service/web"); len(all) != 1 || all[0].Checks[0].Status != "warning" || all[0].Service.Port != 8081 {
			t.Errorf("%s after its renewal: %+v", id, all)
		}
		e.ok(t, at(0), "PUT", "/v1/agent/check/pass/service:"+path, "")
		e.ok(t, at(1), "PUT", "/v1/agent/service/maintenance/"+path+"?enable=true&reason=x", "")
		e.ok(t, at(0), "PUT", "/v1/agent/service/register", `{"ID":"`+id+`","Name":"web","Address":"10.0.0.2","Port":8081,"Check":{"TTL":"1h"}}`)
		if all, _ := e.entries(t, at(2), "/v1/health/service/web"); len(all[0].Checks) != 2 || all[0].Checks[1].CheckID != "_service_maintenance:"+id || all[0].Checks[1].Status != "critical" || all[0].Checks[1].Notes != "x" {
			t.Errorf("%s in maintenance, registered again meanwhile: %+v", id, all)
		}
		e.healthOf(t, at(1), "id/"+path, 503, "maintenance")
		if all := passing(at(2)); len(all) != 0 {
			t.Errorf("%s is passing in maintenance", id)
		}
		e.ok(t, at(0), "PUT", "/v1/agent/service/maintenance/"+path+"?enable=true", "")
		if all, _ := e.entries(t, at(1), "/v1/health/service/web"); !strings.HasPrefix(all[0].Checks[1].Notes, "Maintenance mode") || len(all[0].Service.Meta) != 0 {
			t.Errorf("%s in maintenance without a reason: %+v", id, all)
		}
		e.ok(t, at(2), "PUT", "/v1/agent/service/maintenance/"+path+"?enable=false", "")
		if all := passing(at(0)); len(all) != 1 {
			t.Errorf("%s does not pass after its maintenance", id)
		}
		e.healthOf(t, at(1), "name/Web", 200, "passing")
		e.ok(t, at(0), "PUT", "/v1/agent/check/register", `{"ID":"alive-`+strconv.Itoa(i)+`","Name":"alive","ServiceID":"`+id+`","TTL":"1h","Status":"passing"}`)
		e.ok(t, at(1), "PUT", "/v1/agent/check/fail/alive-"+strconv.Itoa(i), "")
		if all := passing(at(2)); len(all) != 0 {
			t.Errorf("%s passes although one of its checks fails", id)
		}
		e.healthOf(t, at(0), "name/web", 503, "critical")
		e.ok(t, at(2), "PUT", "/v1/agent/check/deregister/alive-"+strconv.Itoa(i), "")
		if all := passing(at(0)); len(all) != 1 || len(all[0].Checks) != 1 {
			t.Errorf("%s after the failing check was taken away: %+v", id, all)
		}
		e.ok(t, at(1), "PUT", "/v1/agent/service/deregister/"+path, "")
		if a := e.ok(t, at(2), "GET", "/v1/catalog/services", ""); string(a.body) != "{}" {
			t.Errorf("%s is still there: %s", id, a.body)
		}
		for _, gone := range []string{"id/" + path, "name/web"} {
			if a := e.consul(t, at(1), "GET", "/v1/agent/health/service/"+gone, ""); a.status != 404 {
				t.Errorf("the health of %s: %d %s", gone, a.status, a.body)
			}
		}
		if a := e.consul(t, at(0), "PUT", "/v1/agent/service/deregister/"+path, ""); a.status != 404 || !strings.Contains(string(a.body), "Unknown service ID") {
			t.Errorf("%s twice: %d %s", id, a.status, a.body)
		}
	}
}

// A service without a check stays and passes without a heartbeat, whichever
// node leads; with a TTL that is not kept it turns critical and is removed.
func TestConsulChecksRun(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	tr.startAll()
	e := newEdge(t, tr)
	e.ok(t, 0, "PUT", "/v1/agent/service/register", `{"Name":"still","Port":1}`)
	e.ok(t, 0, "PUT", "/v1/agent/service/register", `{"Name":"silent","Port":1,"Check":{"TTL":"1s","Status":"passing","DeregisterCriticalServiceAfter":"1s"}}`)
	e.ok(t, 0, "PUT", "/v1/agent/service/register", `{"Name":"kept","Port":1,"Check":{"TTL":"1s","Status":"passing"}}`)
	until(t, "the silent one is removed, the other is critical", func() error {
		gone, _ := e.entries(t, 0, "/v1/health/service/silent")
		kept, _ := e.entries(t, 0, "/v1/health/service/kept")
		if len(gone) != 0 || len(kept) != 1 || kept[0].Checks[0].Status != "critical" {
			return fmt.Errorf("%+v %+v", gone, kept)
		}
		return nil
	})
	if all, _ := e.entries(t, 0, "/v1/health/service/still?passing=1"); len(all) != 1 || all[0].Service.Address == "" {
		t.Errorf("a service without a check: %+v", all)
	}
	tr.stop(0)
	tr.start(0)
	tr.awaitReady(0)
	until(t, "it is still there after a restart", func() error {
		a := e.consul(t, 0, "GET", "/v1/health/service/still?passing=1", "")
		if !strings.Contains(string(a.body), `"still"`) {
			return fmt.Errorf("%d %s", a.status, a.body)
		}
		return nil
	})
}

// A blocking query is woken by its own service and by no other, also on one
// that is not there yet, and tells of its end.
func TestConsulBlocks(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	tr.startAll()
	e := newEdge(t, tr)
	register := func(node int, name, id string) {
		t.Helper()
		e.ok(t, node, "PUT", "/v1/agent/service/register", `{"ID":"`+id+`","Name":"`+name+`","Address":"10.0.0.1","Port":80}`)
	}
	register(0, "other", "other-1")
	_, index := e.entries(t, 1, "/v1/health/service/web")
	type told struct {
		all   []consulEntry
		index uint64
	}
	wait := func(index uint64) chan told {
		c := make(chan told, 1)
		go func() {
			all, now := e.entries(t, 1, fmt.Sprintf("/v1/health/service/web?index=%d&wait=25s", index))
			c <- told{all, now}
		}()
		return c
	}
	next := func(c chan told) told {
		t.Helper()
		select {
		case got := <-c:
			return got
		case <-time.After(time.Minute):
			t.Fatal("the query was not woken")
			return told{}
		}
	}
	for n, change := range []func(){
		func() { register(0, "web", "web-1") },
		func() { register(2, "web", "web-2") },
		func() { e.ok(t, 2, "PUT", "/v1/agent/service/deregister/web-1", "") },
		func() { e.ok(t, 0, "PUT", "/v1/agent/service/deregister/web-2", "") },
	} {
		c := wait(index)
		register(2, "other", fmt.Sprint("other-", n)) // wakes nobody
		_, before := e.entries(t, 2, "/v1/health/service/other")
		change()
		got := next(c)
		if want := []int{1, 2, 1, 0}[n]; len(got.all) != want || got.index <= before {
			t.Fatalf("change %d: %d instances at index %d, the other's change was %d", n, len(got.all), got.index, before)
		}
		index = got.index
	}
	e.ok(t, 0, "PUT", "/v1/agent/service/register", `{"Name":"web","Port":80}`)
	e.mustDo(t, "DELETE", "/v1/namespaces/default/services/web", "")
	_, index = e.entries(t, 1, "/v1/health/service/web")
	c := wait(index)
	register(0, "other", "again")
	register(0, "web", "web-3")
	if got := next(c); len(got.all) != 1 {
		t.Errorf("after the service had been deleted: %+v", got)
	}
	began := time.Now()
	_, index = e.entries(t, 1, "/v1/health/service/web")
	if _, now := e.entries(t, 1, fmt.Sprintf("/v1/health/service/web?index=%d&wait=100ms", index)); now != index || time.Since(began) < 100*time.Millisecond {
		t.Errorf("a query that nothing woke: index %d instead of %d after %s", now, index, time.Since(began))
	}
	listed := e.ok(t, 1, "GET", "/v1/agent/services", "").header.Get("X-Consul-Index")
	lists := make(chan string, 1)
	go func() {
		lists <- string(e.consul(t, 1, "GET", "/v1/agent/services?wait=25s&index="+listed, "").body)
	}()
	register(2, "other", "listed")
	select {
	case body := <-lists:
		if !strings.Contains(body, `"listed":`) {
			t.Errorf("the agent's list was woken by %s", body)
		}
	case <-time.After(time.Minute):
		t.Error("the agent's list was not woken")
	}
	one := e.ok(t, 0, "GET", "/v1/agent/service/web-3", "")
	var hash struct{ ContentHash string }
	must(t, json.Unmarshal(one.body, &hash))
	answers := make(chan string, 1)
	go func() {
		answers <- string(e.consul(t, 1, "GET", "/v1/agent/service/web-3?wait=25s&hash="+hash.ContentHash, "").body)
	}()
	e.ok(t, 0, "PUT", "/v1/agent/service/register", `{"ID":"web-3","Name":"web","Address":"10.0.0.1","Port":81}`)
	select {
	case body := <-answers:
		if !strings.Contains(body, `"Port":81`) {
			t.Errorf("the hash's wait ended with %s", body)
		}
	case <-time.After(time.Minute):
		t.Error("the hash's wait was not woken")
	}
}

// The catalog keeps what it is told of nodes that no agent runs on.
func TestConsulCatalog(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	tr.startAll()
	e := newEdge(t, tr)
	for node, address := range map[string]string{"db1": "10.1.0.1", "db2": "10.1.0.2"} {
		a := e.ok(t, 0, "PUT", "/v1/catalog/register", `{"Datacenter":"dc1","Node":"`+node+`","Address":"`+address+`","NodeMeta":{"rack":"`+node+`"},
			"Service":{"Service":"redis","Tags":["primary","`+node+`"],"Port":6379,"Meta":{"v":"7"}},
			"Checks":[{"Node":"`+node+`","CheckID":"redis-up","Name":"up","Status":"passing","Output":"PONG"}]}`)
		if string(a.body) != "true" {
			t.Errorf("answered %s", a.body)
		}
	}
	var rows []struct {
		Node, Address, ServiceID, ServiceAddress string
		NodeMeta                                 map[string]string
	}
	get := func(path string, want ...string) {
		t.Helper()
		must(t, json.Unmarshal(e.ok(t, 0, "GET", path, "").body, &rows))
		var nodes []string
		for _, r := range rows {
			nodes = append(nodes, r.Node)
		}
		slices.Sort(nodes)
		if !slices.Equal(nodes, want) {
			t.Errorf("%s: %v, not %v", path, nodes, want)
		}
	}
	get("/v1/catalog/service/redis", "db1", "db2")
	get("/v1/catalog/service/redis?tag=primary&tag=DB2", "db2")
	get("/v1/catalog/service/redis?node-meta=rack:db1", "db1")
	get(`/v1/catalog/service/redis?filter=Node+==+db2+and+ServiceMeta.v+==+7`, "db2")
	get(`/v1/catalog/service/redis?filter="db1"+in+ServiceTags`, "db1")
	get("/v1/catalog/nodes", "db1", "db2", "n1")
	get("/v1/catalog/nodes?node-meta=rack:db1", "db1")
	get("/v1/health/state/passing?node-meta=rack:db1", "db1")
	get("/v1/health/node/db2", "db2")
	get("/v1/health/node/n1", "n1")
	near := e.ok(t, 0, "GET", "/v1/health/service/redis?near=db2", "").body
	if i, j := strings.Index(string(near), `"Node":"db2"`), strings.Index(string(near), `"Node":"db1"`); i > j {
		t.Errorf("the near one does not come first: %s", near)
	}
	var inCatalog, inHealth []string
	must(t, json.Unmarshal(e.ok(t, 0, "GET", "/v1/catalog/service/redis", "").body, &rows))
	for _, r := range rows {
		inCatalog = append(inCatalog, r.Node)
	}
	all, _ := e.entries(t, 0, "/v1/health/service/redis")
	for _, r := range all {
		inHealth = append(inHealth, r.Node.Node)
	}
	if !slices.Equal(inCatalog, inHealth) {
		t.Errorf("catalog and health differ in order: %v %v", inCatalog, inHealth)
	}
	// What is registered again says how it is now.
	e.ok(t, 0, "PUT", "/v1/catalog/register", `{"Node":"db1","Address":"10.1.0.1","Service":{"Service":"redis","Port":6379},"Check":{"CheckID":"redis-up","Status":"critical","Output":"gone"}}`)
	if all, _ := e.entries(t, 0, "/v1/health/service/redis?passing"); len(all) != 1 || all[0].Node.Node != "db2" {
		t.Errorf("after db1 failed: %+v", all)
	}
	e.ok(t, 0, "PUT", "/v1/catalog/deregister", `{"Node":"db1","ServiceID":"redis"}`)
	e.ok(t, 0, "PUT", "/v1/catalog/deregister", `{"Node":"db1","ServiceID":"redis"}`)
	get("/v1/catalog/service/redis", "db2")
	e.ok(t, 0, "PUT", "/v1/catalog/deregister", `{"Node":"db2"}`)
	get("/v1/catalog/service/redis")
	if a := e.ok(t, 0, "GET", "/v1/catalog/node/db2", ""); string(a.body) != "null" {
		t.Errorf("a node that is gone: %s", a.body)
	}
	// What came by REST is there as well, and its lease is a check.
	e.mustDo(t, "PUT", "/v1/namespaces/shop/services/cart/instances/a?create_service=true", `{"address":"10.0.0.9","port":80}`)
	if all, _ := e.entries(t, 0, "/v1/health/service/cart?ns=shop&passing"); len(all) != 1 || all[0].Node.Node != "10.0.0.9" || all[0].Checks[0].CheckID != "service:a" {
		t.Errorf("of REST: %+v", all)
	}
	e.ok(t, 0, "PUT", "/v1/agent/check/fail/service:a?ns=shop", "")
	if all, _ := e.entries(t, 0, "/v1/health/service/cart?ns=shop"); all[0].Checks[0].Status != "critical" {
		t.Errorf("of REST, failed: %+v", all)
	}
	e.ok(t, 0, "PUT", "/v1/agent/check/pass/service:a?ns=shop", "")
	if all, _ := e.entries(t, 0, "/v1/health/service/cart?ns=shop&passing"); len(all) != 1 {
		t.Errorf("of REST, passed: %+v", all)
	}
}

// Mistakes are answered with a line that says what to do, and change nothing.
func TestConsulMistakes(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	tr.startAll()
	e := newEdge(t, tr)
	e.ok(t, 0, "PUT", "/v1/agent/service/register", `{"ID":"web-1","Name":"web","Port":80,"Check":{"HTTP":"http://10.0.0.1/","Interval":"1h"}}`)
	before := e.states(t)
	for _, m := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"PUT", "/v1/agent/service/register", `{`, 400, "decode failed"},
		{"PUT", "/v1/agent/service/register", `{"Name":"a","Name":"b","Port":1}`, 400, "duplicate"},
		{"PUT", "/v1/agent/service/register", `{"Name":"a","Port":1} x`, 400, "decode failed"},
		{"PUT", "/v1/agent/service/register", `{"Name":"a","Port":1,"Prot":1}`, 400, "Prot"},
		{"PUT", "/v1/agent/service/register", `{"Port":1}`, 400, "Missing service name"},
		{"PUT", "/v1/agent/service/register", `{"Name":"a.b","Port":1}`, 400, "DNS labels"},
		{"PUT", "/v1/agent/service/register", `{"Name":"a"}`, 400, "/port"},
		{"PUT", "/v1/agent/service/register", `{"Name":"a","Port":70000}`, 400, "/port"},
		{"PUT", "/v1/agent/service/register", `{"ID":"a\u0001","Name":"a","Port":1}`, 400, "control"},
		{"PUT", "/v1/agent/service/register", `{"Name":"a","Port":1,"Meta":{"Consul-id":"x"}}`, 400, "reserved"},
		{"PUT", "/v1/agent/service/register", `{"Name":"a","Port":1,"Connect":{"Native":true}}`, 400, "Connect"},
		{"PUT", "/v1/agent/service/register", `{"Name":"a","Port":1,"Check":{"Script":"rm -rf /","Interval":"1s"}}`, 400, "Script"},
		{"PUT", "/v1/agent/service/register", `{"Name":"a","Port":1,"Check":{"Interval":"1s"}}`, 400, "Invalid check"},
		{"PUT", "/v1/agent/service/register", `{"Name":"a","Port":1,"Check":{"HTTP":"http://a/"}}`, 400, "Interval"},
		{"PUT", "/v1/agent/service/register", `{"Name":"a","Port":1,"Check":{"HTTP":"file:///etc/passwd","Interval":"1s"}}`, 400, "target"},
		{"PUT", "/v1/agent/service/register", `{"Name":"a","Port":1,"Check":{"TTL":"soon"}}`, 400, "decode failed"},
		{"PUT", "/v1/agent/service/register", strings.Repeat(`{"Meta":`, 5000), 400, "nests deeper"},
		{"PUT", "/v1/agent/service/register", `{"Name":"` + strings.Repeat("a", 5<<20) + `"}`, 413, "larger"},
		{"PUT", "/v1/agent/service/register", "{\"Name\":\"a\xff\",\"Port\":1}", 400, "UTF-8"},
		{"PUT", "/v1/agent/service/register", `{"Name":"a\u0000","Port":1}`, 400, ""},
		{"GET", "/v1/health/service/..", "", 400, ""},
		{"GET", "/v1/health/service//web", "", 400, ""},
		{"GET", "/v1/health/service/web;x", "", 400, ""},
		{"GET", "/v1/health/service/web%5cx", "", 400, ""},
		{"GET", "/v1/health/../agent/services", "", 400, ""},
		{"PUT", "/v1/agent/service/register?ns=No", `{"Name":"a","Port":1}`, 400, "Namespace"},
		{"PUT", "/v1/agent/check/register", `{"Name":"node","TTL":"1s"}`, 400, "checks of nodes"},
		{"PUT", "/v1/agent/check/register", `{"Name":"x","ServiceID":"nobody","TTL":"1s"}`, 404, "Unknown service ID"},
		{"PUT", "/v1/agent/check/pass/nobody", "", 404, "Unknown check ID"},
		{"PUT", "/v1/agent/check/pass/service:web-1", "", 404, "does not have associated TTL"},
		{"PUT", "/v1/agent/check/update/service:web-1", `{"Status":"fine"}`, 400, "Invalid check status"},
		{"PUT", "/v1/agent/service/maintenance/web-1", "", 400, "enable"},
		{"PUT", "/v1/catalog/register", `{"Node":"a","Address":"10.0.0.1"}`, 400, "give Service"},
		{"PUT", "/v1/catalog/register", `{"Service":{"Service":"a","Port":1}}`, 400, "Must provide node"},
		{"PUT", "/v1/catalog/register", `{"Node":"a","Address":"10.0.0.1","Datacenter":"x","Service":{"Service":"a","Port":1}}`, 500, "No path to datacenter"},
		{"GET", "/v1/health/service/web?dc=mars", "", 500, "No path to datacenter"},
		{"GET", "/v1/health/service/web?index=x", "", 400, "Invalid index"},
		{"GET", "/v1/health/service/web?index=1&wait=x", "", 400, "Invalid wait"},
		{"GET", "/v1/health/service/web?stale&consistent", "", 400, "conflicting"},
		{"GET", "/v1/health/service/web?filter=Nonsense+==+1", "", 400, "filter"},
		{"GET", "/v1/health/service/web?filter=((", "", 400, "boolean expression"},
		{"GET", "/v1/health/service/web?filter=" + strings.Repeat("(", 1000) + "Node+==+1" + strings.Repeat(")", 1000), "", 400, ""},
		{"GET", "/v1/health/service/web?filter=" + strings.Repeat("x", 3000), "", 400, "at most"},
		{"GET", "/v1/health/service/web%2Fx", "", 400, "path"},
		{"GET", "/v1/health/state/fine", "", 400, "state"},
		{"GET", "/v1/agent/service/nobody", "", 404, "Unknown service ID"},
		{"POST", "/v1/agent/services", "", 405, "method"},
		{"GET", "/v1/agent/service/register", "", 404, ""},
		{"GET", "/v1/kv/a", "", 501, "does not offer"},
		{"PUT", "/v1/session/create", "", 501, "does not offer"},
		{"GET", "/v1/health/ingress/web", "", 501, "does not offer"},
	} {
		began := time.Now()
		a := e.consul(t, 0, m.method, m.path, m.body)
		what := m.method + " " + m.path[:min(len(m.path), 60)] + " " + m.body[:min(len(m.body), 80)]
		if a.status != m.status || !strings.Contains(string(a.body), m.says) || !strings.HasPrefix(a.header.Get("Content-Type"), "text/plain") {
			t.Errorf("%s: %d %s", what, a.status, a.body)
		}
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("%s took %s", what, took)
		}
	}
	for name, m := range map[string]struct {
		body   io.Reader
		status int
	}{"no gzip": {strings.NewReader(`{"Name":"a","Port":1}`), 400}, "gzip that grows": {newBomb(t), 413}} {
		a := e.send(t, 0, "HTTP/2.0", call{"PUT", "/v1/agent/service/register", m.body, []string{"Content-Encoding", "gzip"}})
		if a.status != m.status {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	if after := e.states(t); after != before {
		t.Errorf("a mistake changed the state:\nbefore %s\nafter  %s", before, after)
	}
}

// Policies see what the call would be in REST; what they hide is hidden here.
func TestConsulPolicy(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	tr.startAll()
	e := newEdge(t, tr)
	for _, name := range []string{"web", "secret", "shown"} {
		e.ok(t, 0, "PUT", "/v1/agent/service/register", `{"ID":"`+name+`-1","Name":"`+name+`","Address":"10.0.0.1","Port":80,"Check":{"Name":"password","TTL":"1h","Notes":"hidden"}}`)
	}
	module := `package api.security.authz
default allow := false
allow if input.resource.name != "secret"
filtered := object.union(input.resource.payload, {"instances": [object.union(i, {"address": "192.0.2.1"}) | some i in input.resource.payload.instances]}) if input.resource.name == "shown"`
	writes := `package api.registry.authz
default allow := false
allow if input.resource.name == "web-1"
allow if { input.method == "PUT"; input.path[0] == "v1"; input.path[1] == "namespaces"; input.path[6] == "new-1"; input.token != ""; not input.headers["X-Consul-Token"] }
allow if input.resource.name == "new"`
	body, err := json.Marshal(map[string]any{"modules": map[string]string{"a.rego": module, "b.rego": writes}})
	must(t, err)
	e.mustDo(t, "POST", "/v1/policy/revisions?activate=true", string(body))
	for path, status := range map[string]int{"/v1/health/service/secret": 403, "/v1/catalog/service/secret": 403, "/v1/agent/service/secret-1": 404, "/v1/health/service/web": 200} {
		if a := e.consul(t, 0, "GET", path, ""); a.status != status {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	for _, path := range []string{"/v1/prometheus/targets", "/v1/catalog/services", "/v1/agent/services", "/v1/agent/checks", "/v1/health/state/any", "/v1/catalog/nodes", "/v1/catalog/node/n1"} {
		if a := e.ok(t, 0, "GET", path, ""); strings.Contains(string(a.body), "secret") {
			t.Errorf("%s shows what is hidden: %s", path, a.body)
		}
	}
	if a := e.ok(t, 0, "GET", "/v1/health/service/shown", ""); strings.Contains(string(a.body), "10.0.0.1") || strings.Contains(string(a.body), "hidden") || !strings.Contains(string(a.body), "192.0.2.1") {
		t.Errorf("what is filtered: %s", a.body)
	}
	if a := e.ok(t, 0, "GET", "/v1/prometheus/targets", ""); strings.Contains(string(a.body), "10.0.0.1:") != strings.Contains(string(a.body), `"web-1"`) || !strings.Contains(string(a.body), "192.0.2.1:80") {
		t.Errorf("targets: %s", a.body)
	}
	if a := e.consul(t, 0, "GET", "/v1/prometheus/targets?service=secret", ""); a.status != 403 {
		t.Errorf("targets that are hidden: %d %s", a.status, a.body)
	}
	// Of what the caller may not even look up, a refused change does not say that it is there.
	for id, status := range map[string]int{"secret-1": 404, "nobody": 404, "shown-1": 403, "web-1": 200} {
		if a := e.consul(t, 0, "PUT", "/v1/agent/service/deregister/"+id, ""); a.status != status {
			t.Errorf("deregister %s: %d %s", id, a.status, a.body)
		}
	}
	if a := e.consul(t, 0, "PUT", "/v1/agent/service/register", `{"ID":"new-1","Name":"new","Port":80}`); a.status != 200 {
		t.Errorf("by its form in REST: %d %s", a.status, a.body)
	}
	a := e.consul(t, 0, "PUT", "/v1/agent/service/register", `{"ID":"bad-1","Name":"bad","Port":80}`)
	if a.status != 403 || !strings.HasPrefix(string(a.body), "Permission denied") || a.header.Get("Muster-Decision-Id") == "" {
		t.Errorf("refused: %d %s", a.status, a.body)
	}
	tr.awaitLine(0, "the refusal", func(l *audit.Entry) bool {
		return l.Type == audit.Refusal && l.Action == "register" && l.Record == "instance default/bad/bad-1" && l.Operation == "consul:registerService"
	})
}

// The requests of programs that are in use, as they send them.
func TestConsulPrograms(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	tr.startAll()
	e := newEdge(t, tr)
	viewer, publisher := e.credential(t, "viewer"), e.credential(t, "publisher")
	as := func(token, where, method, path, body string) *answer {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, tr.nodes[0].control+path, strings.NewReader(body))
		must(t, err)
		switch where {
		case "header":
			req.Header.Set("X-Consul-Token", token)
		case "query":
			req.URL.RawQuery = strings.TrimPrefix(req.URL.RawQuery+"&token="+token, "&")
		case "bearer":
			req.Header.Set("Authorization", "Bearer "+token)
		case "both":
			req.Header.Set("Authorization", "Bearer "+token)
			req.Header.Set("X-Consul-Token", viewer)
		}
		res, err := e.http["HTTP/1.1"].Do(req)
		must(t, err)
		return read(t, res)
	}
	for _, p := range []struct{ program, token, where, method, path, body, says string }{
		// Spring Cloud Consul, whose older client has the token in the query.
		{"spring", publisher, "query", "PUT", "/v1/agent/service/register", `{"ID":"orders-8080","Name":"orders","Tags":["secure=false"],"Address":"10.0.0.7","Meta":{"secure":"false"},"Port":8080,"EnableTagOverride":null,` +
			`"Check":{"Script":null,"DockerContainerID":null,"Shell":null,"Interval":"10s","TTL":null,"HTTP":"http://10.0.0.7:8080/actuator/health","Method":null,"Header":{},"TCP":null,"Timeout":null,` +
			`"DeregisterCriticalServiceAfter":null,"TLSSkipVerify":null,"Status":null,"GRPC":null,"GRPCUseTLS":null},"Checks":null}`, ""},
		{"spring", publisher, "header", "PUT", "/v1/agent/service/register", `{"ID":"orders-8081","Name":"orders","Address":"10.0.0.7","Port":8081,"Check":{"TTL":"30s"}}`, ""},
		{"spring", publisher, "query", "PUT", "/v1/agent/check/pass/service:orders-8081", "", ""},
		{"spring", viewer, "query", "GET", "/v1/health/service/orders?passing=true", "", `"orders-8081"`},
		{"spring", viewer, "query", "GET", "/v1/catalog/services?wait=2s&index=-1", "", "Invalid index"},
		{"spring", viewer, "query", "GET", "/v1/catalog/services?wait=2s&index=1", "", `{"orders":["secure=false"]}`},
		{"spring", viewer, "query", "GET", "/v1/status/leader", "", ":"},
		{"spring", viewer, "query", "GET", "/v1/agent/self", "", `"Datacenter":"dc1"`},
		// Traefik's Consul Catalog provider.
		{"traefik", viewer, "header", "GET", "/v1/catalog/services?stale=", "", "orders"},
		{"traefik", viewer, "header", "GET", "/v1/catalog/services?cached=", "", "orders"},
		{"traefik", viewer, "header", "GET", "/v1/health/service/orders?consistent=", "", `"ServiceID":"orders-8080"`},
		{"traefik", viewer, "header", "GET", "/v1/health/service/orders?stale=&passing=1", "", `"Port":8081`},
		// Prometheus.
		{"prometheus", viewer, "bearer", "GET", "/v1/agent/self", "", `"NodeName":"n1"`},
		{"prometheus", viewer, "bearer", "GET", "/v1/catalog/services?index=1&stale=&wait=120000ms", "", "orders"},
		{"prometheus", viewer, "bearer", "GET", "/v1/health/service/orders?index=1&node-meta=&stale=&wait=120000ms", "", "[]"},
		{"prometheus", viewer, "bearer", "GET", `/v1/health/service/orders?filter=Service.Port+%3D%3D+8080&stale=`, "", `"orders-8080"`},
		// go-kratos' registry, whose tagged addresses are URLs.
		{"kratos", publisher, "header", "PUT", "/v1/agent/service/register", `{"ID":"0b7e-host.local","Name":"helloworld","Tags":["version=v1"],"Port":9000,"Address":"10.0.0.8",` +
			`"TaggedAddresses":{"grpc":{"Address":"grpc://10.0.0.8:9000","Port":9000},"http":{"Address":"http://10.0.0.8:8000","Port":8000}},"EnableTagOverride":false,"Meta":{},"Weights":null,"Check":null,` +
			`"Checks":[{"TCP":"10.0.0.8:9000","Interval":"10s","Timeout":"5s","DeregisterCriticalServiceAfter":"600s","Status":"passing"},` +
			`{"CheckID":"service:0b7e-host.local","TTL":"20s","DeregisterCriticalServiceAfter":"600s"}]}`, ""},
		{"kratos", publisher, "header", "PUT", "/v1/agent/check/update/service:0b7e-host.local", `{"Status":"passing","Output":"pass"}`, ""},
		{"kratos", viewer, "header", "GET", "/v1/health/service/helloworld?index=1&passing=1&wait=55000ms", "", `"grpc://10.0.0.8:9000"`},
		{"kratos", publisher, "header", "PUT", "/v1/agent/service/deregister/0b7e-host.local", "", ""},
	} {
		a := as(p.token, p.where, p.method, p.path, p.body)
		status := 200
		if strings.HasPrefix(p.says, "Invalid") {
			status = 400
		}
		if a.status != status || !strings.Contains(string(a.body), p.says) {
			t.Errorf("%s: %s %s: %d %s", p.program, p.method, p.path, a.status, a.body)
		}
	}
	for where, status := range map[string]int{"both": 401, "": 401} {
		if a := as(publisher, where, "GET", "/v1/catalog/services", ""); a.status != status {
			t.Errorf("tokens %q: %d %s", where, a.status, a.body)
		}
	}
	if a := as("nonsense", "header", "GET", "/v1/catalog/services", ""); a.status != 401 {
		t.Errorf("a token that is none: %d %s", a.status, a.body)
	}
	a := as(viewer, "header", "GET", "/v1/catalog/services?cached", "")
	for name, want := range map[string]string{"X-Cache": "HIT", "X-Consul-Knownleader": "true", "X-Consul-Effective-Consistency": "stale"} {
		if a.header.Get(name) != want {
			t.Errorf("%s: %q", name, a.header.Get(name))
		}
	}
	if a.header.Get("X-Consul-Lastcontact") == "" || a.header.Get("X-Consul-Contenthash") == "" {
		t.Errorf("headers: %v", a.header)
	}
}

// Without a leader Consul answers 500; a stale read is answered all the same.
func TestConsulWithoutALeader(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	tr.startAll()
	e := newEdge(t, tr)
	e.ok(t, 0, "PUT", "/v1/agent/service/register", `{"Name":"web","Address":"10.0.0.1","Port":80}`)
	e.states(t)
	tr.stop(1)
	tr.stop(2)
	until(t, "no leader is known", func() error {
		if a := e.consul(t, 0, "GET", "/v1/health/service/web?consistent", ""); a.status != 500 || !strings.HasPrefix(string(a.body), "No cluster leader") {
			return fmt.Errorf("%d %s", a.status, a.body)
		}
		return nil
	})
	a := e.consul(t, 0, "GET", "/v1/health/service/web?stale", "")
	if a.status != 200 || !strings.Contains(string(a.body), `"web"`) {
		t.Errorf("stale: %d %s", a.status, a.body)
	}
	if a := e.consul(t, 0, "PUT", "/v1/agent/service/register", `{"Name":"b","Address":"10.0.0.1","Port":80}`); a.status != 500 {
		t.Errorf("a change: %d %s", a.status, a.body)
	}
}
