package envoy

import (
	"context"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
)

// The context extensions of the filter that this service reads.
const (
	extEntryPoint = "entrypoint" // the package or rule that is asked; the one of look-ups unless given
	extService    = "service"    // the registered service that the request is for
	extNamespace  = "namespace"  // of that service; default unless given
)

// authorization is Envoy's external authorization service. What the policy
// decides, and what is wrong with the request, is answered as a response that
// lets the request pass or denies it. What keeps this node from deciding is an
// error of the call, so that Envoy asks another.
type authorization struct {
	authv3.UnimplementedAuthorizationServer
	find Find
}

// Check implements authv3.AuthorizationServer.
func (s authorization) Check(ctx context.Context, req *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	c := s.find(ctx, "POST", "/v1/authorize")
	if err := c.Permit(policy.Authorize, "decision", ""); err != nil {
		return nil, err
	}
	if err := c.Young(); err != nil {
		return nil, err
	}
	a := req.GetAttributes()
	if a.GetRequest().GetHttp() == nil {
		return nil, fault.New(fault.BadRequest, "the question describes no HTTP request; use muster as an HTTP filter, not as a network filter")
	}
	entrypoint := a.GetContextExtensions()[extEntryPoint]
	if entrypoint != "" {
		if _, err := policy.EntryPoint(entrypoint); err != nil {
			return nil, err
		}
	}
	res, err := resource(c, a.GetContextExtensions())
	if err != nil {
		return nil, err
	}
	document, err := read(a, res)
	if err != nil {
		return refused(fault.From(err)), nil
	}
	d, err := c.Respond(entrypoint, document)
	switch {
	case fault.Is(err, fault.BadRequest): // the document has more in it than can be asked about
		return refused(fault.From(err)), nil
	case err != nil:
		return nil, err
	}
	return answer(&d), nil
}

// read makes the document that is asked about. The error is about the request
// and nothing else.
func read(a *authv3.AttributeContext, res *resourceInput) ([]byte, error) {
	in, err := newInput(a, res)
	if err != nil {
		return nil, err
	}
	return in.document()
}

// resource is the registered service that the filter names, as policies see it.
func resource(c *door.Call, extensions map[string]string) (*resourceInput, error) {
	name, namespace := extensions[extService], extensions[extNamespace]
	if name == "" && namespace == "" {
		return &resourceInput{Metadata: emptyObject, Payload: null, Previous: null}, nil
	}
	if namespace == "" {
		namespace = "default"
	}
	for _, n := range []string{name, namespace} {
		if err := registry.ValidName(n); err != nil {
			return nil, fault.New(fault.BadRequest, "the context extensions service and namespace must name a service: %s", fault.From(err).Detail)
		}
	}
	// The policy may tell of what it was shown.
	if err := policy.Permit(c.Role, policy.Lookup, registry.KindService, namespace); err != nil {
		return nil, err
	}
	r := &resourceInput{Kind: registry.KindService, Namespace: namespace, Name: name, Metadata: emptyObject, Payload: null, Previous: null}
	if s, ok := c.State.Registry.Service(namespace, name); ok {
		held := policy.Resource{Holder: s.JSON}
		if m := held.MetadataJSON(); len(m) > 0 {
			r.Metadata = m
		}
	}
	return r, nil
}

// refused denies a request that no rule was asked about.
func refused(f *fault.Error) *authv3.CheckResponse {
	status := typev3.StatusCode(f.Code.Status())
	if _, known := typev3.StatusCode_name[int32(status)]; !known {
		status = typev3.StatusCode_BadRequest
	}
	return &authv3.CheckResponse{
		Status: &statuspb.Status{Code: int32(codes.InvalidArgument), Message: string(f.Code) + ": " + f.Detail},
		HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status:  &typev3.HttpStatus{Code: status},
			Headers: []*corev3.HeaderValueOption{header("content-type", "text/plain; charset=utf-8")},
			Body:    f.Detail + "\n",
		}},
		DynamicMetadata: &structpb.Struct{Fields: map[string]*structpb.Value{"code": structpb.NewStringValue(string(f.Code))}},
	}
}

// answer is a decision as Envoy takes it. An answer that the policy shapes in
// a way that Envoy could not give denies the request.
func answer(d *policy.Decision) *authv3.CheckResponse {
	shaped, err := readShape(d.Result)
	if err != nil {
		d.Allow, d.Reasons = false, []string{err.Error()}
		shaped = &shape{status: typev3.StatusCode_Forbidden, metadata: &structpb.Struct{Fields: map[string]*structpb.Value{"error": structpb.NewStringValue(err.Error())}}}
	}
	out := &authv3.CheckResponse{Status: &statuspb.Status{}, DynamicMetadata: metadata(d, shaped)}
	if d.Allow {
		out.HttpResponse = &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
			Headers: shaped.headers, HeadersToRemove: shaped.removeHeaders, ResponseHeadersToAdd: shaped.responseHeaders,
			QueryParametersToSet: shaped.setQuery, QueryParametersToRemove: shaped.removeQuery,
		}}
		return out
	}
	out.Status.Code, out.Status.Message = int32(codes.PermissionDenied), strings.Join(d.Reasons, "; ")
	out.HttpResponse = &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
		Status: &typev3.HttpStatus{Code: shaped.status}, Headers: shaped.headers, Body: shaped.body,
	}}
	return out
}

// metadata is what the policy gives, with what names the decision over it.
func metadata(d *policy.Decision, s *shape) *structpb.Struct {
	m := &structpb.Struct{Fields: map[string]*structpb.Value{}}
	for name, v := range s.metadata.GetFields() {
		m.Fields[name] = v
	}
	m.Fields["decision_id"] = structpb.NewStringValue(d.ID)
	m.Fields["policy_revision"] = structpb.NewNumberValue(float64(d.PolicyRevision))
	return m
}
