package rego

import (
	"archive/tar"
	"bytes"
	stdjson "encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/klauspost/compress/gzip"
	"github.com/open-policy-agent/opa/v1/bundle"
	"github.com/open-policy-agent/opa/v1/loader/filter"
	"github.com/open-policy-agent/opa/v1/storage"
	"go.yaml.in/yaml/v3"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/sign"
)

const (
	patchFile = "patch.json"
	dataFile  = "data.json"

	// maxYAML bounds one YAML data file, whose parser takes many times its size.
	maxYAML = 1 << 20
	// metadataKey is where a manifest's metadata speaks to muster.
	metadataKey = "muster"
)

// ParseBundle reads an OPA bundle, a gzipped tar archive of at most limit
// bytes when unpacked, into the content of a revision: modules by path, data
// merged by folder, the manifest's revision as the note, and the entry points
// from the manifest's metadata, {"muster":{"entry_points":{"write":"a/b"}}}.
// The version of Rego is found for each module on its own, as for modules that
// come as JSON. What is neither module, data nor manifest is left out, as OPA
// does.
//
// Errors are bad_request for what is no gzip, too_large at the limit, and
// invalid_policy for all else: among it a path that leads out of the bundle or
// stands twice, a link and compiled policies.
//
// A signature in the bundle is verified against the trusted keys before
// anything else is read; one that does not hold is invalid_policy. The number
// that the signer gave is the manifest's metadata, {"muster":{"number":7}}, or
// else its revision if that is a whole number.
func ParseBundle(packed []byte, limit int64, trusted *sign.Verifier) (*policy.Push, error) {
	files, err := unpack(packed, limit)
	if err != nil {
		return nil, err
	}
	signature, err := verifySigned(files, trusted)
	if err != nil {
		return nil, err
	}
	push, err := readBundle(files, limit)
	if err != nil {
		return nil, err
	}
	push.Signature = signature
	return push, nil
}

// ReadBundle is ParseBundle for who only looks at a bundle and trusts no keys:
// what signature it has is not looked at.
func ReadBundle(packed []byte, limit int64) (*policy.Push, error) {
	files, err := unpack(packed, limit)
	if err != nil {
		return nil, err
	}
	return readBundle(files, limit)
}

func readBundle(files []bundleFile, limit int64) (*policy.Push, error) {
	c := &policy.Content{Modules: map[string]string{}}
	var rest bundleFiles
	for _, f := range files {
		switch {
		case !f.counts:
		case strings.HasSuffix(f.name, bundle.RegoExt):
			c.Modules[f.name] = string(f.content)
		default:
			rest = append(rest, f)
		}
	}
	b, err := bundle.NewCustomReader(&rest).WithLazyLoadingMode(false).WithSkipBundleVerification(true).WithSizeLimitBytes(limit).Read()
	if err != nil {
		return nil, refusedBundle("", "%v", err)
	}
	if err := withinRoots(c.Modules, *b.Manifest.Roots); err != nil {
		return nil, err
	}
	told, err := readMetadata(b.Manifest.Metadata)
	if err != nil {
		return nil, err
	}
	if len(c.Modules) == 0 {
		return nil, refusedBundle("", "the bundle holds no Rego; a policy needs at least one module")
	}
	c.EntryPoints = told.EntryPoints
	c.Note = b.Manifest.Revision
	// The data hold numbers as OPA keeps them, which only encoding/json writes as numbers.
	if c.Data, err = stdjson.Marshal(b.Data); err != nil {
		return nil, refusedBundle("", "the data cannot be written as JSON: %v", err)
	}
	// From here on it must be what any content must be: the same rules, read
	// from the same form.
	whole, err := policy.ParseContent(c.Encode())
	if err != nil {
		return nil, refusedBundle("", "%s", fault.From(err).Detail)
	}
	if told.Number == 0 {
		told.Number = wholeNumber(b.Manifest.Revision)
	}
	return &policy.Push{Content: *whole, Number: told.Number}, nil
}

// wholeNumber gives the number that s is the plain form of; 0 if of none.
func wholeNumber(s string) uint64 {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || strconv.FormatUint(n, 10) != s {
		return 0
	}
	return n
}

