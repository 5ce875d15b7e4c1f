package node_test

import (
	"crypto/tls"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/fault"
)

// openssl runs the real one in the trial's folder.
func (tr *trial) openssl(args ...string) {
	tr.t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		tr.t.Skip("LEFT OUT: openssl is not installed")
	}
	cmd := exec.CommandContext(tr.t.Context(), "openssl", args...)
	cmd.Dir = tr.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		tr.t.Fatalf("openssl %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// sign makes a key and has the CA's files sign a certificate for it.
func (tr *trial) sign(ca, name, subject, alt string, key ...string) {
	tr.t.Helper()
	tr.openssl(append([]string{"genpkey", "-out", name + ".key"}, key...)...)
	req := []string{"req", "-new", "-key", name + ".key", "-subj", subject, "-out", name + ".csr"}
	if alt != "" {
		req = append(req, "-addext", "subjectAltName="+alt)
	}
	tr.openssl(req...)
	tr.openssl("x509", "-req", "-in", name+".csr", "-CA", ca+".crt", "-CAkey", ca+".key", "-CAcreateserial", "-days", "30",
		"-copy_extensions", "copy", "-out", name+".crt")
}

// certified is a client with a certificate and no token.
func (tr *trial) certified(name string) *client.Client {
	tr.t.Helper()
	c, err := client.New(client.Config{Addresses: []string{tr.nodes[0].control}, CACert: tr.file("ca.crt"), ClientCert: tr.file(name + ".crt"), ClientKey: tr.file(name + ".key")})
	must(tr.t, err)
	tr.t.Cleanup(c.Close)
	return c
}

const nodeAlt = "URI:spiffe://muster/muster/node/n1,IP:127.0.0.1,DNS:n1"

// A root of trust made by the command of the manual, and what it signs, is
// taken as it is.
func TestCertificatesOfOpenSSL(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 1)
	tr.openssl("req", "-x509", "-nodes", "-days", "365", "-newkey", "rsa:4096", "-keyout", "registry-ca.key", "-out", "registry-ca.crt",
		"-subj", "/C=US/ST=CA/L=SF/O=Infrastructure/CN=api-internal-ca")
	must(t, os.Rename(tr.file("registry-ca.crt"), tr.file("ca.crt")))
	must(t, os.Rename(tr.file("registry-ca.key"), tr.file("ca.key")))
	tr.sign("ca", "n1", "/O=Infrastructure/CN=n1", nodeAlt, "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048")
	tr.startAll()
	for name, c := range map[string]struct {
		subject, alt string
		key          []string
		want         fault.Code
	}{
		"rsa":     {"/CN=ops", "URI:spiffe://muster/muster/role/operator", []string{"-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"}, ""},
		"p384":    {"/", "URI:spiffe://muster/muster/role/operator/ann", []string{"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"}, ""},
		"ed25519": {"/CN=ops", "URI:spiffe://muster/muster/role/operator", []string{"-algorithm", "ED25519"}, ""},
		"nobody":  {"/CN=somebody", "", []string{"-algorithm", "ED25519"}, fault.Forbidden}, // known by its name, without a role
	} {
		tr.sign("ca", name, c.subject, c.alt, c.key...)
		if _, err := tr.certified(name).Status(t.Context()); client.Code(err) != c.want {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// cert-manager's secrets: tls.crt with the chain, an RSA key as PKCS #1 or an EC
// key, ca.crt with the root; no subject, names in the SAN only.
func TestCertificatesOfCertManager(t *testing.T) {
	t.Parallel()
	for name, key := range map[string][]string{
		"PKCS1": {"genrsa", "-traditional", "2048"},
		"EC":    {"ecparam", "-name", "prime256v1", "-genkey"}, // with its block of parameters before the key
		"PKCS8": {"genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"},
	} {
		t.Run(name, func(t *testing.T) {
			tr := newTrial(t, 1)
			tr.openssl("req", "-x509", "-nodes", "-days", "365", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-keyout", "root.key", "-out", "root.crt", "-subj", "/CN=root")
			must(t, os.WriteFile(tr.file("ca.ext"), []byte("basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\n"), 0o600))
			tr.openssl("req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", "issuer.key", "-subj", "/CN=issuer", "-out", "issuer.csr")
			tr.openssl("x509", "-req", "-in", "issuer.csr", "-CA", "root.crt", "-CAkey", "root.key", "-CAcreateserial", "-days", "90", "-extfile", "ca.ext", "-out", "issuer.crt")
			leaf := func(file, alt, usage string) {
				out := append(append([]string{}, key...), "-out", file+".key")
				if name == "PKCS1" {
					out = []string{"genrsa", "-traditional", "-out", file + ".key", "2048"}
				}
				tr.openssl(out...)
				must(t, os.WriteFile(tr.file(file+".ext"), []byte("keyUsage=critical,digitalSignature,keyEncipherment\nextendedKeyUsage="+usage+"\nsubjectAltName=critical,"+alt+"\n"), 0o600))
				tr.openssl("req", "-new", "-key", file+".key", "-subj", "/", "-out", file+".csr")
				tr.openssl("x509", "-req", "-in", file+".csr", "-CA", "issuer.crt", "-CAkey", "issuer.key", "-CAcreateserial", "-days", "30", "-extfile", file+".ext", "-out", file+".crt")
				chain, err := os.ReadFile(tr.file(file + ".crt"))
				must(t, err)
				issuer, err := os.ReadFile(tr.file("issuer.crt"))
				must(t, err)
				must(t, os.WriteFile(tr.file(file+".crt"), append(chain, issuer...), 0o600))
			}
			must(t, os.Rename(tr.file("root.crt"), tr.file("ca.crt")))
			leaf("n1", nodeAlt, "serverAuth,clientAuth")
			leaf("operator", "URI:spiffe://muster/muster/role/operator", "clientAuth")
			tr.startAll()
			if _, err := tr.certified("operator").Status(t.Context()); err != nil {
				t.Error(err)
			}
			conn, err := tls.Dial("tcp", strings.TrimPrefix(tr.nodes[0].control, "https://"), &tls.Config{InsecureSkipVerify: true})
			must(t, err)
			defer conn.Close()
			if shown := conn.ConnectionState().PeerCertificates; len(shown) != 2 {
				t.Error(fmt.Errorf("the chain has %d certificates, want the issuer's too", len(shown)))
			}
		})
	}
}
