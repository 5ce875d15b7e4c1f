package registry_test

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/muster-registry/muster/registry"
)

const usual = `{"address":"10.20.30.40","port":8080,"version":"1.4.2","zone":"eu-west-1a","weight":10,"tags":["blue","edge"],` +
	`"metadata":{"team":"checkout","build":"2030-01-02.7"},"ttl":"30s","deregister_after":"1h"}`

func fleet(b *testing.B, services, instances int) *registry.Snapshot {
	b.Helper()
	txn := registry.New().Txn(nil)
	revision := uint64(0)
	for s := range services {
		svc := fmt.Sprintf("service-%05d", s)
		spec, err := registry.CanonicalService("default", svc, []byte(`{"owner":"team-7","description":"one of many","tags":["internal"],"metadata":{"tier":"2"}}`))
		if err != nil {
			b.Fatal(err)
		}
		revision++
		if _, _, err := txn.PutService(at(revision), "default", svc, spec, 0); err != nil {
			b.Fatal(err)
		}
		for i := range instances {
			id := fmt.Sprintf("%s-%05d", svc, i)
			spec, err := registry.CanonicalInstance("default", svc, id, []byte(usual))
			if err != nil {
				b.Fatal(err)
			}
			revision++
			if _, _, err := txn.PutInstance(at(revision), "default", svc, id, spec, 0, false); err != nil {
				b.Fatal(err)
			}
		}
		if s%100 == 0 {
			txn = txn.Commit().Txn(nil)
		}
	}
	return txn.Commit()
}

// BenchmarkMemory reports what 10 000 services of 4 instances keep alive, with
// every discovery answer encoded.
func BenchmarkMemory(b *testing.B) {
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		s := fleet(b, 10_000, 4)
		entries, _ := s.Entries("", "", 0)
		for _, e := range entries {
			e.Answer(registry.Query{})
		}
		entries = nil
		runtime.GC()
		runtime.ReadMemStats(&after)
		kept := float64(after.HeapAlloc - before.HeapAlloc)
		b.ReportMetric(kept/40_000, "B/instance")
		b.ReportMetric(kept/(1<<20), "MiB")
		runtime.KeepAlive(s)
	}
}

// BenchmarkPutInstance renews instances of services of n, 32 in one Txn.
func BenchmarkPutInstance(b *testing.B) {
	for _, n := range []int{4, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := fleet(b, max(1, 10_000/n), n)
			var all []*registry.Instance
			s.EachInstance(func(i *registry.Instance) bool { all = append(all, i); return true })
			spec, err := registry.CanonicalInstance("default", all[0].Service, all[0].ID, []byte(usual))
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			txn := s.Txn(nil)
			revision := uint64(1 << 20)
			at := at(revision)
			k := 0
			for b.Loop() {
				i := k % len(all)
				k++
				at.Revision++
				rec, _, err := txn.PutInstance(at, all[i].Namespace, all[i].Service, all[i].ID, spec, all[i].Revision, false)
				if err != nil {
					b.Fatal(err)
				}
				all[i] = rec
				if k%32 == 0 {
					s = txn.Commit()
					txn = s.Txn(nil)
				}
			}
		})
	}
}

func BenchmarkDiscover(b *testing.B) {
	s := fleet(b, 10_000, 4)
	b.ReportAllocs()
	for b.Loop() {
		e, ok := s.Discover("default", "service-04711")
		if !ok || len(e.Answer(registry.Query{})) == 0 {
			b.Fatal("not found")
		}
	}
}

func BenchmarkCanonicalInstance(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := registry.CanonicalInstance("default", "cart", "c1", []byte(usual)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLoad(b *testing.B) {
	spec, err := registry.CanonicalInstance("default", "cart", "c1", []byte(usual))
	if err != nil {
		b.Fatal(err)
	}
	var service, value []byte
	x := registry.New().Txn(func(bucket, _ string, _, new []byte) {
		if bucket == registry.BucketServices {
			service = new
		}
	})
	rec, _, err := x.PutInstance(at(1), "default", "cart", "c1", spec, 0, true)
	if err != nil {
		b.Fatal(err)
	}
	value = rec.JSON
	b.ReportAllocs()
	for b.Loop() {
		txn := registry.New().Txn(nil)
		if err := txn.Load(registry.BucketServices, "default/cart", service); err != nil {
			b.Fatal(err)
		}
		if err := txn.Load(registry.BucketInstances, "default/cart/c1", value); err != nil {
			b.Fatal(err)
		}
	}
}