// refusedBundle is an invalid_policy error about a file of a bundle, or about
// the whole of it.
func refusedBundle(file, format string, args ...any) error {
	place := fault.Place{File: file, Message: clip(fmt.Sprintf(format, args...))}
	f := fault.New(fault.InvalidPolicy, "%s", place.Message)
	if file != "" {
		f.Detail = file + ": " + place.Message
	}
	f.Places = []fault.Place{place}
	return f
}

type bundleFile struct {
	name    string // relative to the root of the bundle, without a leading slash
	content []byte
	counts  bool // is a part of the policy
}

// unpack gives the files of the archive, each checked on its own.
// It never holds more than limit bytes of them.
func unpack(packed []byte, limit int64) ([]bundleFile, error) {
	stream := &meter{left: limit}
	var err error
	if stream.from, err = gzip.NewReader(bytes.NewReader(packed)); err != nil {
		return nil, fault.Wrap(fault.BadRequest, err, "the body says application/gzip and is not; send a bundle as opa build makes it")
	}
	var files []bundleFile
	seen := map[string]bool{}
	for archive := tar.NewReader(stream); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, stream.explain(err)
		}
		switch h.Typeflag {
		case tar.TypeReg:
		case tar.TypeDir, tar.TypeXGlobalHeader:
			continue
		default:
			return nil, refusedBundle("", "the entry %.64q is a link or a device; a bundle holds plain files only", h.Name)
		}
		name, err := entryName(h.Name)
		if err != nil {
			return nil, err
		}
		if seen[name] {
			return nil, refusedBundle(name, "stands twice in the bundle; which of the two is meant cannot be told")
		}
		seen[name] = true
		// A sparse entry unpacks to more than the archive holds.
		if h.Size > limit {
			return nil, stream.tooLarge()
		}
		limit -= h.Size
		content, err := io.ReadAll(archive)
		if err != nil {
			return nil, stream.explain(err)
		}
		counts, err := checkFile(name, content)
		if err != nil {
			return nil, err
		}
		files = append(files, bundleFile{name, content, counts})
	}
	return files, stream.end()
}

// entryName is the path of an entry below the root of the bundle. OPA itself
// writes it with a leading slash, and tar with "./"; nothing else may differ
// from the one plain form.
func entryName(raw string) (string, error) {
	name := strings.TrimPrefix(raw, "/")
	if name == raw {
		name = strings.TrimPrefix(raw, "./")
	}
	switch {
	case len(name) > policy.MaxModuleName:
		return "", refusedBundle("", "an entry has a path of more than %d bytes", policy.MaxModuleName)
	case name == "" || name == "." || name == ".." || strings.HasPrefix(name, "../") || strings.HasPrefix(name, "/"),
		path.Clean(name) != name, strings.ContainsAny(name, `\:`),
		!utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl):
		return "", refusedBundle("", "the entry %q has a path that is not plain; write it like authz/policy.rego, relative to the root of the bundle", raw)
	}
	return name, nil
}

// checkFile refuses what would be read in two ways or cannot be used, and says
// whether the file takes part.
func checkFile(name string, content []byte) (counts bool, err error) {
	switch base := path.Base(name); {
	case name == signatureFile:
		return false, nil
	case bundle.IsSignaturesFile(name):
		return false, refusedBundle(name, "the signature belongs at the root of the bundle")
	case base == bundle.WasmFile || base == bundle.PlanFile || base == bundle.PlanProtoFile:
		return false, refusedBundle(name, "compiled policies are not taken; build the bundle with --target rego")
	case base == patchFile:
		return false, refusedBundle(name, "delta bundles are not taken; send the whole bundle")
	case name == bundle.ManifestExt || base == dataFile:
		if err := policy.WellFormed(content); err != nil {
			return false, refusedBundle(name, "%s", fault.From(err).Detail)
		}
		return true, nil
	case name == bundle.ManifestProtoExt:
		return true, nil
	case strings.HasSuffix(name, bundle.ManifestExt) || strings.HasSuffix(name, bundle.ManifestProtoExt):
		return false, refusedBundle(name, "a manifest belongs at the root of the bundle, by the name of %s", bundle.ManifestExt)
	case bundle.IsYAMLDataFile(name):
		return true, checkYAML(name, content)
	case strings.HasSuffix(name, bundle.RegoExt):
		if !utf8.Valid(content) {
			return false, refusedBundle(name, "is not UTF-8")
		}
		return true, nil
	}
	return false, nil
}

