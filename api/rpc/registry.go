package rpc

import (
	"context"
	"crypto/sha256"
	"math"
	"net/url"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/muster-registry/muster/api/door"
	"github.com/muster-registry/muster/api/rpc/musterv1"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/feed"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/registry"
)

// service is muster's own gRPC service.
type service struct {
	musterv1.UnimplementedRegistryServer
	*Server
}

func (s *Server) registerRegistry() { musterv1.RegisterRegistryServer(s, service{Server: s}) }

// names checks and completes the names of a call.
func names(namespace *string, pairs ...string) error {
	if *namespace == "" {
		*namespace = "default"
	}
	pairs = append([]string{"/namespace", *namespace}, pairs...)
	for i := 0; i < len(pairs); i += 2 {
		if err := registry.ValidName(pairs[i+1]); err != nil {
			f := fault.From(err)
			if len(f.Fields) > 0 {
				return fault.Invalid(pairs[i], "%s", f.Fields[0].Message)
			}
			return fault.Invalid(pairs[i], "%s", f.Detail)
		}
	}
	return nil
}

func instancePath(namespace, service, id string) string {
	return "/v1/namespaces/" + namespace + "/services/" + service + "/instances/" + id
}

// condition is the caller's, with a digest of the request for its key.
func condition(c *musterv1.Condition, req proto.Message) (door.Condition, error) {
	if c == nil {
		return door.Condition{}, nil
	}
	when := door.Condition{Match: c.GetMatch(), HasMatch: c.Match != nil, CreateOnly: c.CreateOnly, IdempotencyKey: c.IdempotencyKey}
	if when.HasMatch && when.CreateOnly {
		return when, fault.New(fault.BadRequest, "send match or create_only, not both")
	}
	if len(when.IdempotencyKey) > 255 {
		return when, fault.New(fault.BadRequest, "idempotency_key must be at most 255 characters")
	}
	if when.IdempotencyKey != "" {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(req)
		if err != nil {
			return when, err
		}
		sum := sha256.Sum256(b)
		when.Digest = sum[:]
	}
	return when, nil
}

// Register implements musterv1.RegistryServer.
func (s service) Register(ctx context.Context, req *musterv1.RegisterRequest) (*musterv1.RegisterResponse, error) {
	c, in := CallOf(ctx), req.GetInstance()
	if in == nil {
		return nil, fault.Invalid("/instance", "give the instance")
	}
	if err := names(&in.Namespace, "/service", in.Service, "/id", in.Id); err != nil {
		return nil, err
	}
	c.Like("PUT", instancePath(in.Namespace, in.Service, in.Id))
	if err := c.Permit(policy.Register, registry.KindInstance, in.Namespace); err != nil {
		return nil, err
	}
	body, err := instanceBody(in)
	if err != nil {
		return nil, err
	}
	spec, err := registry.CanonicalInstance(in.Namespace, in.Service, in.Id, body)
	if err != nil {
		return nil, err
	}
	when, err := condition(req.Condition, req)
	if err != nil {
		return nil, err
	}
	receipt, err := c.Submit(&command.Command{Op: &command.Command_Put{Put: &command.Put{Kind: command.Kind_INSTANCE,
		Namespace: in.Namespace, Service: in.Service, Name: in.Id, Spec: spec, CreateService: req.CreateService}}}, nil, when)
	if err != nil {
		return nil, err
	}
	out := &musterv1.RegisterResponse{Instance: new(musterv1.Instance), Revision: receipt.Revision, Created: receipt.Created}
	return out, read(receipt.Record, out.Instance)
}

