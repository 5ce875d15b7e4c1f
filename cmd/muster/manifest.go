package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"go.yaml.in/yaml/v3"

	"github.com/muster-registry/muster/client"
)

// manifest is one document of apply -f.
type manifest struct {
	Kind      string         `json:"kind"`
	Namespace string         `json:"namespace"`
	Name      text           `json:"name"`
	Service   string         `json:"service"`
	Spec      jsontext.Value `json:"spec"`

	origin string // file and number, for messages
	dir    string // what document_file is relative to
}

// text is a string that YAML may have taken for a number, such as 1.10.
type text string

// UnmarshalJSON takes a string, or a number as it was written.
func (x *text) UnmarshalJSON(b []byte) error {
	if v := jsontext.Value(b); v.Kind() == '0' {
		*x = text(b)
		return nil
	}
	return json.Unmarshal(b, (*string)(x))
}

// kindPolicy is the kind that is not a record.
const kindPolicy = "Policy"

// order is how kinds are applied: what others need comes first, and a policy
// before all that it decides.
var order = []string{kindPolicy, "Schema", "Quota", "Webhook", "Role", "Service", "Version", "Instance"}

// ref names the record a manifest is about. The service of a version or an
// instance stands in spec.service, beside the name, or before it: service/name.
func (m *manifest) ref() client.Ref {
	return client.Ref{Kind: client.Kind(strings.ToLower(m.Kind)), Namespace: m.Namespace, Service: m.Service, Name: string(m.Name)}
}

// label is the record's name in messages; a policy has none before it is stored.
func (m *manifest) label() string {
	if m.Kind == kindPolicy {
		return "policy"
	}
	return m.ref().String()
}

// manifests reads what -f names: files, folders (their YAML and JSON files, not
// those of folders within) or - for standard input.
func (a *app) manifests(names []string, namespace string) ([]*manifest, error) {
	if len(names) == 0 {
		return nil, usage("name a file, a folder or - with -f")
	}
	var all []*manifest
	for _, name := range names {
		files := []string{name}
		if info, err := os.Stat(name); name != "-" && err == nil && info.IsDir() {
			if files, err = inFolder(name); err != nil {
				return nil, err
			}
		}
		for _, f := range files {
			ms, err := a.manifestFile(f, namespace)
			if err != nil {
				return nil, err
			}
			all = append(all, ms...)
		}
	}
	if len(all) == 0 {
		return nil, errors.New("there is no manifest in what -f names")
	}
	slices.SortStableFunc(all, func(x, y *manifest) int { return slices.Index(order, x.Kind) - slices.Index(order, y.Kind) })
	return all, nil
}

func inFolder(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, e := range entries {
		if !e.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(e.Name())) {
			files = append(files, filepath.Join(dir, e.Name()))
		}
	}
	return files, nil
}

func (a *app) manifestFile(name, namespace string) ([]*manifest, error) {
	var b []byte
	var err error
	dir := "."
	if name == "-" {
		b, err = io.ReadAll(a.in)
	} else {
		dir = filepath.Dir(name)
		b, err = os.ReadFile(name)
	}
	if err != nil {
		return nil, err
	}
	docs, err := documents(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	var out []*manifest
	for i, d := range docs {
		m := &manifest{origin: name, dir: dir}
		if len(docs) > 1 {
			m.origin = fmt.Sprintf("%s, document %d", name, i+1)
		}
		if err := m.read(d, namespace); err != nil {
			return nil, fmt.Errorf("%s: %w", m.origin, err)
		}
		out = append(out, m)
	}
	return out, nil
}

func (m *manifest) read(doc jsontext.Value, namespace string) error {
	if err := json.Unmarshal(doc, m, json.RejectUnknownMembers(true)); err != nil {
		return fmt.Errorf(`not a manifest, which is {"kind","namespace","name","spec"}: %w`, err)
	}
	if !slices.Contains(order, m.Kind) {
		return fmt.Errorf("the kind %q is not one of %s", m.Kind, strings.Join(order, ", "))
	}
	m.Namespace = cmp.Or(m.Namespace, namespace)
	if len(m.Spec) == 0 {
		m.Spec = jsontext.Value("{}")
	}
	if m.Kind == kindPolicy {
		return nil
	}
	if m.Kind == "Version" || m.Kind == "Instance" {
		if err := m.findService(); err != nil {
			return err
		}
	}
	if m.Kind == "Quota" {
		m.Name = text(cmp.Or(string(m.Name), quotasName))
		if m.Name != quotasName {
			return fmt.Errorf("the name %q: there is one quotas document, by the name of %s", m.Name, quotasName)
		}
	}
	if m.Name == "" {
		return errors.New("the name is missing")
	}
	return nil
}

func (m *manifest) findService() error {
	var spec map[string]jsontext.Value
	if err := json.Unmarshal(m.Spec, &spec); err != nil {
		return fmt.Errorf("spec: %w", err)
	}
	if v, ok := spec["service"]; ok && m.Service == "" {
		if err := json.Unmarshal(v, &m.Service); err != nil {
			return fmt.Errorf("spec.service: %w", err)
		}
	}
	delete(spec, "service")
	if s, name, ok := strings.Cut(string(m.Name), "/"); ok && m.Service == "" {
		m.Service, m.Name = s, text(name)
	}
	if m.Service == "" {
		return fmt.Errorf("a %s needs its service: give spec.service", m.Kind)
	}
	if v, ok := spec["document_file"]; ok && m.Kind == "Version" {
		var file string
		if err := json.Unmarshal(v, &file); err != nil {
			return fmt.Errorf("spec.document_file: %w", err)
		}
		if !filepath.IsAbs(file) {
			file = filepath.Join(m.dir, file)
		}
		b, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("spec.document_file: %w", err)
		}
		content, err := jsontext.AppendQuote(nil, b)
		if err != nil {
			return fmt.Errorf("spec.document_file: %s is not text in UTF-8: %w", file, err)
		}
		delete(spec, "document_file")
		spec["content"] = content
	}
	var err error
	m.Spec, err = json.Marshal(spec, json.Deterministic(true))
	return err
}

// documents splits YAML or JSON into values. JSON may be several values or
// lists of them.
func documents(b []byte) ([]jsontext.Value, error) {
	if t := bytes.TrimLeft(b, " \t\r\n"); len(t) > 0 && (t[0] == '{' || t[0] == '[') {
		if docs, err := jsonDocuments(b); err == nil {
			return docs, nil
		}
	}
	var docs []jsontext.Value
	d := yaml.NewDecoder(bytes.NewReader(b))
	for {
		var n yaml.Node
		if err := d.Decode(&n); errors.Is(err, io.EOF) {
			return docs, nil
		} else if err != nil {
			return nil, err
		}
		if len(n.Content) == 0 || n.Content[0].Tag == "!!null" {
			continue // nothing between two separators
		}
		v, err := (&converter{budget: 1 << 20}).value(nil, &n)
		if err != nil {
			return nil, err
		}
		docs = append(docs, v)
	}
}

func jsonDocuments(b []byte) ([]jsontext.Value, error) {
	var docs []jsontext.Value
	d := jsontext.NewDecoder(bytes.NewReader(b))
	for {
		v, err := d.ReadValue()
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			return nil, err
		}
		if v.Kind() != '[' {
			docs = append(docs, v.Clone())
			continue
		}
		var list []jsontext.Value
		if err := json.Unmarshal(v, &list); err != nil {
			return nil, err
		}
		docs = append(docs, list...)
	}
}
