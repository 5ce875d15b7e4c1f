package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// decisionPath is what both are asked.
const decisionPath = "/v1/data/api/registry/authz/allow"

// askedPolicy is the policy of examples/policies/api-admin, word for word but
// for the built-in that only muster has: both are given the same text.
func askedPolicy() (string, error) {
	b, err := os.ReadFile(filepath.Join("..", "examples", "policies", "api-admin", "registry.rego"))
	if err != nil {
		return "", err
	}
	return strings.ReplaceAll(string(b), "is_valid_schema(", "parses(") + "\nparses(document) {\n\tdocument.openapi\n}\n", nil
}

// issuer signs the tokens that callers bring.
type issuer struct{ key *ecdsa.PrivateKey }

func newIssuer() (*issuer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	return &issuer{key}, err
}

// data is what the policy knows of the issuer.
func (s *issuer) data() (map[string]any, error) {
	point, err := s.key.PublicKey.Bytes() // 4, x, y
	if err != nil {
		return nil, err
	}
	return map[string]any{"jwt": map[string]any{"issuer": "https://login.example", "audience": "muster", "keys": []any{map[string]string{
		"kty": "EC", "crv": "P-256", "alg": "ES256", "x": encode(point[1:33]), "y": encode(point[33:]),
	}}}}, nil
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// token is one for an administrator, good for a day.
func (s *issuer) token(subject string) (string, error) {
	claims, err := json.Marshal(map[string]any{
		"iss": "https://login.example", "aud": "muster", "sub": subject, "roles": []string{"dev", "api_admin"}, "exp": time.Now().Add(24 * time.Hour).Unix(),
	})
	if err != nil {
		return "", err
	}
	text := encode([]byte(`{"alg":"ES256","typ":"JWT"}`)) + "." + encode(claims)
	sum := sha256.Sum256([]byte(text))
	r, t, err := ecdsa.Sign(rand.Reader, s.key, sum[:])
	if err != nil {
		return "", err
	}
	signature := make([]byte, 64)
	for i, n := range []*big.Int{r, t} {
		n.FillBytes(signature[32*i : 32*i+32])
	}
	return text + "." + encode(signature), nil
}

// question is a body as the registry's own input looks, with that token.
func question(token string) []byte {
	return fmt.Appendf(nil, `{"input":{"action":"register","protocol":"https","method":"PUT","path":["v1","namespaces","default","services","cart"],`+
		`"attributes":{"request":{"http":{"method":"PUT","path":"/v1/namespaces/default/services/cart","host":"muster.example","scheme":"https","headers":{"authorization":"Bearer %s","content-type":"application/json"}}},"source":{"address":"10.0.0.7"}},`+
		`"principal":{"id":"ann","kind":"oidc","roles":["publisher"],"namespaces":[]},`+
		`"resource":{"kind":"service","namespace":"default","name":"cart","metadata":{"security_level":"restricted"},"payload":{"openapi":"3.1.0","info":{"title":"cart","version":"1"},"paths":{}},"previous":null}}}`, token)
}

// opa is one `opa run --server`, with the certificate that muster's node has.
type opa struct {
	binary, dir, cert, key string
	port                   int
	process                *process
}

func (o *opa) start(ctx context.Context, module string, data map[string]any, logged bool) error {
	if err := os.RemoveAll(o.dir); err != nil {
		return err
	}
	if err := os.MkdirAll(o.dir, 0o755); err != nil {
		return err
	}
	b, err := json.Marshal(data)
	if err != nil {
		return err
	}
	policyFile, dataFile := filepath.Join(o.dir, "policy.rego"), filepath.Join(o.dir, "data.json")
	if err := os.WriteFile(policyFile, []byte(module), 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(dataFile, b, 0o600); err != nil {
		return err
	}
	address := "127.0.0.1:" + strconv.Itoa(o.port)
	// The module is in Rego v0. --log-level error leaves the request log out;
	// the decision log is apart from it.
	args := []string{"run", "--server", "--v0-compatible", "--disable-telemetry", "--addr", "https://" + address, "--log-level", "error",
		"--tls-cert-file", o.cert, "--tls-private-key-file", o.key}
	if logged {
		args = append(args, "--set", "decision_logs.console=true")
	}
	if o.process, err = spawn(o.dir+".log", o.binary, append(args, policyFile, dataFile)...); err != nil {
		return err
	}
	return o.process.await(ctx, 30*time.Second, func(ctx context.Context) error {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err == nil {
			_ = c.Close()
		}
		return err
	})
}

func (o *opa) stop() {
	if o.process != nil {
		o.process.stop()
		o.process = nil
	}
}
