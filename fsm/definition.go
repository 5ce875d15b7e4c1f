package fsm

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"strings"

	json "github.com/go-json-experiment/json"
	bolt "go.etcd.io/bbolt"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/registry"
)

// Definitions stand in the file alone, and neither in the tables nor in the
// state hash. What covers them is the digest in their version's record, which is
// compared whenever one is read: at the start, for a caller, and for a snapshot,
// so that none is made that cannot be restored.

// Document gives the stored definition of a version at the revision its record
// has in a view. It fails when a later change has replaced it, and with internal
// when the disk gives back something else than was stored.
func (m *Machine) Document(namespace, service, version string, revision uint64) ([]byte, error) {
	key := registry.DocumentKey(namespace, service, version, revision)
	b, ok := m.store.get(registry.BucketDocuments, key)
	if !ok {
		return nil, fmt.Errorf("document %s: %w", key, os.ErrNotExist)
	}
	if v, known := m.View().Registry.Version(namespace, service, version); known && v.Revision == revision && !isDigest(v.Digest, b) {
		return nil, damagedDefinition(key)
	}
	return b, nil
}

func damagedDefinition(key string) error {
	return fault.New(fault.Internal, "the disk of this node gives back another definition %s than was stored: ask another node, and start this one with an empty data folder", key)
}

func isDigest(digest string, document []byte) bool {
	sum := sha256.Sum256(document)
	return hex.EncodeToString(sum[:]) == digest
}

// checkDefinitions demands of a file that was loaded that the definition of each
// version is there and the one that was stored.
func checkDefinitions(tx *bolt.Tx, v *View) error {
	versions, documents := tx.Bucket([]byte(registry.BucketVersions)), tx.Bucket([]byte(registry.BucketDocuments))
	if versions == nil {
		return nil
	}
	return versions.ForEach(func(k, _ []byte) error {
		names := strings.Split(string(k), "/") // three: the loader has seen to it
		of, _ := v.Registry.Version(names[0], names[1], names[2])
		key := registry.DocumentKey(of.Namespace, of.Service, of.Version, of.Revision)
		var document []byte
		if documents != nil {
			document = documents.Get([]byte(key))
		}
		if document == nil || !isDigest(of.Digest, document) {
			return fmt.Errorf("definition %s: %w", key, errDamaged)
		}
		return nil
	})
}

// digests are those that the versions in a file say their definitions have, by
// the definitions' keys.
func digests(tx *bolt.Tx) (map[string]string, error) {
	all := map[string]string{}
	b := tx.Bucket([]byte(registry.BucketVersions))
	if b == nil {
		return all, nil
	}
	return all, b.ForEach(func(k, record []byte) error {
		var v struct {
			Digest   string `json:"digest"`
			Revision uint64 `json:"revision"`
		}
		if err := json.Unmarshal(bytes.Clone(record), &v); err != nil {
			return fmt.Errorf("version %s: %w", k, err)
		}
		all[fmt.Sprintf("%s@%d", k, v.Revision)] = v.Digest
		return nil
	})
}