// instanceBody is what the caller says of an instance, as REST takes it.
func instanceBody(in *musterv1.Instance) ([]byte, error) {
	body := map[string]any{"address": in.Address, "port": in.Port}
	set := func(name, value string) {
		if value != "" {
			body[name] = value
		}
	}
	set("version", in.Version)
	set("zone", in.Zone)
	set("ttl", in.Ttl)
	set("deregister_after", in.DeregisterAfter)
	if in.Weight != nil {
		body["weight"] = *in.Weight
	}
	if len(in.Tags) > 0 {
		body["tags"] = in.Tags
	}
	if len(in.Metadata) > 0 {
		body["metadata"] = in.Metadata
	}
	checks := make([]jsontext.Value, 0, len(in.Checks))
	for _, check := range in.Checks {
		b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(check)
		if err != nil {
			return nil, fault.Wrap(fault.BadRequest, err, "the check cannot be written as JSON")
		}
		checks = append(checks, b)
	}
	if len(checks) > 0 {
		body["checks"] = checks
	}
	b, err := json.Marshal(body, json.Deterministic(true))
	if err != nil {
		return nil, fault.Wrap(fault.BadRequest, err, "the instance cannot be written as JSON")
	}
	return b, nil
}

// read brings a record in JSON into a message. What a policy put in its place
// need not have its form; then there is no honest answer.
func read(record []byte, into proto.Message) error {
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(record, into); err != nil {
		return fault.Wrap(fault.PolicyUnavailable, err, "what the policy put in the place of the answer has not its form; ask over REST, or correct the policy")
	}
	return nil
}

// Heartbeat implements musterv1.RegistryServer.
func (s service) Heartbeat(stream grpc.BidiStreamingServer[musterv1.HeartbeatRequest, musterv1.HeartbeatResponse]) error {
	c := CallOf(stream.Context())
	for {
		req, err := stream.Recv()
		if err != nil {
			return ended(err)
		}
		res := new(musterv1.HeartbeatResponse)
		if err := s.beat(c, req); err != nil {
			f := fault.From(known(err))
			if f.Code == fault.Unauthenticated {
				return err
			}
			res.Problem = Problem(f, c.ID)
		}
		if err := stream.Send(res); err != nil {
			return err
		}
	}
}

func (s service) beat(c *Call, req *musterv1.HeartbeatRequest) error {
	// The stream may be old: who calls is asked at each.
	if err := c.Ready(true); err != nil {
		return err
	}
	if err := c.Anew(); err != nil {
		return err
	}
	if err := names(&req.Namespace, "/service", req.Service, "/id", req.Id); err != nil {
		return err
	}
	if req.Check != "" {
		c.Like("PUT", instancePath(req.Namespace, req.Service, req.Id)+"/checks/"+req.Check)
	} else {
		c.Like("POST", instancePath(req.Namespace, req.Service, req.Id)+"/heartbeat")
	}
	if err := c.Permit(policy.Heartbeat, registry.KindInstance, req.Namespace); err != nil {
		return err
	}
	if req.Check != "" {
		return c.Report(req.Namespace, req.Service, req.Id, req.Check, req.Status, req.Output)
	}
	return c.Heartbeat(req.Namespace, req.Service, req.Id)
}

// Deregister implements musterv1.RegistryServer.
func (s service) Deregister(ctx context.Context, req *musterv1.DeregisterRequest) (*musterv1.DeregisterResponse, error) {
	c := CallOf(ctx)
	if err := names(&req.Namespace, "/service", req.Service, "/id", req.Id); err != nil {
		return nil, err
	}
	c.Like("DELETE", instancePath(req.Namespace, req.Service, req.Id))
	if err := c.Permit(policy.Delete, registry.KindInstance, req.Namespace); err != nil {
		return nil, err
	}
	when, err := condition(req.Condition, req)
	if err != nil {
		return nil, err
	}
	receipt, err := c.Submit(&command.Command{Op: &command.Command_Delete{Delete: &command.Delete{Kind: command.Kind_INSTANCE,
		Namespace: req.Namespace, Service: req.Service, Name: req.Id}}}, nil, when)
	if err != nil {
		return nil, err
	}
	return &musterv1.DeregisterResponse{Revision: receipt.Revision}, nil
}

// reading is what the caller asks of the state, within the bounds of REST.
func reading(r *musterv1.Reading) (door.Reading, error) {
	rd := door.Any()
	if r == nil {
		return rd, nil
	}
	rd.Linearizable, rd.MinRevision, rd.Index = r.Linearizable, r.MinRevision, r.Index
	most := door.MaxWaitRevision
	if rd.Index > 0 {
		rd.Wait, most = door.WaitChange, door.MaxWaitChange
	}
	for _, d := range []*durationpb.Duration{r.Wait, r.MaxStaleness} {
		if d != nil && (d.CheckValid() != nil || d.AsDuration() < 0) {
			return rd, fault.New(fault.BadRequest, "wait and max_staleness must be durations that are not negative")
		}
	}
	if r.Wait != nil {
		rd.Wait = min(r.Wait.AsDuration(), most)
	}
	if r.MaxStaleness != nil {
		rd.MaxStaleness = r.MaxStaleness.AsDuration()
	}
	return rd, nil
}

