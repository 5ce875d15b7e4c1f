package store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// S3Config says which bucket, and how to get in. The bucket must be there.
type S3Config struct {
	Endpoint  string // https://host[:port], or http:// for storage beside the node
	Bucket    string
	Prefix    string // before the names, such as backups/muster
	Region    string // "": as the storage says
	AccessKey string
	SecretKey string
	CAFile    string // "": the system's authorities
}

type bucket struct {
	cfg    S3Config
	client *minio.Client
}

// S3 keeps snapshots in a bucket of S3-compatible storage. Nothing is asked of
// it yet.
func S3(cfg S3Config) (Place, error) {
	u, err := url.Parse(cfg.Endpoint)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || strings.Trim(u.Path, "/") != "" || u.User != nil {
		return nil, errors.New("the endpoint is not of the form https://host:port")
	}
	if cfg.Bucket == "" || cfg.AccessKey == "" || cfg.SecretKey == "" {
		return nil, errors.New("bucket, access key and secret key belong together; give all three")
	}
	t, err := minio.DefaultTransport(u.Scheme == "https")
	if err != nil {
		return nil, err
	}
	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, err
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate", cfg.CAFile)
		}
		t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}
	}
	t.ResponseHeaderTimeout = time.Minute
	c, err := minio.New(u.Host, &minio.Options{
		Creds: credentials.NewStaticV4(cfg.AccessKey, cfg.SecretKey, ""), Secure: u.Scheme == "https", Transport: http.RoundTripper(t),
		Region: cfg.Region, MaxRetries: 3,
	})
	if err != nil {
		return nil, err
	}
	return &bucket{cfg: cfg, client: c}, nil
}

func (b *bucket) String() string {
	return fmt.Sprintf("%s/%s", strings.TrimSuffix(b.cfg.Endpoint, "/"), path.Join(b.cfg.Bucket, b.cfg.Prefix))
}

func (b *bucket) key(name string) string { return path.Join(b.cfg.Prefix, name) }

func (b *bucket) Put(ctx context.Context, name, file string) error {
	// The storage checks what it got against the client's own sum.
	_, err := b.client.FPutObject(ctx, b.cfg.Bucket, b.key(name), file, minio.PutObjectOptions{
		ContentType: "application/octet-stream", SendContentMd5: true, NumThreads: 1, PartSize: 64 << 20,
	})
	return err
}

func (b *bucket) List(ctx context.Context) ([]string, error) {
	prefix := ""
	if b.cfg.Prefix != "" {
		prefix = strings.TrimSuffix(b.cfg.Prefix, "/") + "/"
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var names []string
	for o := range b.client.ListObjects(ctx, b.cfg.Bucket, minio.ListObjectsOptions{Prefix: prefix}) {
		if o.Err != nil {
			return nil, o.Err
		}
		names = append(names, strings.TrimPrefix(o.Key, prefix))
	}
	return names, nil
}

func (b *bucket) Remove(ctx context.Context, name string) error {
	return b.client.RemoveObject(ctx, b.cfg.Bucket, b.key(name), minio.RemoveObjectOptions{})
}
