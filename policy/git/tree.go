package git

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"path"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/plumbing/storer"
)

// Limits on the folder that holds the policies.
const (
	maxFiles   = 20_000 // files and folders, counted as often as they are referred to
	maxFolders = 32     // folders within each other
	maxName    = 255    // bytes in a path
)

// file is one file of a commit.
type file struct {
	name    string // relative to the folder
	content []byte
}

// files gives the plain files below a folder of a tree, "" for all of it. What
// is not a plain file is refused and not left out: it could have been a rule.
func files(objects storer.EncodedObjectStorer, tree plumbing.Hash, folder string, limit int64) ([]file, error) {
	root := tree
	for _, name := range strings.FieldsFunc(folder, func(r rune) bool { return r == '/' }) {
		t, err := object.GetTree(objects, root)
		if err != nil {
			return nil, fmt.Errorf("a folder cannot be read: %w", err)
		}
		found := false
		for _, e := range t.Entries {
			if e.Name == name && e.Mode == filemode.Dir {
				root, found = e.Hash, true
			}
		}
		if !found {
			return nil, fmt.Errorf("there is no folder %s", folder)
		}
	}
	w := &walk{objects: objects, left: limit}
	if err := w.folder(root, "", 0); err != nil {
		return nil, err
	}
	if len(w.files) == 0 {
		return nil, errors.New("there are no files to take")
	}
	return w.files, nil
}

type walk struct {
	objects storer.EncodedObjectStorer
	files   []file
	seen    int
	left    int64
}

func (w *walk) folder(id plumbing.Hash, at string, depth int) error {
	if depth > maxFolders {
		return tooLarge("%s lies more than %d folders deep", at, maxFolders)
	}
	t, err := object.GetTree(w.objects, id)
	if err != nil {
		return fmt.Errorf("the folder %q cannot be read: %w", at, err)
	}
	names := map[string]bool{}
	for _, e := range t.Entries {
		if w.seen++; w.seen > maxFiles {
			return tooLarge("there are more than %d files and folders", maxFiles)
		}
		name := path.Join(at, e.Name)
		if strings.Contains(e.Name, "/") || !plain(e.Name) || len(name) > maxName {
			return fmt.Errorf("%q has a name that is not plain", name)
		}
		if names[e.Name] {
			return fmt.Errorf("%q stands twice in its folder", name)
		}
		names[e.Name] = true
		if err := w.entry(e, name, depth); err != nil {
			return err
		}
	}
	return nil
}

func (w *walk) entry(e object.TreeEntry, name string, depth int) error {
	switch e.Mode {
	case filemode.Dir:
		return w.folder(e.Hash, name, depth+1)
	case filemode.Regular, filemode.Deprecated, filemode.Executable:
	case filemode.Symlink:
		return fmt.Errorf("%q is a symbolic link; put the file itself there", name)
	case filemode.Submodule:
		return fmt.Errorf("%q is a submodule; policies must lie in the repository itself", name)
	default:
		return fmt.Errorf("%q is neither a file nor a folder", name)
	}
	content, err := raw(w.objects, plumbing.BlobObject, e.Hash)
	if err != nil {
		return fmt.Errorf("%q cannot be read: %w", name, err)
	}
	if bytes.HasPrefix(content, []byte("version https://git-lfs.github.com/spec/")) {
		return fmt.Errorf("%q is kept outside of Git, in LFS; commit the file itself", name)
	}
	if w.left -= int64(len(content)); w.left < 0 {
		return tooLarge("the files are too large together")
	}
	w.files = append(w.files, file{name, content})
	return nil
}

// plain says whether a path is one of names that mean nothing but themselves.
func plain(p string) bool {
	for name := range strings.SplitSeq(p, "/") {
		if name == "" || name == "." || name == ".." || strings.EqualFold(name, ".git") {
			return false
		}
	}
	return utf8.ValidString(p) && !strings.ContainsAny(p, `\:`) && !strings.ContainsFunc(p, unicode.IsControl)
}

// pack makes the bundle that the files would be pushed as, so that there is one
// way only in which files become a policy. What is no part of a policy stays
// out, and so does the signature of a bundle: a commit has its own.
func pack(files []file) ([]byte, error) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	archive := tar.NewWriter(z)
	for _, f := range files {
		if !takesPart(f.name) {
			continue
		}
		if err := archive.WriteHeader(&tar.Header{Name: f.name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(f.content))}); err != nil {
			return nil, err
		}
		if _, err := archive.Write(f.content); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(archive.Close(), z.Close()); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func takesPart(name string) bool {
	switch base := path.Base(name); base {
	case "data.json", "data.yaml", "data.yml", ".manifest", "patch.json":
		return true
	default:
		return strings.HasSuffix(base, ".rego") || strings.HasSuffix(base, ".manifest")
	}
}