// Resolve implements musterv1.RegistryServer.
func (s service) Resolve(ctx context.Context, req *musterv1.ResolveRequest) (*musterv1.ResolveResponse, error) {
	c := CallOf(ctx)
	if err := names(&req.Namespace, "/service", req.Service); err != nil {
		return nil, err
	}
	c.Like("GET", resolvePath(req))
	if err := c.Permit(policy.Lookup, registry.KindService, req.Namespace); err != nil {
		return nil, err
	}
	rd, err := reading(req.Reading)
	if err != nil {
		return nil, err
	}
	err = c.View(rd, &door.Changes{Scope: feed.Scope{Namespace: req.Namespace, Service: req.Service}, Revision: func(st *door.State) uint64 {
		if e, ok := st.Registry.Discover(req.Namespace, req.Service); ok {
			return e.Revision()
		}
		return math.MaxUint64
	}})
	if err != nil {
		return nil, err
	}
	which := registry.Query{Version: req.Version, Tags: req.Tags, Zone: req.Zone, AnyStatus: req.AnyStatus}
	found, err := c.Discover(req.Namespace, req.Service, which)
	if err != nil {
		return nil, err
	}
	res := &musterv1.ResolveResponse{Namespace: req.Namespace, Service: req.Service, StateRevision: c.State.Revision}
	if found.Decision.Filtered != nil {
		if _, err := door.Replaced[jsontext.Value](found.Body); err != nil {
			return nil, err
		}
		err := read(found.Body, res)
		res.StateRevision = c.State.Revision
		return res, err
	}
	res.Revision = found.Entry.Revision()
	if which.Zone != "" {
		l := found.Entry.Locality(found.Query)
		res.Locality = &musterv1.Locality{Zone: l.Zone, Instances: uint32(l.Instances), SpillOver: l.SpillOver}
	}
	for _, i := range found.Entry.Select(which) {
		weight := uint32(i.Weight)
		res.Instances = append(res.Instances, &musterv1.Instance{
			Id: i.ID, Address: i.Address, Port: uint32(i.Port), Version: i.Version, Zone: i.Zone, Weight: &weight,
			Tags: i.Tags, Metadata: i.Metadata, Status: i.Status,
		})
	}
	return res, nil
}

func resolvePath(req *musterv1.ResolveRequest) string {
	q := url.Values{}
	for name, value := range map[string]string{"version": req.Version, "zone": req.Zone} {
		if value != "" {
			q.Set(name, value)
		}
	}
	if len(req.Tags) > 0 {
		q["tag"] = req.Tags
	}
	if req.AnyStatus {
		q.Set("status", "any")
	}
	path := "/v1/discovery/" + req.Namespace + "/" + req.Service
	if len(q) > 0 {
		path += "?" + q.Encode()
	}
	return path
}

// Decide implements musterv1.RegistryServer.
func (s service) Decide(ctx context.Context, req *musterv1.DecideRequest) (*musterv1.DecideResponse, error) {
	c := CallOf(ctx)
	c.Like("POST", "/v1/authorize")
	if err := c.Permit(policy.Authorize, "decision", ""); err != nil {
		return nil, err
	}
	if len(req.Input) == 0 {
		return nil, fault.Invalid("/input", "give the input document")
	}
	if err := c.Young(); err != nil {
		return nil, err
	}
	d, err := c.Ask(req.Entrypoint, req.Input)
	if err != nil {
		return nil, err
	}
	return &musterv1.DecideResponse{Allow: d.Allow, Reasons: d.Reasons, DecisionId: d.ID, PolicyRevision: d.PolicyRevision,
		Revision: c.State.Revision, Filtered: d.Filtered, BreakGlass: d.BreakGlass}, nil
}
