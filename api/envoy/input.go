package envoy

import (
	"bytes"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/identity"
	"github.com/muster-registry/muster/policy"
)

var (
	null        = jsontext.Value("null")
	emptyObject = jsontext.Value("{}")
)

// input is the document that a policy gets to see of a proxied request: the
// public contract's, with what users of OPA's plugin for Envoy know beside it.
type input struct {
	Action    policy.Action     `json:"action"`
	Time      string            `json:"time"`
	Protocol  string            `json:"protocol"`
	Method    string            `json:"method"`
	Path      []string          `json:"path"`
	Headers   map[string]string `json:"headers"` // by their canonical names
	Token     string            `json:"token"`
	Principal principalInput    `json:"principal"`
	Resource  *resourceInput    `json:"resource"`

	Attributes struct {
		Request struct {
			HTTP httpInput `json:"http"`
		} `json:"request"`
		Source            peerInput         `json:"source"`
		Destination       peerInput         `json:"destination"`
		ContextExtensions map[string]string `json:"contextExtensions,omitempty"`
		MetadataContext   jsontext.Value    `json:"metadataContext,omitempty"`
	} `json:"attributes"`

	ParsedPath    []string            `json:"parsed_path"`
	ParsedQuery   map[string][]string `json:"parsed_query"`
	ParsedBody    jsontext.Value      `json:"parsed_body"` // null where it is not JSON, or not all there
	TruncatedBody bool                `json:"truncated_body"`
}

type principalInput struct {
	ID         string         `json:"id"`
	Kind       string         `json:"kind"`
	Roles      []string       `json:"roles"`
	Namespaces []string       `json:"namespaces"`
	Claims     jsontext.Value `json:"claims"`
}

type resourceInput struct {
	Kind      string         `json:"kind"`
	Namespace string         `json:"namespace"`
	Name      string         `json:"name"`
	Metadata  jsontext.Value `json:"metadata"`
	Payload   jsontext.Value `json:"payload"`
	Previous  jsontext.Value `json:"previous"`
}

type peerInput struct {
	Address   string `json:"address"`
	Principal string `json:"principal"`
}

type httpInput struct {
	ID       string            `json:"id,omitempty"`
	Method   string            `json:"method"`
	Path     string            `json:"path"` // with the query, in one form however it was escaped
	Query    string            `json:"query,omitempty"`
	Host     string            `json:"host"`
	Scheme   string            `json:"scheme"`
	Protocol string            `json:"protocol,omitempty"`
	Headers  map[string]string `json:"headers"` // in lower case
	Body     string            `json:"body,omitempty"`
	Size     int64             `json:"size,omitempty"`
}

// newInput reads a request as Envoy describes it. The error is bad_path or
// bad_request, for a request that is to be denied as it is.
func newInput(a *authv3.AttributeContext, res *resourceInput) (*input, error) {
	r := a.GetRequest().GetHttp()
	target, err := canonical(r.GetPath())
	if err != nil {
		return nil, err
	}
	in := &input{
		Action: policy.Authorize, Time: time.Now().UTC().Format(time.RFC3339Nano), Protocol: r.GetScheme(), Method: r.GetMethod(),
		Headers: map[string]string{}, Resource: res, ParsedQuery: map[string][]string{}, ParsedBody: null,
	}
	in.Path = strings.Split(strings.Trim(target.Path, "/"), "/")
	in.ParsedPath = strings.Split(strings.TrimLeft(target.Path, "/"), "/")
	if in.ParsedQuery, err = url.ParseQuery(target.RawQuery); err != nil {
		return nil, fault.New(fault.BadRequest, "the query cannot be read: %v", err)
	}
	h := &in.Attributes.Request.HTTP
	*h = httpInput{ID: r.GetId(), Method: r.GetMethod(), Path: target.RequestURI(), Query: target.RawQuery, Host: r.GetHost(), Scheme: r.GetScheme(),
		Protocol: r.GetProtocol(), Headers: map[string]string{}, Body: r.GetBody(), Size: r.GetSize()}
	for name, value := range requestHeaders(r) {
		if name = strings.ToLower(name); strings.HasPrefix(name, ":") {
			continue // method, path and host have places of their own, in one form
		}
		h.Headers[name], in.Headers[http.CanonicalHeaderKey(name)] = value, value
	}
	in.Token, _ = identity.Bearer(h.Headers["authorization"])
	in.Attributes.Source = peer(a.GetSource())
	in.Attributes.Destination = peer(a.GetDestination())
	in.Attributes.ContextExtensions = a.GetContextExtensions()
	if m := a.GetMetadataContext(); m != nil {
		if in.Attributes.MetadataContext, err = inJSON(m); err != nil {
			return nil, err
		}
	}
	in.Principal = principalInput{Kind: "anonymous", Roles: []string{}, Namespaces: []string{}, Claims: emptyObject}
	if id := in.Attributes.Source.Principal; strings.HasPrefix(id, "spiffe://") {
		in.Principal.ID, in.Principal.Kind = id, "spiffe"
	}
	return in, in.readBody(r)
}

