package oidc_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/zitadel/oidc/v3/example/server/exampleop"
	"github.com/zitadel/oidc/v3/example/server/storage"
	"github.com/zitadel/oidc/v3/pkg/op"
)

const callback = "http://127.0.0.1/callback"

// zitadel is zitadel's provider with the storage of its own example, whose
// signing key can be changed, and whose service users get JWTs.
type zitadel struct {
	*storage.Storage
	t      *testing.T
	addr   string
	issuer string
	srv    *http.Server

	mu   sync.Mutex
	keys []*signingKey // the last one signs
}

type signingKey struct {
	id  string
	key *rsa.PrivateKey
}

func (k *signingKey) SignatureAlgorithm() jose.SignatureAlgorithm { return jose.RS256 }
func (k *signingKey) Key() any                                    { return k.key }
func (k *signingKey) ID() string                                  { return k.id }

type publicKey struct{ *signingKey }

func (k publicKey) Algorithm() jose.SignatureAlgorithm { return jose.RS256 }
func (k publicKey) Use() string                        { return "sig" }
func (k publicKey) Key() any                           { return k.key.Public() }

// SigningKey and KeySet implement op.Storage.
func (z *zitadel) SigningKey(context.Context) (op.SigningKey, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.keys[len(z.keys)-1], nil
}

func (z *zitadel) KeySet(context.Context) (out []op.Key, _ error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	for _, k := range z.keys {
		out = append(out, publicKey{k})
	}
	return out, nil
}

// rotate signs with a new key from now on, and keeps the last so many.
func (z *zitadel) rotate(keep int) {
	z.t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		z.t.Fatal(err)
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	z.keys = append(z.keys, &signingKey{rand.Text(), key})
	z.keys = z.keys[max(0, len(z.keys)-keep):]
}

// ClientCredentials implements op.ClientCredentialsStorage.
func (z *zitadel) ClientCredentials(ctx context.Context, id, secret string) (op.Client, error) {
	c, err := z.Storage.ClientCredentials(ctx, id, secret)
	if err != nil {
		return nil, err
	}
	return jwtClient{c}, nil
}

type jwtClient struct{ op.Client }

func (jwtClient) AccessTokenType() op.AccessTokenType { return op.AccessTokenTypeJWT }

// GetPrivateClaimsFromScopes implements op.Storage: what tokens say of groups.
func (z *zitadel) GetPrivateClaimsFromScopes(_ context.Context, user, _ string, _ []string) (map[string]any, error) {
	return map[string]any{"groups": []string{"robots", "of-" + user}}, nil
}

func newZitadel(t *testing.T) *zitadel {
	t.Helper()
	storage.RegisterClients(storage.WebClient("muster-web", "s3cret", callback))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	z := &zitadel{t: t, addr: l.Addr().String(), issuer: "http://" + l.Addr().String()}
	z.Storage = storage.NewStorage(storage.NewUserStore(z.issuer))
	z.rotate(2)
	z.serve(l)
	return z
}

func (z *zitadel) serve(l net.Listener) {
	z.srv = &http.Server{Handler: exampleop.SetupServer(z.issuer, z, slog.New(slog.DiscardHandler), false)}
	srv := z.srv
	go func() { _ = srv.Serve(l) }()
	z.t.Cleanup(func() { _ = srv.Close() })
}

func (z *zitadel) kill() { _ = z.srv.Close() }

func (z *zitadel) revive() {
	z.t.Helper()
	l, err := net.Listen("tcp", z.addr)
	if err != nil {
		z.t.Fatal(err)
	}
	z.serve(l)
}

// mint makes a token as the provider would, also while that is away.
func (z *zitadel) mint(subject string) string {
	z.t.Helper()
	z.mu.Lock()
	k := z.keys[len(z.keys)-1]
	z.mu.Unlock()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: k.key, KeyID: k.id}}, nil)
	if err != nil {
		z.t.Fatal(err)
	}
	text, err := jwt.Signed(s).Claims(map[string]any{
		"iss": z.issuer, "sub": subject, "aud": "sid1", "exp": time.Now().Add(time.Hour).Unix(), "groups": []string{"robots"},
	}).Serialize()
	if err != nil {
		z.t.Fatal(err)
	}
	return text
}

type granted struct {
	ID     string `json:"id_token"`
	Access string `json:"access_token"`
}

// grant asks the token endpoint.
func (z *zitadel) grant(id, secret string, form url.Values) granted {
	z.t.Helper()
	req, err := http.NewRequest(http.MethodPost, z.issuer+"/oauth/token", strings.NewReader(form.Encode()))
	if err != nil {
		z.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth(id, secret)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		z.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		z.t.Fatalf("the token endpoint: %s %s %v", resp.Status, body, err)
	}
	var g granted
	if err := json.Unmarshal(body, &g); err != nil {
		z.t.Fatal(err)
	}
	return g
}

