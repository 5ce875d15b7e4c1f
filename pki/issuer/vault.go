package issuer

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/pki"
)

// VaultConfig says which role of a PKI secrets engine signs.
type VaultConfig struct {
	Address   string // https://…; http:// on loopback only
	Mount     string // path of the engine, such as pki
	Role      string
	TokenFile string // read for each certificate, so that it can be renewed
	CAFile    string // authorities of Vault's own certificate; "": the system's
}

func (c *VaultConfig) validate() (errs []error) {
	u, err := url.Parse(c.Address)
	loopback := err == nil && (u.Hostname() == "localhost" || net.ParseIP(u.Hostname()).IsLoopback())
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Scheme != "https" && (u.Scheme != "http" || !loopback) {
		errs = append(errs, errors.New("vault.address: must be https://HOST[:PORT], or http:// on loopback, without credentials"))
	}
	for _, f := range []struct{ name, value string }{{"mount", c.Mount}, {"role", c.Role}} {
		if f.value == "" || strings.Trim(f.value, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-/") != "" || strings.Contains(f.value, "..") {
			errs = append(errs, fmt.Errorf("vault.%s: %q is none", f.name, f.value))
		}
	}
	if c.TokenFile == "" {
		errs = append(errs, errors.New("vault.token_file: name the file with the token that may sign"))
	}
	return errs
}

const maxAnswer = 1 << 20

// atVault has Vault sign, by its HTTP API: POST /v1/MOUNT/sign/ROLE.
type atVault struct {
	cfg    VaultConfig
	url    string
	http   *http.Client
	logger *slog.Logger
}

func newVault(cfg VaultConfig, logger *slog.Logger) (*atVault, error) {
	t := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		TLSHandshakeTimeout: 5 * time.Second, ResponseHeaderTimeout: patience, MaxIdleConnsPerHost: atOnce, IdleConnTimeout: time.Minute,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true,
	}
	if cfg.CAFile != "" {
		roots, err := pki.Roots(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("certificates.vault.ca_file: %w", err)
		}
		t.TLSClientConfig.RootCAs = roots
	}
	return &atVault{
		cfg: cfg, url: strings.TrimSuffix(cfg.Address, "/") + "/v1/" + strings.Trim(cfg.Mount, "/") + "/sign/" + cfg.Role, logger: logger,
		http: &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
	}, nil
}

func (v *atVault) chain() ([]*x509.Certificate, error) { return nil, nil }

func (v *atVault) sign(ctx context.Context, o *Order, _ time.Time) ([]*x509.Certificate, error) {
	token, err := os.ReadFile(v.cfg.TokenFile)
	if err != nil {
		return nil, fmt.Errorf("certificates.vault.token_file: %w", err)
	}
	ask := map[string]string{
		"csr": string(o.csr.PEM()), "uri_sans": o.ID.String(), "ttl": fmt.Sprintf("%ds", int64(o.TTL/time.Second)), "format": "pem",
		"alt_names": strings.Join(o.template.DNSNames, ","), "ip_sans": strings.Join(o.Hosts[len(o.template.DNSNames):], ","),
		"common_name": o.template.Subject.CommonName, "exclude_cn_from_sans": "true",
	}
	body, err := json.Marshal(ask)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, v.url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("X-Vault-Token", strings.TrimSpace(string(token)))
	req.Header.Set("X-Vault-Request", "true")
	req.Header.Set("Content-Type", "application/json")
	res, err := v.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("no answer from Vault: %w", err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil || len(answer) > maxAnswer {
		return nil, fmt.Errorf("the answer of Vault cannot be read to its end, or has more than %d bytes: %w", maxAnswer, errors.Join(err))
	}
	return v.read(res.StatusCode, answer)
}

func (v *atVault) read(status int, answer []byte) ([]*x509.Certificate, error) {
	var said struct {
		Errors []string `json:"errors"`
		Data   struct {
			Certificate string   `json:"certificate"`
			IssuingCA   string   `json:"issuing_ca"`
			Chain       []string `json:"ca_chain"`
		} `json:"data"`
	}
	err := json.Unmarshal(answer, &said)
	switch {
	case status == http.StatusBadRequest:
		v.logger.Error("Vault refuses to sign", "role", v.cfg.Role, "errors", said.Errors)
		return nil, fault.New(fault.Forbidden, "the authority outside the cluster refuses this certificate; this node's log has its reason")
	case status != http.StatusOK:
		return nil, fmt.Errorf("status %d from Vault: %s", status, strings.Join(said.Errors, "; "))
	case err != nil:
		return nil, fmt.Errorf("the answer of Vault is not what it should be: %w", err)
	}
	chain, err := pki.DecodeCertificates([]byte(said.Data.Certificate))
	if err != nil {
		return nil, fmt.Errorf("the certificate that Vault answers: %w", err)
	}
	above := strings.Join(said.Data.Chain, "\n")
	if above == "" {
		above = said.Data.IssuingCA
	}
	cas, err := pki.DecodeCertificates([]byte(above))
	if err != nil {
		return nil, fmt.Errorf("the chain that Vault answers: %w", err)
	}
	for _, c := range cas {
		if !bytes.Equal(c.RawIssuer, c.RawSubject) { // whoever verifies has the roots
			chain = append(chain, c)
		}
	}
	return chain, nil
}