func (in *input) document() ([]byte, error) {
	b, err := json.Marshal(in, json.Deterministic(true), jsontext.AllowInvalidUTF8(false))
	if err != nil {
		return nil, fault.Wrap(fault.BadRequest, err, "the request cannot be written down for the policy")
	}
	return b, nil
}

// canonical reads the path of a request, in the one form in which rules see
// it. What could be read in two ways is bad_path.
func canonical(path string) (*url.URL, error) {
	if strings.ContainsAny(path, "#\\") {
		return nil, fault.New(fault.BadPath, `the path must not contain \ and #`)
	}
	u, err := url.ParseRequestURI(path)
	if err != nil || u.Scheme != "" || u.Host != "" || u.Opaque != "" || strings.HasPrefix(path, "//") {
		return nil, fault.New(fault.BadPath, "the path must begin with one / and be escaped as in a URL")
	}
	if err := door.CheckPath(u); err != nil {
		return nil, err
	}
	if !utf8.ValidString(u.Path) || strings.ContainsFunc(u.Path, unicode.IsControl) {
		return nil, fault.New(fault.BadPath, "the path must be UTF-8 without control characters")
	}
	u.RawPath = ""
	return u, nil
}

// requestHeaders gives the headers, whichever way Envoy is set to send them.
func requestHeaders(r *authv3.AttributeContext_HttpRequest) map[string]string {
	if r.GetHeaderMap() == nil {
		return r.GetHeaders()
	}
	all := map[string]string{}
	for _, h := range r.GetHeaderMap().GetHeaders() {
		name, value := strings.ToLower(h.GetKey()), h.GetValue()
		if raw := h.GetRawValue(); len(raw) > 0 {
			value = strings.ToValidUTF8(string(raw), "\ufffd")
		}
		if before, ok := all[name]; ok {
			value = before + "," + value
		}
		all[name] = value
	}
	return all
}

func peer(p *authv3.AttributeContext_Peer) peerInput {
	return peerInput{Address: p.GetAddress().GetSocketAddress().GetAddress(), Principal: p.GetPrincipal()}
}

func inJSON(m proto.Message) (jsontext.Value, error) {
	b, err := protojson.Marshal(m)
	if err != nil {
		return nil, fault.Wrap(fault.BadRequest, err, "the metadata of the request cannot be read")
	}
	return b, nil
}

// readBody reads a body of JSON, where Envoy sends it along and it is whole.
func (in *input) readBody(r *authv3.AttributeContext_HttpRequest) error {
	h := &in.Attributes.Request.HTTP
	body := []byte(r.GetBody())
	if raw := r.GetRawBody(); len(raw) > 0 {
		body = raw
		if utf8.Valid(raw) {
			h.Body = string(raw)
		}
	}
	in.TruncatedBody = h.Headers["x-envoy-auth-partial-body"] == "true"
	if n, err := strconv.ParseInt(h.Headers["content-length"], 10, 64); err == nil && len(body) > 0 && n > int64(len(body)) {
		in.TruncatedBody = true
	}
	media, _, err := mime.ParseMediaType(h.Headers["content-type"])
	if err != nil || in.TruncatedBody || len(bytes.TrimSpace(body)) == 0 || media != "application/json" && !strings.HasSuffix(media, "+json") {
		return nil
	}
	if err := policy.WellFormed(body); err != nil {
		return fault.New(fault.BadRequest, "the body says it is JSON and cannot be read as such: %s", fault.From(err).Detail)
	}
	in.ParsedBody = body
	return nil
}
