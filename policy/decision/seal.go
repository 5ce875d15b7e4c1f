package decision

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

const keyFile = "key"

// openKey gives the cipher of the key in the folder, which is made on first
// use and readable by its owner only.
func openKey(dir string) (cipher.AEAD, error) {
	name := filepath.Join(dir, keyFile)
	key, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		key, err = makeKey(name)
	}
	if err != nil {
		return nil, fmt.Errorf("the key of the decision store: %w", err)
	}
	if len(key) != 32 {
		return nil, fmt.Errorf("the key of the decision store, %s, has %d bytes and not 32; move the folder away to begin a new one", name, len(key))
	}
	info, err := os.Stat(name)
	if err != nil {
		return nil, fmt.Errorf("the key of the decision store: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("the key of the decision store, %s, can be read by others; chmod 600 it", name)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// makeKey writes a new key whole or not at all.
func makeKey(name string) ([]byte, error) {
	key := make([]byte, 32)
	_, _ = rand.Read(key)                                 // never fails
	f, err := os.CreateTemp(filepath.Dir(name), ".key.*") // 0600
	if err != nil {
		return nil, err
	}
	_, err = f.Write(key)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return nil, errors.Join(err, os.Remove(f.Name()))
	}
	return key, nil
}
