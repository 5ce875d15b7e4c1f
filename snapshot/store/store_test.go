package store_test

import (
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"github.com/muster-registry/muster/snapshot/store"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// places are a folder and a real bucket, each with things of others in it.
func places(t *testing.T) map[string]store.Place {
	backend := s3mem.New()
	check(t, backend.CreateBucket("backups"))
	s := httptest.NewServer(gofakes3.New(backend).Server())
	t.Cleanup(s.Close)
	s3, err := store.S3(store.S3Config{Endpoint: s.URL, Bucket: "backups", Prefix: "muster", Region: "us-east-1", AccessKey: "a", SecretKey: "s"})
	check(t, err)
	return map[string]store.Place{"folder": store.Folder(filepath.Join(t.TempDir(), "deep", "er")), "s3": s3}
}

func TestKeepingSnapshots(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	check(t, os.WriteFile(file, []byte("content"), 0o600))
	at := time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)
	for kind, p := range places(t) {
		t.Run(kind, func(t *testing.T) {
			if all, err := store.List(t.Context(), p, "c1"); err != nil || len(all) != 0 {
				t.Fatalf("nothing is there yet: %v, %v", all, err)
			}
			var others []string
			for i := range 5 {
				check(t, p.Put(t.Context(), store.Name("c1", at.Add(time.Duration(i)*time.Hour), uint64(10+i), i%2 == 0), file))
				others = append(others, store.Name("c2", at.Add(time.Duration(i)*time.Hour), 1, false))
			}
			others = append(others, "muster-c1-notes.txt", "muster-c1-20260506T070809Z-r1.snapshot.bak", "my-c1-20260506T070809Z-r1.snapshot")
			for _, n := range others {
				check(t, p.Put(t.Context(), n, file))
			}
			check(t, store.Prune(t.Context(), p, "c1", 2))
			all, err := store.List(t.Context(), p, "c1")
			check(t, err)
			if len(all) != 2 || all[0].Revision != 13 || all[1].Revision != 14 || !all[1].Taken.Equal(at.Add(4*time.Hour)) {
				t.Errorf("what is kept: %+v", all)
			}
			names, err := p.List(t.Context())
			check(t, err)
			for _, n := range others {
				if !slices.Contains(names, n) {
					t.Errorf("%s is no snapshot of this cluster, and was removed", n)
				}
			}
			check(t, p.Remove(t.Context(), "is-not-there"))
		})
	}
}

func TestS3SettingsThatCannotBe(t *testing.T) {
	good := store.S3Config{Endpoint: "https://s3.example.org", Bucket: "b", AccessKey: "a", SecretKey: "s"}
	for i, change := range []func(*store.S3Config){
		func(c *store.S3Config) { c.Endpoint = "s3.example.org" }, func(c *store.S3Config) { c.Endpoint = "https://u:p@s3.example.org" },
		func(c *store.S3Config) { c.Endpoint = "https://s3.example.org/path" }, func(c *store.S3Config) { c.Bucket = "" },
		func(c *store.S3Config) { c.SecretKey = "" }, func(c *store.S3Config) { c.CAFile = "/is/not/there" },
	} {
		c := good
		change(&c)
		if _, err := store.S3(c); err == nil {
			t.Errorf("case %d was taken: %s", i, fmt.Sprintf("%+v", c))
		}
	}
	if _, err := store.S3(good); err != nil {
		t.Error(err)
	}
}
