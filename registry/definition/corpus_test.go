package definition_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/muster-registry/muster/registry/definition"
)

// corpus is the folder of published definitions: MUSTER_CORPUS, or
// shared/corpus in a parent of this folder.
func corpus(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv("MUSTER_CORPUS"); dir != "" {
		return dir
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "shared", "corpus")); err == nil {
			return filepath.Join(dir, "shared", "corpus")
		}
	}
	t.Skip("the corpus of published definitions is not here: set MUSTER_CORPUS to its folder")
	return ""
}

func TestCorpus(t *testing.T) {
	dir := corpus(t)
	tests := []struct {
		file, dialect, contentType string
		routes                     int
	}{
		{"openapi/petstore-3.0.yaml", "openapi 3.0.0", "application/yaml", 3},
		{"openapi/tictactoe-3.1.json", "openapi 3.1.0", "application/json", 3},
		{"openapi/adyen-legal-entity-v2.json", "openapi 3.1.0", "application/json", 31},
		{"openapi/adyen-legal-entity-v3.json", "openapi 3.1.0", "application/json", 34},
		{"openapi/camara-quality-on-demand-r1.3.yaml", "openapi 3.0.3", "application/yaml", 5},
		{"openapi/camara-quality-on-demand-r2.2.yaml", "openapi 3.0.3", "application/yaml", 5},
		{"openapi/twilio-verify-v2.json", "openapi 3.0.1", "application/json", 57},
		{"openapi/xero-accounting.yaml", "openapi 3.0.0", "application/yaml", 235},
		{"openapi/box-platform-v2025.0.json", "openapi 3.0.2", "application/json", 37},
		{"openapi/figma-rest.yaml", "openapi 3.1.0", "application/yaml", 47},
		{"swagger2/slack-web-api.json", "swagger 2.0", "application/json", 174},
		{"swagger2/netlify.yaml", "swagger 2.0", "application/yaml", 174},
		{"asyncapi/streetlights-kafka-3.1.yaml", "asyncapi 3.1.0", "application/yaml", 4},
		{"asyncapi/adeo-kafka-request-reply-3.1.yaml", "asyncapi 3.1.0", "application/yaml", 1},
		{"asyncapi/streetlights-mqtt-2.6.yaml", "asyncapi 2.6.0", "application/yaml", 4},
		{"asyncapi/shopify-webhooks-2.1.yaml", "asyncapi 2.1.0", "application/yaml", 4},
		{"graphql/swapi.graphql", "graphql", "text/plain", 0},
		{"graphql/saleor.graphql", "graphql", "text/plain", 0},
		{"graphql/dagger-engine.graphql", "graphql", "text/plain", 0},
		{"wsdl/hello-world.wsdl", "wsdl", "application/xml", 0},
		{"wsdl/axis2-version.wsdl", "wsdl", "application/xml", 0},
		{"protobuf/grpc-health-v1.proto", "protobuf", "text/plain", 0},
		{"protobuf/online-boutique.proto", "protobuf", "text/plain", 0},
		{"protobuf/kubernetes-cri-runtime-v1.proto", "protobuf", "text/plain", 0},
	}
	known := map[string]bool{}
	for _, tt := range tests {
		known[tt.file] = true
		t.Run(tt.file, func(t *testing.T) {
			document, err := os.ReadFile(filepath.Join(dir, tt.file))
			if err != nil {
				t.Fatal(err)
			}
			format := filepath.Dir(tt.file)
			if format == "swagger2" {
				format = "openapi"
			}
			d, err := definition.Parse(format, document)
			if err != nil {
				t.Fatalf("refused: %v", err)
			}
			if d.Dialect != tt.dialect || d.ContentType != tt.contentType || len(d.Routes) != tt.routes {
				t.Errorf("got %s, %s, %d routes; want %s, %s, %d", d.Dialect, d.ContentType, len(d.Routes), tt.dialect, tt.contentType, tt.routes)
			}
			checked := format == "openapi" || format == "asyncapi"
			if checked != (len(d.Findings) == 0) {
				t.Errorf("findings %v", d.Findings)
			}
			if valid := format == "openapi" || format == "asyncapi"; definition.Valid(string(document)) != valid {
				t.Errorf("Valid says %v", !valid)
			}
		})
	}
	for _, format := range []string{"openapi", "swagger2"} {
		files, err := os.ReadDir(filepath.Join(dir, format))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if !known[format+"/"+f.Name()] {
				t.Errorf("%s/%s is in the corpus and not in this test", format, f.Name())
			}
		}
	}
}

func BenchmarkCorpus(b *testing.B) {
	for _, f := range []string{"openapi/xero-accounting.yaml", "openapi/twilio-verify-v2.json", "swagger2/slack-web-api.json"} {
		document, err := os.ReadFile(filepath.Join(corpus(b), f))
		if err != nil {
			b.Fatal(err)
		}
		b.Run(f, func(b *testing.B) {
			b.SetBytes(int64(len(document)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := definition.Parse("openapi", document); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
