package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// etcd runs three etcd servers with their default settings (fsync on), TLS 1.3
// with client certificates between all.
type etcd struct {
	binary string
	dir    string
	port   int

	nodes     []*process
	endpoints []string
	tls       *tls.Config
}

func (e *etcd) name() string { return "etcd" }

func (e *etcd) start(ctx context.Context) error {
	if err := os.RemoveAll(e.dir); err != nil {
		return err
	}
	if err := e.certificates(); err != nil {
		return err
	}
	return e.launch(ctx)
}

// members are the names and peer addresses.
func (e *etcd) members() (all []string) {
	for i := range 3 {
		all = append(all, fmt.Sprintf("n%d=https://127.0.0.1:%d", i+1, e.port+2*i+1))
	}
	return all
}

// launch starts the members on what is in their folders.
func (e *etcd) launch(ctx context.Context) error {
	cluster := e.members()
	e.endpoints = nil
	for i := range 3 {
		e.endpoints = append(e.endpoints, fmt.Sprintf("https://127.0.0.1:%d", e.port+2*i))
	}
	for i := range 3 {
		name := fmt.Sprintf("n%d", i+1)
		_, peer, _ := strings.Cut(cluster[i], "=")
		crt, key, ca := filepath.Join(e.dir, "node.crt"), filepath.Join(e.dir, "node.key"), filepath.Join(e.dir, "ca.crt")
		p, err := spawn(filepath.Join(e.dir, name+".log"), e.binary, "--name", name, "--data-dir", filepath.Join(e.dir, name),
			"--listen-client-urls", e.endpoints[i], "--advertise-client-urls", e.endpoints[i],
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
			"--initial-cluster", strings.Join(cluster, ","), "--initial-cluster-state", "new", "--initial-cluster-token", "bench",
			"--cert-file", crt, "--key-file", key, "--trusted-ca-file", ca, "--client-cert-auth",
			"--peer-cert-file", crt, "--peer-key-file", key, "--peer-trusted-ca-file", ca, "--peer-client-cert-auth",
			"--tls-min-version", "TLS1.3", "--log-level", "warn")
		if err != nil {
			return err
		}
		e.nodes = append(e.nodes, p)
	}
	for i, p := range e.nodes {
		if err := p.await(ctx, 30*time.Second, func(ctx context.Context) error { return e.probe(ctx, e.endpoints[i]) }); err != nil {
			return err
		}
	}
	return nil
}

// probe makes one linearizable read through one endpoint.
func (e *etcd) probe(ctx context.Context, endpoint string) error {
	c, err := e.dial(endpoint)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, err = c.Get(ctx, "ready")
	return err
}

func (e *etcd) dial(endpoints ...string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: endpoints, TLS: e.tls, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
}

func (e *etcd) stop() {
	for _, p := range e.nodes {
		p.stop()
	}
	e.nodes = nil
}

func (e *etcd) clear() { _ = os.RemoveAll(e.dir) }

func (e *etcd) pids() []int {
	var pids []int
	for _, p := range e.nodes {
		pids = append(pids, p.cmd.Process.Pid)
	}
	return pids
}

// etcdKey has 32 bytes.
func etcdKey(service, instance int) string {
	return fmt.Sprintf("/bench/services/%07d/i-%06d", service, instance)
}

func (e *etcd) load(ctx context.Context) error {
	var workers []func(context.Context, int) error
	for range 8 {
		c, err := e.dial(e.endpoints...)
		if err != nil {
			return err
		}
		defer c.Close()
		put := func(ctx context.Context, i int) error {
			body := instanceBody(i, "24h", "24h")
			key := etcdKey(i/(1+instances), i%(1+instances))
			if i >= services*(1+instances) {
				key = etcdKey(services+i-services*(1+instances), 0)
			}
			_, err := c.Put(ctx, key, string(body))
			return err
		}
		for range 16 {
			workers = append(workers, put)
		}
	}
	return each(ctx, records, workers)
}

// The ways people hold etcd's client. One that knows all nodes takes them in
// turn; the best of the ways counts.
const (
	oneClient   = "one client"
	perNode     = "a client per node"
	per16Worker = "a client per 16 workers"
)

func (e *etcd) variants(workers int) []string {
	switch {
	case workers < len(e.endpoints):
		return []string{oneClient}
	case workers <= 16:
		return []string{oneClient, perNode}
	}
	return []string{oneClient, perNode, per16Worker}
}

func (e *etcd) ops(kind string, workers int, variant string) ([]op, func(), error) {
	n := 1
	switch variant {
	case perNode:
		n = len(e.endpoints)
	case per16Worker:
		n = (workers + 15) / 16
	}
	var clients []*clientv3.Client
	closeAll := func() {
		for _, c := range clients {
			c.Close()
		}
	}
	for i := range n {
		endpoints := e.endpoints
		if variant == perNode {
			endpoints = endpoints[i : i+1]
		}
		c, err := e.dial(endpoints...)
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		clients = append(clients, c)
	}
	var ops []op
	for w := range workers {
		ops = append(ops, etcdOp(clients[w%n], kind, w))
	}
	return ops, closeAll, nil
}

func etcdOp(c *clientv3.Client, kind string, worker int) op {
	d := dice(worker + 1)
	if kind == kindWrite {
		return func(ctx context.Context, seq int) error {
			n := d.roll(services * instances)
			_, err := c.Put(ctx, etcdKey(n/instances, n%instances), string(instanceBody(worker<<20+seq, "24h", "24h")))
			return err
		}
	}
	var how []clientv3.OpOption
	if kind == kindLocal {
		how = append(how, clientv3.WithSerializable())
	}
	return func(ctx context.Context, _ int) error {
		got, err := c.Get(ctx, etcdKey(services+d.roll(readable), 0), how...)
		if err == nil && (len(got.Kvs) != 1 || len(got.Kvs[0].Value) != bodySize) {
			err = errors.New("the answer is not the one record asked for")
		}
		return err
	}
}

// certificates makes a CA and one certificate that serves nodes and clients alike.
func (e *etcd) certificates() error {
	if err := os.MkdirAll(e.dir, 0o755); err != nil {
		return err
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench CA"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "bench"}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	for name, block := range map[string]*pem.Block{
		"ca.crt":   {Type: "CERTIFICATE", Bytes: caDER},
		"node.crt": {Type: "CERTIFICATE", Bytes: leafDER},
		"node.key": {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(filepath.Join(e.dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			return err
		}
	}
	root, err := x509.ParseCertificate(caDER)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AddCert(root)
	e.tls = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{leafDER}, PrivateKey: key}}}
	return nil
}
