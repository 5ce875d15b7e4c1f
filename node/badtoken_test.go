package node_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/pki"
)

// tokens makes JWTs of an issuer whose keys a trial's nodes read from a file.
type tokens struct {
	t   *testing.T
	rsa *rsa.PrivateKey
}

const tokenIssuer = "https://ci.example.org"

// believe configures a trial's nodes, which do not run yet.
func believe(t *testing.T, tr *trial) *tokens {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k1", Use: "sig"}}})
	must(t, err)
	must(t, os.WriteFile(tr.file("jwks.json"), set, 0o600))
	tr.configure(t, `
identity:
  providers:
    - {name: ci, kind: jwt, issuer: "`+tokenIssuer+`", audiences: [muster], jwks_file: jwks.json}
`)
	return &tokens{t, key}
}

func (k *tokens) claims(changes map[string]any) string {
	c := map[string]any{"iss": tokenIssuer, "sub": "alice", "aud": "muster", "exp": time.Now().Add(time.Hour).Unix(), "groups": []string{"api_admin"}}
	maps.Copy(c, changes)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	b, err := json.Marshal(c)
	must(k.t, err)
	return string(b)
}

func (k *tokens) sign(key any, a jose.SignatureAlgorithm, payload string) string {
	k.t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: a, Key: key}, (&jose.SignerOptions{}).WithType("JWT").WithHeader("kid", "k1"))
	must(k.t, err)
	jws, err := s.Sign([]byte(payload))
	must(k.t, err)
	text, err := jws.CompactSerialize()
	must(k.t, err)
	return text
}

func (k *tokens) good(changes map[string]any) string {
	return k.sign(k.rsa, jose.RS256, k.claims(changes))
}

func (k *tokens) bad() map[string]string {
	b64 := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	der, err := x509.MarshalPKIXPublicKey(k.rsa.Public())
	must(k.t, err)
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	foreign, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(k.t, err)
	hour := time.Now().Add(time.Hour).Unix()
	good := k.good(nil)
	return map[string]string{
		"row 16, alg none":               b64(`{"alg":"none","typ":"JWT"}`) + "." + b64(k.claims(nil)) + ".",
		"row 16, alg none, signature":    b64(`{"alg":"none","typ":"JWT"}`) + "." + b64(k.claims(nil)) + good[strings.LastIndex(good, "."):],
		"row 16, HS256 by the PEM":       k.sign(public, jose.HS256, k.claims(nil)),
		"row 16, HS256 by the DER":       k.sign(der, jose.HS256, k.claims(nil)),
		"row 17, wrong audience":         k.good(map[string]any{"aud": "billing"}),
		"row 17, wrong issuer":           k.good(map[string]any{"iss": "https://example.org"}),
		"row 17, expired":                k.good(map[string]any{"exp": time.Now().Add(-time.Second).Unix()}),
		"row 17, not yet valid":          k.good(map[string]any{"nbf": hour}),
		"row 17, without expiry":         k.good(map[string]any{"exp": nil}),
		"row 17, dots":                   "....",
		"row 17, as many dots as fit":    strings.Repeat(".", 60<<10),
		"row 17, a JWE that inflates":    b64(`{"alg":"dir","enc":"A256GCM","zip":"DEF","kid":"k1"}`) + "..AAAAAAAAAAAAAAAA." + strings.Repeat("A", 8<<10) + ".AAAAAAAAAAAAAAAAAAAAAA",
		"row 17, PBES2 with many rounds": b64(`{"alg":"PBES2-HS256+A128KW","enc":"A128GCM","p2c":2147483647,"p2s":"AAAA"}`) + ".AAAA.AAAA.AAAA.AAAA",
		"row 3, the subject twice":       k.sign(k.rsa, jose.RS256, strings.Replace(k.claims(nil), `"sub"`, `"sub":"root","sub"`, 1)),
		"another's key":                  k.sign(foreign, jose.ES256, k.claims(nil)),
		"nothing":                        " ",
	}
}

// TestBadTokens sends what rows 16 and 17 of the list of bad input have to each
// port that takes tokens, with and without a good client certificate: it is
// 401, and nothing changes. CVE-2024-28180, an encrypted token that inflates in
// whoever decrypts it, is one of them.
func TestBadTokens(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, 3)
	k := believe(t, tr)
	tr.startAll()
	e := newEdge(t, tr)
	e.mustDo(t, "PUT", cartPath, `{"owner":"shop"}`)
	pair, err := tr.ca.Issue("muster", pki.Request{Role: "operator", Name: "good"}, time.Now())
	must(t, err)
	must(t, pair.Write(tr.file("good.crt"), tr.file("good.key")))
	cert, err := tls.LoadX509KeyPair(tr.file("good.crt"), tr.file("good.key"))
	must(t, err)
	certified := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: e.pool, Certificates: []tls.Certificate{cert}}}}
	t.Cleanup(certified.CloseIdleConnections)

	bad := k.bad()
	e.each(t, func(t *testing.T, node int) {
		for name, text := range bad {
			header := []string{"Authorization", "Bearer " + text}
			e.send(t, node, "HTTP/1.1", call{"GET", "/v1/services", nil, header}).want(t, 401, fault.Unauthenticated)
			e.send(t, node, "HTTP/2.0", call{"PUT", cartPath, strings.NewReader(`{"owner":"mallory"}`), header}).want(t, 401, fault.Unauthenticated)
			for _, url := range []string{tr.nodes[node].control + "/v1/services", tr.nodes[node].policy + "/v1/data"} {
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
				must(t, err)
				req.Header.Set("Authorization", "Bearer "+text)
				res, err := certified.Do(req)
				must(t, err)
				body, _ := io.ReadAll(res.Body)
				_ = res.Body.Close()
				if res.StatusCode != 401 || res.Header.Get("WWW-Authenticate") == "" {
					t.Errorf("%s, with a good certificate, %s: %d %s", name, url, res.StatusCode, body)
				}
			}
		}
		// More than a header may have is not read, and so not looked at.
		conn := e.dial(t, node)
		defer conn.Close()
		go func() {
			_, _ = fmt.Fprintf(conn, "GET /v1/services HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", strings.Repeat(".", 1<<20))
		}()
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return // closed in the middle of it, which is an answer, too
		}
		_ = res.Body.Close()
		if res.StatusCode != http.StatusRequestHeaderFieldsTooLarge && res.StatusCode != 401 {
			t.Errorf("a megabyte of dots: %d", res.StatusCode)
		}
	})
	// The good one is somebody, whatever the roles let it do.
	for i := range tr.nodes {
		a := e.send(t, i, "HTTP/2.0", call{"GET", "/v1/services", nil, []string{"Authorization", "Bearer " + k.good(nil)}})
		if a.status != 200 && a.Code != fault.Forbidden {
			t.Errorf("a good token: %d %s", a.status, a.body)
		}
	}
}
