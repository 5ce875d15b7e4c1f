package issuer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh/agent"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/pki"
)

// serveAgent serves a keyring on a socket; stuck: it takes connections and says
// nothing.
func serveAgent(t *testing.T, socket string, keys agent.Agent, stuck bool) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	must(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if stuck {
				t.Cleanup(func() { c.Close() })
				continue
			}
			go func() {
				defer c.Close()
				_ = agent.ServeAgent(keys, c) // until the node hangs up
			}()
		}
	}()
}

// short is a folder whose name leaves room for a socket's.
func short(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hsm")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Every kind of key signs behind an agent.
func TestAgentSigns(t *testing.T) {
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	must(t, err)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	h, socket := newHouse(t), filepath.Join(short(t), "agent")
	keys := agent.NewKeyring()
	serveAgent(t, socket, keys, false)
	for name, key := range map[string]crypto.Signer{"p256": p256, "p384": p384, "ed25519": ed, "rsa": r} {
		h.below(t, key.Public(), name+".crt")
		i := h.issuer(t, Config{Signer: Agent, Cert: h.file(name + ".crt"), Socket: socket})
		_, err := i.Issue(t.Context(), order(t, i))
		refused(t, err, fault.NotReady, "none of them is that of certificates.cert")
		add := agent.AddedKey{PrivateKey: key}
		if name == "ed25519" {
			add.PrivateKey = &ed
		}
		must(t, keys.Add(add))
		c, err := i.Issue(t.Context(), order(t, i))
		if err != nil {
			t.Errorf("%s: %v: %v", name, err, errors.Unwrap(err))
			continue
		}
		h.good(t, c)
	}
}

// An agent that is not there, or says nothing, costs a bounded time and no more.
func TestAgentIsAway(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	h, dir := newHouse(t), short(t)
	h.below(t, key.Public(), "ca.crt")
	i := h.issuer(t, Config{Signer: Agent, Cert: h.file("ca.crt"), Socket: filepath.Join(dir, "none")})
	_, err = i.Issue(t.Context(), order(t, i))
	refused(t, err, fault.NotReady, "the agent does not answer")

	serveAgent(t, filepath.Join(dir, "stuck"), nil, true)
	i = h.issuer(t, Config{Signer: Agent, Cert: h.file("ca.crt"), Socket: filepath.Join(dir, "stuck")})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = i.Issue(ctx, order(t, i))
	refused(t, err, fault.NotReady, "timeout")
}

// softHSM is a token in a folder of its own, with one key pair, held by an
// ssh-agent as docs/operators.md says.
func softHSM(t *testing.T, keyType string) (socket string, public crypto.PublicKey) {
	t.Helper()
	const module, pin = "/usr/lib/softhsm/libsofthsm2.so", "271828"
	for _, name := range []string{"softhsm2-util", "pkcs11-tool", "ssh-agent", "ssh-add", "ssh-keygen"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("LEFT OUT: %s is not installed (apt-get install softhsm2 opensc openssh-client)", name)
		}
	}
	if _, err := os.Stat(module); err != nil {
		t.Skip("LEFT OUT: SoftHSM's module is not where Debian has it (apt-get install softhsm2)")
	}
	dir := short(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	socket = at("agent")
	must(t, os.Mkdir(at("tokens"), 0o700))
	must(t, os.WriteFile(at("conf"), []byte("directories.tokendir = "+at("tokens")+"\nobjectstore.backend = file\nlog.level = ERROR\n"), 0o600))
	must(t, os.WriteFile(at("ask"), []byte("#!/bin/sh\necho "+pin+"\n"), 0o700)) //nolint:gosec // a program
	env := append(os.Environ(), "SOFTHSM2_CONF="+at("conf"), "SSH_AUTH_SOCK="+socket, "SSH_ASKPASS="+at("ask"), "SSH_ASKPASS_REQUIRE=force")
	run := func(name string, args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Env = env
		out, err := cmd.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%s: %w: %s", name, err, out)
		}
		return string(out), err
	}
	_, err := run("softhsm2-util", "--init-token", "--free", "--label", "ca", "--pin", pin, "--so-pin", pin)
	must(t, err)
	_, err = run("pkcs11-tool", "--module", module, "--login", "--pin", pin, "--keypairgen", "--key-type", keyType, "--id", "01", "--label", "ca")
	must(t, err)

	holder := exec.Command("ssh-agent", "-D", "-a", socket)
	holder.Env = env
	must(t, holder.Start())
	t.Cleanup(func() {
		_ = holder.Process.Kill()
		_ = holder.Wait()
	})
	deadline := time.Now().Add(time.Minute)
	for {
		if _, err = run("ssh-add", "-s", module); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	line, err := run("ssh-add", "-L")
	must(t, err)
	must(t, os.WriteFile(at("key.pub"), []byte(line), 0o600))
	text, err := run("ssh-keygen", "-e", "-m", "PKCS8", "-f", at("key.pub"))
	must(t, err)
	must(t, os.WriteFile(at("key.pem"), []byte(text), 0o600))
	public, err = pki.ReadPublicKey(at("key.pem"))
	must(t, err)
	return socket, public
}

// The authority's key is in a PKCS #11 token and never leaves it.
func TestKeyInAHardwareModule(t *testing.T) {
	for _, keyType := range []string{"EC:prime256v1", "EC:secp384r1", "rsa:2048"} {
		t.Run(strings.ReplaceAll(keyType, ":", "-"), func(t *testing.T) {
			socket, public := softHSM(t, keyType)
			h := newHouse(t)
			h.below(t, public, "issuing.crt")
			i := h.issuer(t, Config{Signer: Agent, Cert: h.file("issuing.crt"), Socket: socket})
			for range 3 {
				c, err := i.Issue(t.Context(), order(t, i))
				if err != nil {
					t.Fatalf("%v: %v", err, errors.Unwrap(err))
				}
				h.good(t, c)
			}
		})
	}
}
