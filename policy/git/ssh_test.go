package git

import (
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skeema/knownhosts"
	"golang.org/x/crypto/ssh"
)

// serveSSH lets one key run git-upload-pack on the folder's repositories.
func serveSSH(t *testing.T, dir string, client ssh.PublicKey) (address string, host ssh.PublicKey) {
	t.Helper()
	_, hostKey := newSSHKey(t)
	config := &ssh.ServerConfig{PublicKeyCallback: func(c ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if c.User() != "git" || string(key.Marshal()) != string(client.Marshal()) {
			return nil, errors.New("not known")
		}
		return nil, nil
	}}
	config.AddHostKey(hostKey)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, channels, requests, err := ssh.NewServerConn(conn, config)
				if err != nil {
					return
				}
				go ssh.DiscardRequests(requests)
				for c := range channels {
					channel, requests, err := c.Accept()
					if err != nil {
						return
					}
					go uploadPack(channel, requests, dir)
				}
			}()
		}
	}()
	return l.Addr().String(), hostKey.PublicKey()
}

// uploadPack runs the command a client asks for, if it is that of a fetch.
func uploadPack(channel ssh.Channel, requests <-chan *ssh.Request, dir string) {
	defer channel.Close()
	for r := range requests {
		var command struct{ Text string }
		path, ok := "", false
		if r.Type == "exec" && ssh.Unmarshal(r.Payload, &command) == nil {
			path, ok = strings.CutPrefix(command.Text, "git-upload-pack '")
		}
		_ = r.Reply(ok, nil)
		if !ok {
			continue
		}
		cmd := exec.Command("git", "upload-pack", filepath.Join(dir, strings.TrimSuffix(path, "'")))
		cmd.Stdin, cmd.Stdout, cmd.Stderr = channel, channel, io.Discard
		_ = cmd.Run()
		_, _ = channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{}))
		return
	}
}

func newSSHKey(t *testing.T) (file string, signer ssh.Signer) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "id")
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	if signer, err = ssh.NewSignerFromKey(key); err != nil {
		t.Fatal(err)
	}
	return file, signer
}

func TestOverSSH(t *testing.T) {
	dir := t.TempDir()
	r := newRepository(t, filepath.Join(dir, "policies"))
	key := newKey(t, "Ann")
	r.commit(key, map[string]string{"a.rego": good, "a_test.rego": tests})
	mine, signer := newSSHKey(t)
	other, _ := newSSHKey(t)
	address, host := serveSSH(t, dir, signer.PublicKey())
	_, stranger := newSSHKey(t)
	known := func(key ssh.PublicKey) string {
		file := filepath.Join(t.TempDir(), "known_hosts")
		if err := os.WriteFile(file, []byte(knownhosts.Line([]string{address}, key)+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	for name, c := range map[string]struct {
		file, known string
		user        string
		says        string // "": it works
	}{
		"the right keys":          {mine, known(host), "git", ""},
		"another client's key":    {other, known(host), "git", "unable to authenticate"},
		"another user":            {mine, known(host), "root", "unable to authenticate"},
		"another host's key":      {mine, known(stranger.PublicKey()), "git", "knownhosts: key mismatch"},
		"a key that is no key":    {known(host), known(host), "git", "cannot be used"},
		"a key that is not there": {mine + "x", known(host), "git", "cannot be read"},
	} {
		cluster := newCluster(t, key)
		cfg := Config{URL: fmt.Sprintf("ssh://%s@%s/policies", c.user, address), KeyFile: c.file, KnownHosts: c.known, Egress: loopback}
		s, err := New(cfg, cluster, slog.New(slog.DiscardHandler), nil)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second time, a success is nothing new
			status, o := s.Pull(t.Context(), false)
			last := status.History[len(status.History)-1]
			if c.says == "" && o != Accepted && o != Unchanged || c.says != "" && (o != FetchFailed || !strings.Contains(last.Message, c.says)) {
				t.Errorf("%s: %s %+v", name, o, last)
			}
		}
		if want := c.says == ""; (cluster.table.Len() == 1) != want {
			t.Errorf("%s: %d revisions", name, cluster.table.Len())
		}
	}
}
