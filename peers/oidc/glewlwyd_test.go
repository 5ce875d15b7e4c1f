package oidc_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const schema = "/usr/share/dbconfig-common/data/glewlwyd/install/sqlite3"

// debian says which of the programs and files are missing.
func debian(t *testing.T) {
	t.Helper()
	for _, name := range []string{"glewlwyd", "sqlite3", "slapd", "ldapadd", "ldapmodify"} {
		if _, err := exec.LookPath(name); err != nil {
			if _, err := os.Stat("/usr/sbin/" + name); err != nil {
				t.Skipf("LEFT OUT: %s is not installed (apt-get install glewlwyd sqlite3 slapd ldap-utils)", name)
			}
		}
	}
	for _, name := range []string{schema, "/etc/ldap/schema/inetorgperson.schema", "/usr/lib/ldap/memberof.la"} {
		if _, err := os.Stat(name); err != nil {
			t.Skipf("LEFT OUT: %s is missing (apt-get install glewlwyd slapd)", name)
		}
	}
}

func port(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, p, _ := net.SplitHostPort(l.Addr().String())
	return p
}

// config copies a file of testdata with its place-holders filled in.
func config(t *testing.T, name string, replace ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(to, []byte(strings.NewReplacer(replace...).Replace(string(b))), 0o600); err != nil {
		t.Fatal(err)
	}
	return to
}

// daemon runs a program for the length of a test.
func daemon(t *testing.T, name string, args ...string) {
	t.Helper()
	if path := "/usr/sbin/" + name; exec.Command("test", "-x", path).Run() == nil {
		name = path
	}
	cmd := exec.Command(name, args...)
	out := new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if b := out.Bytes(); t.Failed() {
			t.Logf("%s:\n%s", name, b[max(0, len(b)-4000):])
		}
	})
}

func command(t *testing.T, stdin, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// directory is an LDAP server with people and a group.
type directory struct{ url string }

func newDirectory(t *testing.T) *directory {
	t.Helper()
	dir := t.TempDir()
	d := &directory{url: "ldap://127.0.0.1:" + port(t)}
	daemon(t, "slapd", "-f", config(t, "slapd.conf", "DIR", dir), "-h", d.url, "-d", "0")
	eventually(t, "the directory answers", func() bool {
		c, err := net.Dial("tcp", strings.TrimPrefix(d.url, "ldap://"))
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	people, err := os.ReadFile("testdata/people.ldif")
	if err != nil {
		t.Fatal(err)
	}
	d.do(t, "ldapadd", string(people))
	return d
}

func (d *directory) do(t *testing.T, command_, ldif string) {
	t.Helper()
	command(t, ldif, command_, "-x", "-H", d.url, "-D", "cn=admin,dc=example,dc=org", "-w", "directory-secret")
}

// glewlwyd is Debian's OpenID provider, with the directory as its users.
type glewlwyd struct {
	t       *testing.T
	api     string
	browser *http.Client
}

func newGlewlwyd(t *testing.T, d *directory) *glewlwyd {
	t.Helper()
	dir, port := t.TempDir(), port(t)
	sql, err := os.ReadFile(schema)
	if err != nil {
		t.Fatal(err)
	}
	command(t, string(sql), "sqlite3", filepath.Join(dir, "glewlwyd.db"))
	daemon(t, "glewlwyd", "--config-file="+config(t, "glewlwyd.conf", "PORT", port, "DIR", dir))
	jar, _ := cookiejar.New(nil)
	g := &glewlwyd{t: t, api: "http://127.0.0.1:" + port + "/api/", browser: &http.Client{Jar: jar}}
	eventually(t, "glewlwyd answers", func() bool {
		resp, err := g.browser.Get(g.api)
		if err == nil {
			_ = resp.Body.Close()
		}
		return err == nil
	})
	// The password of the administrator that the package's database has.
	g.post("auth/", map[string]any{"username": "admin", "password": "password"})
	g.post("scope", map[string]any{"name": "api", "display_name": "api", "description": "the API", "password_required": true, "password_max_age": 0, "scheme": map[string]any{}})
	g.post("mod/user", map[string]any{"module": "ldap", "name": "directory", "display_name": "directory", "order_rank": 1, "readonly": true, "parameters": map[string]any{
		"uri": d.url, "bind-dn": "cn=admin,dc=example,dc=org", "bind-password": "directory-secret",
		"base-search": "ou=people,dc=example,dc=org", "search-scope": "one", "page-size": 50, "filter": "objectClass=inetOrgPerson",
		"username-property": "uid", "name-property": "cn", "email-property": "mail", "scope-property": "employeeType",
		"password-property": "userPassword", "password-algorithm": "SSHA", "rdn-property": "uid", "object-class": []string{"inetOrgPerson"},
		"data-format": map[string]any{"groups": map[string]any{"property": "memberOf", "multiple": true, "read": true, "write": false, "profile-read": true, "profile-write": false}},
	}})
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	g.post("mod/plugin", map[string]any{"module": "oidc", "name": "oidc", "display_name": "oidc", "parameters": map[string]any{
		"iss": g.issuer(), "jwt-type": "rsa", "jwt-key-size": "256", "jwks-show": true, "jwks-x5c": []string{},
		"key":                   string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})),
		"cert":                  string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})),
		"access-token-duration": 600, "refresh-token-duration": 1200, "code-duration": 600, "refresh-token-rolling": true, "allow-non-oidc": true,
		"auth-type-code-enabled": true, "auth-type-password-enabled": true, "auth-type-client-enabled": true, "auth-type-token-enabled": false,
		"auth-type-id-token-enabled": true, "auth-type-implicit-enabled": false, "auth-type-none-enabled": false, "auth-type-refresh-enabled": false,
		"subject-type": "public", "request-parameter-allow": false, "request-uri-allow-https-non-secure": false, "secret-type": "",
		"additional-parameters": []map[string]any{{"user-parameter": "groups", "token-parameter": "groups"}, {"user-parameter": "email", "token-parameter": "email"}},
		"claims":                []string{}, "scope": []string{}, "allowed-scope": []string{"openid", "api"},
		"address-claim": map[string]any{"type": "no"}, "name-claim": "no", "email-claim": "no", "scope-claim": "no",
		"introspection-revocation-allowed": true, "introspection-revocation-allow-target-client": true, "introspection-revocation-auth-scope": []string{},
		"resource-allowed": false,
	}})
	g.post("client", map[string]any{"client_id": "muster", "name": "muster", "enabled": true, "confidential": true, "client_secret": "muster-client-secret",
		"authorization_type": []string{"password", "code"}, "redirect_uri": []string{callback}, "scope": []string{"api"},
		"token_endpoint_auth_method": []string{"client_secret_basic"}})
	return g
}