// robot gets a token by client credentials.
func (z *zitadel) robot() string {
	z.t.Helper()
	return z.grant("sid1", "verysecret", url.Values{"grant_type": {"client_credentials"}, "scope": {"openid"}}).Access
}

// login goes through the pages as a browser does (authorization code flow).
func (z *zitadel) login(user string) granted {
	z.t.Helper()
	jar, _ := cookiejar.New(nil)
	browser := &http.Client{Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	at := z.issuer + "/auth?" + url.Values{"client_id": {"muster-web"}, "redirect_uri": {callback}, "response_type": {"code"}, "scope": {"openid profile"}, "state": {"x"}}.Encode()
	for range 6 {
		resp, err := browser.Get(at)
		if err != nil {
			z.t.Fatal(err)
		}
		_ = resp.Body.Close()
		next, err := resp.Location()
		if err != nil { // the page that asks for the password
			id := resp.Request.URL.Query().Get("authRequestID")
			resp, err = browser.PostForm(z.issuer+"/login/username", url.Values{"username": {user}, "password": {"verysecure"}, "id": {id}})
			if err != nil {
				z.t.Fatal(err)
			}
			_ = resp.Body.Close()
			if next, err = resp.Location(); err != nil {
				z.t.Fatalf("the login of %s: %s", user, resp.Status)
			}
		}
		if code := next.Query().Get("code"); code != "" {
			return z.grant("muster-web", "s3cret", url.Values{"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {callback}})
		}
		at = next.String()
	}
	z.t.Fatal("the login leads nowhere")
	return granted{}
}

func TestZitadel(t *testing.T) {
	z := newZitadel(t)
	c := newCluster(t, fmt.Sprintf(`
identity:
  providers:
    - {name: zitadel, kind: oidc, issuer: %[1]q, audiences: [muster-web, sid1], insecure: true, key_max_age: 3s}
    - {name: opaque, kind: introspection, introspection_url: "%[1]s/oauth/introspect", client_id: muster-web, client_secret_file: %[2]q, insecure: true}
`, z.issuer, secretFile(t, "s3cret")))

	person, robot := z.login("test-user@127.0.0.1"), z.robot()
	// Known, and without a role.
	c.want("a person without a role", person.ID, http.StatusForbidden, "forbidden")
	c.want("a robot without a role", robot, http.StatusForbidden, "forbidden")
	c.rule("robots", "viewer", "zitadel", "groups", "robots")
	c.rule("people", "viewer", "zitadel", "aud", "muster-web")
	c.rule("opaque", "viewer", "opaque", "client_id", "muster-web")
	c.want("a person by the code flow", person.ID, http.StatusOK, "")
	c.want("a robot by its client credentials", robot, http.StatusOK, "")
	c.want("an opaque access token", person.Access, http.StatusOK, "")
	c.want("an opaque token of nobody", strings.Repeat("A", len(person.Access)), http.StatusUnauthorized, "unauthenticated")
	if status, code := c.call(0, http.MethodPut, "/v1/namespaces/default/services/cart", robot, `{}`); status != http.StatusForbidden {
		t.Errorf("a viewer registers a service: %d %s", status, code)
	}

	// A new signing key is known at its first use; the old one when it is gone.
	z.rotate(2)
	rotated := z.robot()
	c.want("signed by the new key", rotated, http.StatusOK, "")
	c.want("signed by the key before", z.login("test-user@127.0.0.1").ID, http.StatusOK, "")

	// The provider dies: who is known stays, nobody new comes in.
	stranger, opaque := z.robot(), z.login("test-user2").Access
	z.kill()
	for i := range c.Nodes {
		n := 0
		eventually(t, "nobody new comes in", func() bool {
			n++
			status, code := c.lookUp(i, z.mint(fmt.Sprint("robot-", i, "-", n)))
			return status == http.StatusServiceUnavailable && code == "identity_provider_unavailable"
		})
	}
	c.want("a robot that comes while the provider is away", stranger, http.StatusServiceUnavailable, "identity_provider_unavailable")
	c.want("an opaque token that comes while the provider is away", opaque, http.StatusServiceUnavailable, "identity_provider_unavailable")
	c.want("a session while the provider is away", person.ID, http.StatusOK, "")
	c.want("an opaque session while the provider is away", person.Access, http.StatusOK, "")

	// It comes back.
	z.revive()
	for i := range c.Nodes {
		eventually(t, "the stranger comes in", func() bool { status, _ := c.lookUp(i, opaque); return status == http.StatusOK })
		eventually(t, "the robot comes in", func() bool { status, _ := c.lookUp(i, stranger); return status == http.StatusOK })
	}
}
