package registry

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// The limits of what a check may say; lengths are in bytes.
const (
	maxChecks     = 16
	maxTarget     = 2048
	maxHeaders    = 32
	maxHeaderSize = 4096 // all of them
	maxCheckBody  = 4096
	maxCA         = 16 << 10
	maxTimeout    = Duration(time.Minute)
	maxStreak     = 100
)

func (f *fields) checks(checks []Check) {
	if len(checks) > maxChecks {
		f.add("/checks", fmt.Sprintf("must be at most %d checks", maxChecks))
		return
	}
	seen := map[string]bool{}
	for i := range checks {
		c, p := &checks[i], "/checks/"+strconv.Itoa(i)
		f.among(p+"/type", c.Type, CheckHTTP, CheckTCP, CheckGRPC, CheckTTL)
		f.text(p+"/id", c.ID, maxTag)
		if seen[c.ID] {
			f.add(p+"/id", "stands twice; give each check an id of its own")
		}
		seen[c.ID] = true
		f.text(p+"/name", c.Name, maxTag)
		f.text(p+"/notes", c.Notes, maxDescription)
		if !target(c.Type, c.Target) {
			f.add(p+"/target", "must be an http or https URL for http, host:port for tcp and grpc, empty for ttl")
		}
		if c.InitialStatus != "" {
			f.among(p+"/initial_status", c.InitialStatus, Passing, Warning, Critical)
		}
		f.only(p, c)
		if c.Type != CheckTTL {
			f.duration(p+"/interval", c.Interval, minTTL, maxTTL)
			f.duration(p+"/timeout", c.Timeout, Duration(time.Millisecond), min(c.Interval, maxTimeout))
			f.number(p+"/failures_before_critical", c.FailuresBeforeCritical, 1, maxStreak)
			f.number(p+"/successes_before_passing", c.SuccessesBeforePassing, 1, maxStreak)
		} else if c.TTL != 0 {
			f.duration(p+"/ttl", c.TTL, minTTL, maxTTL)
		}
		f.request(p, c)
		f.trust(p+"/tls", c)
	}
}

// only refuses what a check of another type would have.
func (f *fields) only(p string, c *Check) {
	ttl, http := c.Type == CheckTTL, c.Type == CheckHTTP
	for _, m := range []struct {
		name       string
		given, has bool
		of         string
	}{
		{"ttl", c.TTL != 0, ttl, "ttl"},
		{"interval", c.Interval != 0, !ttl, "http, tcp and grpc"},
		{"timeout", c.Timeout != 0, !ttl, "http, tcp and grpc"},
		{"failures_before_critical", c.FailuresBeforeCritical != 0, !ttl, "http, tcp and grpc"},
		{"successes_before_passing", c.SuccessesBeforePassing != 0, !ttl, "http, tcp and grpc"},
		{"tls", c.TLS != nil, !ttl, "http, tcp and grpc"},
		{"service", c.Service != "", c.Type == CheckGRPC, "grpc"},
		{"method", c.Method != "", http, "http"},
		{"headers", len(c.Headers) > 0, http, "http"},
		{"body", c.Body != "", http, "http"},
		{"expect", c.Expect != nil, http, "http"},
	} {
		if m.given && !m.has {
			f.add(p+"/"+m.name, "is for checks of type "+m.of+"; remove it")
		}
	}
}

// request checks what is sent and what is expected.
func (f *fields) request(p string, c *Check) {
	f.text(p+"/service", c.Service, maxText)
	if c.Method != "" {
		f.among(p+"/method", c.Method, "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
	}
	size := 0
	for _, name := range sortedKeys(c.Headers) {
		size += len(name)
		if !token(name) {
			f.add(p+"/headers", "must have names of letters, digits and hyphens")
			return
		}
		for _, v := range c.Headers[name] {
			size += len(v)
			if strings.ContainsFunc(v, control) {
				f.add(p+"/headers/"+escape(name), "must not contain control characters")
			}
		}
	}
	if len(c.Headers) > maxHeaders || size > maxHeaderSize {
		f.add(p+"/headers", fmt.Sprintf("must be at most %d, of %d bytes in all", maxHeaders, maxHeaderSize))
	}
	if len(c.Body) > maxCheckBody {
		f.add(p+"/body", fmt.Sprintf("must be at most %d bytes", maxCheckBody))
	}
	if c.Expect == nil {
		return
	}
	if len(c.Expect.Body) > maxCheckBody {
		f.add(p+"/expect/body", fmt.Sprintf("must be at most %d bytes", maxCheckBody))
	}
	if len(c.Expect.Status) > maxHeaders {
		f.add(p+"/expect/status", fmt.Sprintf("must be at most %d", maxHeaders))
	}
	for _, s := range c.Expect.Status {
		if s < 200 || s > 599 {
			f.add(p+"/expect/status", "must be 200 to 599")
			return
		}
	}
}

// token accepts the names of headers as they are in use.
func token(s string) bool {
	return s != "" && len(s) <= maxTag && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == ""
}

func (f *fields) trust(p string, c *Check) {
	if c.TLS == nil {
		return
	}
	if c.TLS.ServerName != "" && !address(c.TLS.ServerName) {
		f.add(p+"/server_name", "must be a host name")
	}
	if c.TLS.CA == "" {
		return
	}
	if len(c.TLS.CA) > maxCA {
		f.add(p+"/ca", "must be at most 16 KiB")
		return
	}
	rest := []byte(c.TLS.CA)
	for first := true; ; first = false {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			if first || strings.TrimSpace(string(rest)) != "" {
				f.add(p+"/ca", "must be certificates in PEM")
			}
			return
		}
		if _, err := x509.ParseCertificate(block.Bytes); block.Type != "CERTIFICATE" || err != nil {
			f.add(p+"/ca", "must be certificates in PEM")
			return
		}
	}
}

func target(kind, s string) bool {
	switch kind {
	case CheckTTL:
		return s == ""
	case CheckHTTP:
		u, err := url.Parse(s)
		return err == nil && len(s) <= maxTarget && (u.Scheme == "http" || u.Scheme == "https") && u.User == nil && address(u.Hostname())
	case CheckTCP, CheckGRPC:
		i := strings.LastIndexByte(s, ':')
		if i < 0 {
			return false
		}
		port, err := strconv.ParseUint(s[i+1:], 10, 16)
		host := s[:i]
		if strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") {
			host = host[1 : len(host)-1]
		}
		return err == nil && port > 0 && address(host)
	}
	return true // the type itself is the mistake
}