// checkYAML refuses what grows when it is read.
func checkYAML(name string, content []byte) error {
	if len(content) > maxYAML {
		return refusedBundle(name, "has %d bytes of YAML, and %d is the most; send %s", len(content), maxYAML, dataFile)
	}
	var root yaml.Node
	if err := yaml.Unmarshal(content, &root); err != nil {
		return refusedBundle(name, "%v", err)
	}
	var value any
	if holdsAlias(&root) {
		return refusedBundle(name, "holds YAML aliases; write out what they stand for")
	}
	if err := root.Decode(&value); err != nil { // finds keys that stand twice
		return refusedBundle(name, "%v", err)
	}
	return nil
}

func holdsAlias(n *yaml.Node) bool {
	return n.Kind == yaml.AliasNode || slices.ContainsFunc(n.Content, holdsAlias)
}

// withinRoots holds the modules to the roots that the manifest claims; OPA's
// reader has done so with the data.
func withinRoots(modules map[string]string, roots []string) error {
	if slices.Contains(roots, "") {
		return nil
	}
	parsed, tests, err := parse(modules, nil)
	if err != nil {
		return err
	}
	maps.Copy(parsed, tests)
	var places []policy.Finding
	for file, m := range parsed {
		at, err := storage.NewPathForRef(m.Package.Path)
		if err != nil || !bundle.RootPathsContain(roots, strings.Join(at, "/")) {
			places = append(places, policy.Finding{File: file, Row: m.Package.Location.Row, Col: m.Package.Location.Col,
				Message: fmt.Sprintf("the manifest's roots %q do not hold %s", roots, m.Package)})
		}
	}
	if len(places) > 0 {
		return refused(places, nil)
	}
	return nil
}

// metadata is what the manifest tells muster.
type metadata struct {
	EntryPoints policy.EntryPoints `json:"entry_points"`
	Number      uint64             `json:"number"`
}

// ManifestEntryPoints gives the entry points that the manifest of a bundle
// names; empty ones are the default. The error is invalid_policy.
func ManifestEntryPoints(manifest []byte) (policy.EntryPoints, error) {
	var m struct {
		Metadata map[string]any `json:"metadata"`
	}
	if err := stdjson.Unmarshal(manifest, &m); err != nil {
		return policy.EntryPoints{}, refusedBundle(bundle.ManifestExt, "%v", err)
	}
	told, err := readMetadata(m.Metadata)
	return told.EntryPoints, err
}

func readMetadata(all map[string]any) (told metadata, err error) {
	given, ok := all[metadataKey]
	if !ok {
		return told, nil
	}
	raw, err := stdjson.Marshal(given)
	if err == nil {
		err = json.Unmarshal(raw, &told, json.RejectUnknownMembers(true))
	}
	if err != nil {
		return told, refusedBundle(bundle.ManifestExt, `metadata.%s must be like {"number":7,"entry_points":{"write":"api/registry/authz","lookup":"api/security/authz"}}`, metadataKey)
	}
	return told, nil
}

// bundleFiles hands the files to OPA's reader.
type bundleFiles []bundleFile

// NextFile implements bundle.DirectoryLoader.
func (b *bundleFiles) NextFile() (*bundle.Descriptor, error) {
	if len(*b) == 0 {
		return nil, io.EOF
	}
	f := (*b)[0]
	*b = (*b)[1:]
	return bundle.NewDescriptor(f.name, f.name, bytes.NewBuffer(f.content)), nil
}

// WithFilter and the methods below implement bundle.DirectoryLoader; what they
// set is settled before OPA sees a file.
func (b *bundleFiles) WithFilter(filter.LoaderFilter) bundle.DirectoryLoader   { return b }
func (b *bundleFiles) WithPathFormat(bundle.PathFormat) bundle.DirectoryLoader { return b }
func (b *bundleFiles) WithSizeLimitBytes(int64) bundle.DirectoryLoader         { return b }
func (b *bundleFiles) WithFollowSymlinks(bool) bundle.DirectoryLoader          { return b }
