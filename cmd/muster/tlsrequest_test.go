package main

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/muster-registry/muster/pki"
)

// TestRequestAndRenew: a service's certificate by the command line, from the
// first one to its renewals, on running processes.
func TestRequestAndRenew(t *testing.T) {
	d := startDev(t, filepath.Join(t.TempDir(), "dev"), "--port-base", "0")
	s, work := d.shell(), t.TempDir()
	at := func(name string) string { return filepath.Join(work, name) }
	const id = "spiffe://muster/ns/shop/svc/cart"
	if err := os.WriteFile(at("role.yaml"), []byte("{kind: Role, name: carts, spec: {role: viewer, namespaces: [shop], match: {spiffe_id: \"spiffe://muster/ns/shop/svc/*\"}}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.ok(t, "apply", "-f", at("role.yaml"))

	s.ok(t, "tls", "request", "--spiffe-id", id, "--host", "cart.shop.svc.muster", "--dir", work, "--authority", at("workloads.crt"))
	if i, err := os.Stat(at("cart.key")); err != nil || i.Mode().Perm() != 0o600 {
		t.Errorf("the key: %v, %v", i, err)
	}
	shell{}.ok(t, "tls", "verify", at("cart.crt"), "--cacert", at("workloads.crt"), "--server-name", "cart.shop.svc.muster")
	if _, err, code := s.do(t, "tls", "request", "--spiffe-id", id, "--dir", work); code != exitError || !strings.Contains(err, "exists and is not replaced") {
		t.Errorf("a second one: %d %s", code, err)
	}
	if _, err, code := s.do(t, "tls", "request", "--spiffe-id", "spiffe://muster/muster/role/operator", "--dir", work); code == exitDone || !strings.Contains(err, "node or a role") {
		t.Errorf("an operator: %d %s", code, err)
	}
	if _, err, code := s.do(t, "tls", "request", "--spiffe-id", id, "--host", "n1", "--dir", work, "--out", "n1"); code != exitDenied || !strings.Contains(err, "does not follow") {
		t.Errorf("a node's host: %d %s", code, err)
	}

	// It needs nothing but itself to be renewed; who has it is the one who asks.
	pod := shell{env: maps.Clone(s.env)}
	delete(pod.env, "MUSTER_TOKEN")
	before := read(t, at("cart.crt"))
	if _, err, code := pod.do(t, "tls", "renew", at("cart.crt")); code != exitDone || !strings.Contains(err, "nothing was done") || !bytes.Equal(before, read(t, at("cart.crt"))) {
		t.Errorf("a fresh one: %d %s", code, err)
	}
	pod.ok(t, "tls", "renew", at("cart.crt"), "--left", "48h", "--ttl", "1h")
	p, err := pki.Read(at("cart.crt"), at("cart.key"))
	if err != nil {
		t.Fatal(err)
	}
	if p.Certificate.URIs[0].String() != id || time.Until(p.Certificate.NotAfter) > time.Hour || p.Certificate.DNSNames[0] != "cart.shop.svc.muster" {
		t.Errorf("renewed: %s", pki.Describe(p.Certificate))
	}
	if i, err := os.Stat(at("cart.crt")); err != nil || i.Mode().Perm() != 0o644 {
		t.Errorf("the certificate: %v, %v", i, err)
	}
	pod.env["MUSTER_CLIENT_CERT"], pod.env["MUSTER_CLIENT_KEY"] = at("cart.crt"), at("cart.key")
	pod.ok(t, "get", "services", "-n", "shop")
	s.ok(t, "revoke", "key", fingerprint(t, at("cart.crt")), "--reason", "a test")
	if _, err, code := pod.do(t, "tls", "renew", at("cart.crt"), "--left", "48h"); code == exitDone || !strings.Contains(err, "revoked") {
		t.Errorf("with a revoked key: %d %s", code, err)
	}

	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("LEFT OUT: openssl is not installed")
	}
	out, err := exec.Command("openssl", "req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=pay", "-addext", "subjectAltName=URI:spiffe://muster/ns/shop/svc/pay,DNS:pay.shop.svc.muster",
		"-addext", "extendedKeyUsage=serverAuth", "-keyout", at("own.key"), "-out", at("pay.csr")).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s.ok(t, "tls", "request", "--csr", at("pay.csr"), "--dir", work)
	if _, err := pki.Read(at("pay.crt"), at("own.key")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(at("pay.key")); err == nil {
		t.Error("a key was made beside that of the signing request")
	}
}

func fingerprint(t *testing.T, crt string) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", `openssl x509 -in "$0" -pubkey -noout | openssl pkey -pubin -outform der | sha256sum`, crt).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(out))[0]
}

// TestIntermediateForAKeyElsewhere: only the public half is needed.
func TestIntermediateForAKeyElsewhere(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	shell{}.ok(t, "tls", "ca", "--dir", dir)
	if out, err := exec.Command("sh", "-c", `openssl ecparam -name prime256v1 -genkey -noout -out "$0" && openssl pkey -in "$0" -pubout -out "$1"`, at("hsm.key"), at("hsm.pem")).CombinedOutput(); err != nil {
		t.Skipf("LEFT OUT: openssl is not installed: %v %s", err, out)
	}
	shell{}.ok(t, "tls", "ca", "--parent", at("ca.crt"), "--public-key", at("hsm.pem"), "--dir", dir, "--out", "issuing")
	ca, err := pki.Read(at("issuing.crt"), at("hsm.key"))
	if err != nil || !ca.Certificate.IsCA || !ca.Certificate.MaxPathLenZero {
		t.Fatalf("%+v, %v", ca, err)
	}
	if _, err := os.Stat(at("issuing.key")); err == nil {
		t.Error("a key was written")
	}
	for _, args := range [][]string{{"--public-key", at("hsm.pem")}, {"--parent", at("ca.crt"), "--public-key", at("hsm.pem"), "--algorithm", "ed25519"}} {
		if _, _, code := (shell{}).do(t, append([]string{"tls", "ca", "--dir", dir, "--out", "x"}, args...)...); code != exitUsage {
			t.Errorf("%v: %d", args, code)
		}
	}
	if _, err, code := (shell{}).do(t, "tls", "ca", "--parent", at("ca.crt"), "--public-key", at("ca.crt"), "--dir", dir, "--out", "x"); code != exitError || !strings.Contains(err, "no public key") {
		t.Errorf("a certificate for a key: %d %s", code, err)
	}
}