func (g *glewlwyd) issuer() string { return g.api + "oidc" }

func (g *glewlwyd) post(path string, body map[string]any) {
	g.t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		g.t.Fatal(err)
	}
	resp, err := g.browser.Post(g.api+path, "application/json", bytes.NewReader(b))
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	if answer, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		g.t.Fatalf("%s: %s %s", path, resp.Status, answer)
	}
}

// token lets a user of the directory log in with a password.
func (g *glewlwyd) token(user, password string) (text string, ok bool) {
	g.t.Helper()
	form := url.Values{"grant_type": {"password"}, "username": {user}, "password": {password}, "scope": {"api"}}
	req, err := http.NewRequest(http.MethodPost, g.issuer()+"/token", strings.NewReader(form.Encode()))
	if err != nil {
		g.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth("muster", "muster-client-secret")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer struct {
		Token string `json:"access_token"`
	}
	_ = json.NewDecoder(resp.Body).Decode(&answer)
	return answer.Token, resp.StatusCode == http.StatusOK && answer.Token != ""
}

// TestDirectory: people of an LDAP directory log in at a connector, and their
// group is a claim, and the claim a role.
func TestDirectory(t *testing.T) {
	debian(t)
	d := newDirectory(t)
	g := newGlewlwyd(t, d)
	c := newCluster(t, fmt.Sprintf(`
identity:
  providers:
    - {name: directory, kind: oidc, issuer: %q, audiences: [api], claims: {subject: email}, insecure: true, key_max_age: 3s}
`, g.issuer()))
	const group = "cn=api-admins,ou=groups,dc=example,dc=org"
	c.rule("admins", "publisher", "directory", "groups", group)

	if _, ok := g.token("ann", "not-her-password"); ok {
		t.Fatal("the directory takes a wrong password")
	}
	ann, ok := g.token("ann", "anns-password")
	if !ok {
		t.Fatal("ann gets no token")
	}
	bob, ok := g.token("bob", "bobs-password")
	if !ok {
		t.Fatal("bob gets no token")
	}
	c.want("ann, who is in the group", ann, http.StatusOK, "")
	c.want("bob, who is not", bob, http.StatusForbidden, "forbidden")
	if status, code := c.call(1, http.MethodPut, "/v1/namespaces/default/services/cart", ann, `{"protocol":"rest"}`); status != http.StatusCreated {
		t.Errorf("ann registers a service: %d %s", status, code)
	}

	// The directory decides: who joins the group has the role with the next token.
	d.do(t, "ldapmodify", "dn: "+group+"\nchangetype: modify\nadd: member\nmember: uid=bob,ou=people,dc=example,dc=org\n")
	if bob, ok = g.token("bob", "bobs-password"); !ok {
		t.Fatal("bob gets no token")
	}
	c.want("bob, who is in the group now", bob, http.StatusOK, "")
	d.do(t, "ldapmodify", "dn: "+group+"\nchangetype: modify\ndelete: member\nmember: uid=ann,ou=people,dc=example,dc=org\n")
	if ann, ok = g.token("ann", "anns-password"); !ok {
		t.Fatal("ann gets no token")
	}
	c.want("ann, who has left the group", ann, http.StatusForbidden, "forbidden")
}
