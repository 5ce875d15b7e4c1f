package node_test

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/muster-registry/muster/alarm"
	"github.com/muster-registry/muster/pki"
)

// Everything that can go wrong around one node does, at the same time: each
// alarm is raised by its cause and told everywhere, and is over by itself when
// the cause is gone, without a restart. Then its log fails, which only a restart
// ends.
func TestAlarmsOfOneNode(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	sink := newSIEM(t, tr)
	must(t, os.WriteFile(tr.file("backups"), nil, 0o600)) // a file in the place of the folder
	tr.with("snapshots: {interval: 1m, keep: 1, folder: backups}\nhealth: {allow: [127.0.0.0/8], probes: 1}\n" + fmt.Sprintf(mirroring, "https://"+sink.addr, "spool: 1MiB"))
	root := os.Getenv("MUSTER_TEST_ROOT") != ""
	dir, filler := "", ""
	if root {
		dir = tr.small(0, 160<<20)
	} else {
		t.Log("left out: a disk that is full, which needs root; MUSTER_TEST_ROOT=1 asks for it")
	}
	tr.startAll()
	e := newEdge(t, tr)

	// Two checks of what never answers, and one of them at a time.
	hold := make(chan struct{})
	release := sync.OnceFunc(func() { close(hold) })
	target := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hold }))
	t.Cleanup(target.Close)
	t.Cleanup(release)
	for _, id := range []string{"i1", "i2"} {
		e.mustDo(t, "PUT", "/v1/namespaces/default/services/cart/instances/"+id+"?create_service=true",
			`{"address":"127.0.0.1","port":80,"ttl":"0s","checks":[{"type":"http","id":"up","target":"`+target.URL+`","interval":"1m","timeout":"1m"}]}`)
	}
	at := freePorts(t, 1)[0]
	quota := `{"quota_management":{"backend":"redis","redis_connection":"redis://` + at + `","overrides":[{"service_id":"one","requests_per_second":1,"burst_capacity":1}]}}`
	e.mustDo(t, "PUT", "/v1/quotas", quota)
	e.mustDo(t, "POST", "/v1/quota/check", `{"service_id":"one","hits":1}`)
	old, err := tr.ca.Issue("muster", pki.Request{Node: "n1", Hosts: []string{"127.0.0.1"}, Validity: time.Hour}, time.Now().Add(-50*time.Minute))
	must(t, err)
	must(t, old.Write(tr.file("old.crt"), tr.file("old.key")))
	was := map[string][]byte{}
	for _, end := range []string{".crt", ".key"} {
		b, err := os.ReadFile(tr.file("n1" + end))
		must(t, err)
		was["n1"+end] = b
		b, err = os.ReadFile(tr.file("old" + end))
		must(t, err)
		tr.replace("n1"+end, b)
	}
	if root {
		filler = fill(t, dir, 0)
		_, _ = tr.client("muster_0000000000000000_wrong", 0).Status(t.Context()) // is a line for the trail
	}

	raised := map[string]string{
		"certificate_expiring": "certificate of ", "snapshot_overdue": "no scheduled snapshot could be saved", "audit_mirror_away": "the sink of the audit mirror has been away",
		"checks_not_run": "checks wait for ", "redis_away": "the Redis that the quotas name does not answer",
	}
	if root {
		raised["audit_failing"], raised["disk_full"] = "the audit trail cannot be written", ""
	}
	names := []string{}
	for name, says := range raised {
		tr.awaitRaised(0, name+" n1: "+says)
		tr.tells(0, name)
		names = append(names, name)
	}

	if root {
		must(t, os.Remove(filler))
	}
	for name, b := range was {
		tr.replace(name, b)
	}
	must(t, os.Remove(tr.file("backups")))
	sink.come()
	release()
	if path, err := exec.LookPath("redis-server"); err == nil {
		_, port, err := net.SplitHostPort(at)
		must(t, err)
		redis := exec.Command(path, "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", t.TempDir())
		must(t, redis.Start())
		t.Cleanup(func() {
			_ = redis.Process.Kill()
			_ = redis.Wait()
		})
	} else {
		t.Log("left out: a Redis that comes back, since there is no redis-server; the quotas name it no more")
		e.mustDo(t, "PUT", "/v1/quotas", strings.Replace(quota, `"backend":"redis"`, `"backend":"embedded"`, 1))
	}
	tr.awaitOver(0, names...)

	failing(t, filepath.Join(tr.dir, "n1", "raft", "journal"))
	_ = e.once(t, 0, "HTTP/2.0", call{method: "PUT", path: "/v1/namespaces/default/services/last", body: strings.NewReader(`{}`)})
	tr.awaitRaised(0, "disk_failed n1: ")
	tr.tells(0, "disk_failed")
	tr.nodes[0].stop()
	if err := tr.nodes[0].end(); err == nil || !strings.Contains(err.Error(), "look at the disk") {
		t.Errorf("a node whose log has failed ends with %v", err)
	}
	tr.startAll()
	e.mustDo(t, "PUT", "/v1/namespaces/default/services/last", `{}`)
	tr.awaitOver(0, "disk_failed")
}

// failing makes the file one that this process can no longer write, as a disk
// does that is broken.
func failing(t *testing.T, path string) {
	t.Helper()
	none, err := os.Open(os.DevNull) // for reading
	must(t, err)
	defer none.Close()
	links, err := filepath.Glob("/proc/self/fd/*")
	must(t, err)
	done := false
	for _, l := range links {
		to, err := os.Readlink(l)
		if err != nil || to != path {
			continue
		}
		var fd int
		_, err = fmt.Sscan(filepath.Base(l), &fd)
		must(t, err)
		must(t, syscall.Dup3(int(none.Fd()), fd, syscall.O_CLOEXEC))
		done = true
	}
	if !done {
		t.Fatalf("%s is not open", path)
	}
}

// Each alarm that there is is raised by one of these tests.
func TestEachAlarmHasATest(t *testing.T) {
	files, err := filepath.Glob("*_test.go")
	must(t, err)
	var all strings.Builder
	for _, f := range files {
		b, err := os.ReadFile(f)
		must(t, err)
		all.Write(b)
	}
	for _, name := range alarm.Names() {
		awaited := regexp.MustCompile(`awaitRaised\([^\n]*"` + string(name) + ` `)
		if text := all.String(); !awaited.MatchString(text) && !strings.Contains(text, `"`+string(name)+`": "`) && !strings.Contains(text, `raised["`+string(name)+`"]`) {
			t.Errorf("no test of this folder waits until %s is raised", name)
		}
	}
}
