package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/muster-registry/muster/client"
)

// settings say which cluster is meant and who calls: a flag wins over the
// environment, that over the context file, that over the default.
type settings struct {
	Addr       string `yaml:"addr"`
	Token      string `yaml:"token"`
	TokenFile  string `yaml:"token_file"`
	CACert     string `yaml:"cacert"`
	ClientCert string `yaml:"client_cert"`
	ClientKey  string `yaml:"client_key"`
	Namespace  string `yaml:"namespace"`

	context string
	timeout time.Duration
}

const (
	defaultAddr      = "https://127.0.0.1:8443"
	defaultNamespace = "default"
)

func (s *settings) flags(f *pflag.FlagSet) {
	f.StringVar(&s.Addr, "addr", "", "addresses of nodes, separated by commas (MUSTER_ADDR; default "+defaultAddr+")")
	f.StringVar(&s.Token, "token", "", "bearer token; better in a file (MUSTER_TOKEN)")
	f.StringVar(&s.TokenFile, "token-file", "", "file with the bearer token (MUSTER_TOKEN_FILE)")
	f.StringVar(&s.CACert, "cacert", "", "PEM file with the cluster's CA (MUSTER_CACERT)")
	f.StringVar(&s.ClientCert, "client-cert", "", "PEM file with a client certificate (MUSTER_CLIENT_CERT)")
	f.StringVar(&s.ClientKey, "client-key", "", "PEM file with its key (MUSTER_CLIENT_KEY)")
	f.StringVarP(&s.Namespace, "namespace", "n", "", "namespace (MUSTER_NAMESPACE; default "+defaultNamespace+")")
	f.StringVar(&s.context, "context", "", "which part of the context file to use (MUSTER_CONTEXT)")
	f.DurationVar(&s.timeout, "timeout", 15*time.Second, "how long one call may take, with its retries")
}

// resolve fills in what the flags left open.
func (s settings) resolve(env func(string) string) (settings, error) {
	file, err := s.contextFile(env)
	if err != nil {
		return s, err
	}
	for _, v := range []struct {
		to        *string
		name      string
		file, def string
	}{
		{&s.Addr, "MUSTER_ADDR", file.Addr, defaultAddr},
		{&s.CACert, "MUSTER_CACERT", file.CACert, ""},
		{&s.ClientCert, "MUSTER_CLIENT_CERT", file.ClientCert, ""},
		{&s.ClientKey, "MUSTER_CLIENT_KEY", cmp.Or(env("MUSTER_CLIENT_KEY_FILE"), file.ClientKey), ""},
		{&s.Namespace, "MUSTER_NAMESPACE", file.Namespace, defaultNamespace},
	} {
		*v.to = cmp.Or(*v.to, env(v.name), v.file, v.def)
	}
	// A token and a token file are one setting: the first place that has either
	// decides.
	for _, from := range []settings{
		{Token: env("MUSTER_TOKEN"), TokenFile: env("MUSTER_TOKEN_FILE")},
		{Token: file.Token, TokenFile: file.TokenFile},
	} {
		if s.Token == "" && s.TokenFile == "" {
			s.Token, s.TokenFile = from.Token, from.TokenFile
		}
	}
	if s.Token == "" && s.TokenFile != "" {
		b, err := os.ReadFile(s.TokenFile)
		if err != nil {
			return s, fmt.Errorf("the token cannot be read: %w", err)
		}
		if s.Token = strings.TrimSpace(string(b)); s.Token == "" {
			return s, fmt.Errorf("the token file %s is empty", s.TokenFile)
		}
	}
	return s, nil
}

// contextFile reads $XDG_CONFIG_HOME/muster/config.yaml, or MUSTER_CONFIG:
//
//	current: dev
//	contexts:
//	  dev: {addr: …, cacert: …, token_file: …, namespace: …}
func (s settings) contextFile(env func(string) string) (settings, error) {
	wanted := cmp.Or(s.context, env("MUSTER_CONTEXT"))
	path := env("MUSTER_CONFIG")
	if path == "" {
		dir := env("XDG_CONFIG_HOME")
		if dir == "" && env("HOME") != "" {
			dir = filepath.Join(env("HOME"), ".config")
		}
		path = filepath.Join(dir, "muster", "config.yaml")
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && wanted == "" && env("MUSTER_CONFIG") == "" {
		return settings{}, nil
	}
	if err != nil {
		return settings{}, fmt.Errorf("the context file cannot be read: %w", err)
	}
	var file struct {
		Current  string              `yaml:"current"`
		Contexts map[string]settings `yaml:"contexts"`
	}
	d := yaml.NewDecoder(strings.NewReader(string(b)))
	d.KnownFields(true)
	if err := d.Decode(&file); err != nil {
		return settings{}, fmt.Errorf("the context file %s: %w", path, err)
	}
	wanted = cmp.Or(wanted, file.Current)
	if wanted == "" {
		return settings{}, nil
	}
	got, ok := file.Contexts[wanted]
	if !ok {
		return settings{}, fmt.Errorf("the context file %s has no context %q", path, wanted)
	}
	for _, p := range []*string{&got.TokenFile, &got.CACert, &got.ClientCert, &got.ClientKey} {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(filepath.Dir(path), *p)
		}
	}
	return got, nil
}

// dial resolves the settings and makes a client of them.
func (a *app) dial() (*client.Client, error) {
	s, err := a.settings.resolve(a.env)
	if err != nil {
		return nil, err
	}
	a.settings = s
	return s.dial()
}

// dialAs is dial for a caller who proves itself by this certificate alone.
func (a *app) dialAs(crt, key string) (*client.Client, error) {
	s, err := a.settings.resolve(a.env)
	if err != nil {
		return nil, err
	}
	s.Token, s.ClientCert, s.ClientKey = "", crt, key
	return s.dial()
}

func (s settings) dial() (*client.Client, error) {
	var addrs []string
	for part := range strings.SplitSeq(s.Addr, ",") {
		if part = strings.TrimSpace(part); part != "" {
			addrs = append(addrs, part)
		}
	}
	return client.New(client.Config{
		Addresses: addrs, Token: s.Token, CACert: s.CACert, ClientCert: s.ClientCert, ClientKey: s.ClientKey,
		Timeout: s.timeout, UserAgent: "muster/" + version,
	})
}
