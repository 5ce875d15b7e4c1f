package jepsen

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// relayEnv makes this program what TestNetwork runs on its hosts: it listens on
// the addresses behind the name, and answers an empty line with the name, any
// other with what it hears from the address in it.
const relayEnv = "JEPSEN_RELAY"

func runRelay(name string, addresses []string) error {
	ends := make(chan error)
	for _, a := range addresses {
		l, err := net.Listen("tcp", a)
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					ends <- err
					return
				}
				go relay(c, name)
			}
		}()
	}
	return <-ends
}

func relay(c net.Conn, name string) {
	defer c.Close()
	line, _ := bufio.NewReader(c).ReadString('\n')
	answer := name
	if target := strings.TrimSpace(line); target != "" {
		answer, _ = ask(target, "")
	}
	fmt.Fprintln(c, answer)
}

func ask(address, line string) (string, error) {
	c, err := net.DialTimeout("tcp", address, 300*time.Millisecond)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	fmt.Fprintln(c, line)
	answer, err := io.ReadAll(c)
	return strings.TrimSpace(string(answer)), err
}

// TestNetwork shows that the faults are real and that they are the only ones.
func TestNetwork(t *testing.T) {
	needWorld(t)
	network, err := NewNetwork(3)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := network.Close(); err != nil {
			t.Error(err)
		}
	})
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for i, h := range network.Hosts {
		cmd := h.Command(exe)
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=host%d %s:7000 %s:7000", relayEnv, i, h.Peer, h.Client))
		p, err := Launch(cmd, filepath.Join(t.TempDir(), "log"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Kill)
	}
	// hears[i][j]: host i gets an answer from host j over the peer network.
	look := func() (calls [3]bool, hears [3][3]bool) {
		for i, h := range network.Hosts {
			got, _ := ask(h.Client+":7000", "")
			calls[i] = got == fmt.Sprintf("host%d", i)
			for j, other := range network.Hosts {
				got, _ := ask(h.Client+":7000", other.Peer+":7000")
				hears[i][j] = got == fmt.Sprintf("host%d", j)
			}
		}
		return calls, hears
	}
	all, whole := [3]bool{true, true, true}, [3][3]bool{{true, true, true}, {true, true, true}, {true, true, true}}
	expect := func(what string, calls [3]bool, hears [3][3]bool) {
		t.Helper()
		deadline := time.Now().Add(5 * time.Second)
		for {
			c, h := look()
			if c == calls && h == hears {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: callers reach %v, want %v; hosts reach each other %v, want %v", what, c, calls, h, hears)
			}
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	expect("whole", all, whole)
	must(network.Isolate(1, PeerLinks))
	expect("one isolated from the others", all, [3][3]bool{{true, false, true}, {false, true, false}, {true, false, true}})
	lost, err := network.Lost()
	must(err)
	if lost == 0 {
		t.Fatal("the cut lost no packet")
	}
	must(network.Heal())
	expect("healed", all, whole)
	must(network.Isolate(2, AllLinks))
	expect("one isolated from all", [3]bool{true, true, false}, [3][3]bool{{true, true, false}, {true, true, false}, {false, false, false}})
	must(network.Heal())
	must(network.Cut(Pair{From: 0, To: 1}))
	expect("one direction", all, [3][3]bool{{true, false, true}, {false, true, true}, {true, true, true}})
	must(network.Heal())
	expect("healed again", all, whole)
}
