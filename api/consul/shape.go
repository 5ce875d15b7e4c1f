package consul

// The shapes of Consul's answers, as its clients read them. What muster has no
// like of is left out where clients do without it.

// Node is a host that provides services.
type Node struct {
	ID              string
	Node            string
	Address         string
	Datacenter      string
	TaggedAddresses map[string]string
	Meta            map[string]string
	CreateIndex     uint64
	ModifyIndex     uint64
}

// Weights of an instance: muster has one, which counts while it is passing.
type Weights struct {
	Passing int
	Warning int
}

// ServiceAddress is an address beside the one of the instance.
type ServiceAddress struct {
	Address string
	Port    int
}

// AgentService is an instance as an agent tells of it, and as health does.
type AgentService struct {
	ID                string
	Service           string
	Tags              []string
	Meta              map[string]string
	Port              int
	Address           string
	TaggedAddresses   map[string]ServiceAddress `json:",omitzero"`
	Weights           Weights
	EnableTagOverride bool
	Datacenter        string
	CreateIndex       uint64 `json:",omitzero"`
	ModifyIndex       uint64 `json:",omitzero"`
}

// CatalogService is an instance as the catalog tells of it.
type CatalogService struct {
	ID                       string
	Node                     string
	Address                  string
	Datacenter               string
	TaggedAddresses          map[string]string
	NodeMeta                 map[string]string
	ServiceID                string
	ServiceName              string
	ServiceAddress           string
	ServiceTaggedAddresses   map[string]ServiceAddress `json:",omitzero"`
	ServiceTags              []string
	ServiceMeta              map[string]string
	ServicePort              int
	ServiceWeights           Weights
	ServiceEnableTagOverride bool
	CreateIndex              uint64
	ModifyIndex              uint64
}

// Tags are those of the instances of each service, by its name.
type Tags map[string][]string

// HealthCheck is a check of an instance, or of a member of the cluster.
type HealthCheck struct {
	Node        string
	CheckID     string
	Name        string
	Status      string
	Notes       string
	Output      string
	ServiceID   string
	ServiceName string
	ServiceTags []string
	Type        string
	Interval    string
	Timeout     string
	ExposedPort int
	Definition  Definition
	CreateIndex uint64
	ModifyIndex uint64
}

// Definition is what a check asks.
type Definition struct {
	HTTP                           string `json:",omitzero"`
	Method                         string `json:",omitzero"`
	TCP                            string `json:",omitzero"`
	GRPC                           string `json:",omitzero"`
	Interval                       string `json:",omitzero"`
	Timeout                        string `json:",omitzero"`
	DeregisterCriticalServiceAfter string `json:",omitzero"`
}

// ServiceEntry is an instance with its node and its checks.
type ServiceEntry struct {
	Node    Node
	Service AgentService
	Checks  []HealthCheck
}

// CatalogNode is a node with all it provides.
type CatalogNode struct {
	Node     Node
	Services map[string]AgentService
}
