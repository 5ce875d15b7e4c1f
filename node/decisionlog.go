package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
	"github.com/muster-registry/muster/policy/decision"
)

// DecisionLogSettings say which decisions are kept, and who gets them.
type DecisionLogSettings struct {
	Keep             Size          `yaml:"keep"`               // bytes of this node's newest decisions in data_dir, to be explained
	KeepFor          time.Duration `yaml:"keep_for"`           // the longest that one is kept
	AllowedPerSecond int           `yaml:"allowed_per_second"` // allowed look-ups that are kept; 0: all. Refusals and changes always are
	Mask             []string      `yaml:"mask"`               // JSON pointers, beside those of credentials

	Stderr   string           `yaml:"stderr"` // a line for each: refusals, all, off
	Stdout   bool             `yaml:"stdout"` // events as JSON
	File     string           `yaml:"file"`   // the same
	FileSize Size             `yaml:"file_size"`
	FileKeep int              `yaml:"file_keep"` // old files, compressed
	HTTP     LogServiceConfig `yaml:"http"`
}

// LogServiceConfig names a log service that takes decisions as OPA sends them.
type LogServiceConfig struct {
	URL       string        `yaml:"url"`
	TokenFile string        `yaml:"token_file"` // a bearer token
	CA        string        `yaml:"ca"`         // PEM; default: the system's
	Cert      string        `yaml:"cert"`
	Key       string        `yaml:"key"`
	Insecure  bool          `yaml:"insecure"` // allows http://
	Timeout   time.Duration `yaml:"timeout"`
	Buffer    Size          `yaml:"buffer"` // in memory, while it is away
	Spill     Size          `yaml:"spill"`  // of refusals on disk, while it is away
}

func decisionLogDefaults() DecisionLogSettings {
	return DecisionLogSettings{
		Keep: 256 << 20, KeepFor: 7 * 24 * time.Hour, AllowedPerSecond: 1000,
		Stderr: "refusals", FileSize: 100 << 20, FileKeep: 10,
		HTTP: LogServiceConfig{Timeout: 10 * time.Second, Buffer: 8 << 20, Spill: 256 << 20},
	}
}

func (s *DecisionLogSettings) paths() []*string {
	return []*string{&s.File, &s.HTTP.TokenFile, &s.HTTP.CA, &s.HTTP.Cert, &s.HTTP.Key}
}

func (s *DecisionLogSettings) validate() (errs []error) {
	wrong := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("policy.decision_log."+format, args...))
	}
	if s.Keep < 1<<20 {
		wrong("keep: %s is too small; at least 1MiB", s.Keep)
	}
	if s.KeepFor < time.Minute {
		wrong("keep_for: %s is too short; at least 1m", s.KeepFor)
	}
	if s.AllowedPerSecond < 0 {
		wrong("allowed_per_second: must not be negative; 0 keeps all")
	}
	switch s.Stderr {
	case "refusals", "all", "off":
	default:
		wrong("stderr: %q is none of refusals, all, off", s.Stderr)
	}
	if _, err := decision.NewMasker(s.Mask); err != nil {
		wrong("mask: %w", err)
	}
	if s.FileSize < 1<<20 {
		wrong("file_size: %s is too small; at least 1MiB", s.FileSize)
	}
	if s.FileKeep < 0 {
		wrong("file_keep: must not be negative; 0 keeps all")
	}
	if s.HTTP.URL == "" {
		return errs
	}
	h := s.HTTP
	u, err := url.Parse(h.URL)
	switch {
	case err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http"):
		wrong("http.url: %q is not an address such as https://logs.example.com/logs", h.URL)
	case u.Scheme == "http" && !h.Insecure:
		wrong("http.url: %q would send decisions that anybody on the way can read; use https, or set http.insecure", h.URL)
	case u.User != nil:
		wrong("http.url: put the credential into http.token_file")
	}
	if (h.Cert == "") != (h.Key == "") {
		wrong("http.cert and http.key belong together; set both or none")
	}
	if h.Timeout < 100*time.Millisecond {
		wrong("http.timeout: %s is too short; at least 100ms", h.Timeout)
	}
	if h.Buffer < 64<<10 || h.Spill < 64<<10 {
		wrong("http.buffer and http.spill: at least 64KiB")
	}
	return errs
}

// openDecisionLog begins to keep decisions.
func (n *Node) openDecisionLog(reg prometheus.Registerer) error {
	s := n.cfg.Policy.DecisionLog
	dir := filepath.Join(n.cfg.DataDir, "decisions")
	var err error
	if n.masker, err = decision.NewMasker(append(decision.DefaultMasks(), s.Mask...)); err != nil {
		return err
	}
	m := decision.NewMetrics(reg)
	sinks, err := n.sinks(dir, m)
	if err != nil {
		return err
	}
	if n.decisions, err = decision.OpenStore(dir, decision.StoreOptions{MaxBytes: int64(s.Keep), MaxAge: s.KeepFor, Logger: n.logger}); err != nil {
		for _, open := range sinks {
			err = errors.Join(err, open.Close())
		}
		return fmt.Errorf("policy.decision_log: %w", err)
	}
	rate := s.AllowedPerSecond
	if rate == 0 {
		rate = -1
	}
	n.log = decision.NewLog(decision.Options{
		Node: n.cfg.NodeID, Engine: n.engine.Version(), Labels: map[string]string{"id": n.cfg.NodeID, "version": n.version, "engine": "muster"},
		Store: n.decisions, Sinks: sinks, Masker: n.masker, AllowedPerSecond: rate, Logger: n.logger,
	}, m)
	return nil
}

func (n *Node) sinks(dir string, m *decision.Metrics) (sinks []decision.Sink, err error) {
	s := n.cfg.Policy.DecisionLog
	if s.Stderr != "off" {
		sinks = append(sinks, &decision.Console{To: writer(n.cfg.Stderr, os.Stderr), Text: n.cfg.Log.Format == "text", Refusals: s.Stderr == "refusals"})
	}
	if s.Stdout {
		sinks = append(sinks, &decision.Lines{To: writer(n.cfg.Stdout, os.Stdout)})
	}
	if s.HTTP.URL != "" {
		cfg, err := s.HTTP.tls()
		if err != nil {
			return nil, err
		}
		up, err := decision.NewUpload(decision.UploadOptions{
			Tracer: n.tracer,
			URL:    s.HTTP.URL, TokenFile: s.HTTP.TokenFile, TLS: cfg, SpillFile: filepath.Join(dir, "upload", "refusals"),
			Buffer: int(s.HTTP.Buffer), Spill: int64(s.HTTP.Spill), Timeout: s.HTTP.Timeout, Logger: n.logger,
		}, m)
		if err != nil {
			return nil, fmt.Errorf("policy.decision_log.http: %w", err)
		}
		sinks = append(sinks, up)
	}
	if s.File != "" {
		f, err := decision.NewFile(s.File, int64(s.FileSize), s.FileKeep)
		if err != nil {
			return nil, fmt.Errorf("policy.decision_log.file: %w", err)
		}
		sinks = append(sinks, f)
	}
	return sinks, nil
}

func writer(w io.Writer, fallback io.Writer) io.Writer {
	if w == nil {
		return fallback
	}
	return w
}

func (h *LogServiceConfig) tls() (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if h.CA != "" {
		pem, err := os.ReadFile(h.CA)
		if err != nil {
			return nil, fmt.Errorf("policy.decision_log.http.ca: %w", err)
		}
		if cfg.RootCAs = x509.NewCertPool(); !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("policy.decision_log.http.ca: %s holds no PEM certificate", h.CA)
		}
	}
	if h.Cert != "" {
		pair, err := tls.LoadX509KeyPair(h.Cert, h.Key)
		if err != nil {
			return nil, fmt.Errorf("policy.decision_log.http.cert, key: %w", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

// methodDecision asks a node for a decision it has made.
const methodDecision = "decision.get"

type decisionQuery struct {
	ID    string `json:"id"`
	Rules bool   `json:"rules"`
}

// Decision implements rest.Backend. The node that made the decision masks and
// explains it, so that no unmasked input leaves it.
func (b backend) Decision(ctx context.Context, id string, rules bool) ([]byte, error) {
	payload, err := json.Marshal(decisionQuery{ID: id, Rules: rules})
	if err != nil {
		return nil, err
	}
	answer, err := b.serveDecision(ctx, "", payload)
	if err != nil || len(answer) > 0 {
		return answer, err
	}
	ctx, cancel := context.WithTimeout(ctx, everywhere)
	defer cancel()
	members := b.cluster.Members()
	answers, errs := make([][]byte, len(members)), make([]error, len(members))
	var asks sync.WaitGroup
	for i, m := range members {
		switch {
		case m.ID == b.cfg.NodeID:
		case !m.Alive:
			errs[i] = fault.New(fault.NotReady, "the node is not alive")
		default:
			asks.Go(func() { answers[i], errs[i] = b.cluster.CallNode(ctx, m.ID, methodDecision, payload) })
		}
	}
	asks.Wait()
	var silent []string
	for i, err := range errs {
		switch {
		case err == nil && len(answers[i]) > 0:
			return answers[i], nil
		case fault.Is(err, fault.NotFound), fault.Is(err, fault.PolicyUnavailable), fault.Is(err, fault.Internal):
			return nil, err // it has the decision
		case err != nil:
			silent = append(silent, members[i].ID)
		}
	}
	if len(silent) > 0 {
		return nil, fault.New(fault.NotReady, "no node that answers has a record of decision %s; %s did not answer and may have it: try again when it is back", id, strings.Join(silent, ", "))
	}
	return nil, fault.New(fault.NotFound, "there is no record of decision %s: no node made it, it was allowed beyond policy.decision_log.allowed_per_second, or it is too old to be kept", id)
}

// serveDecision gives one of this node's own decisions; nothing where it has
// no record of it.
func (n *Node) serveDecision(ctx context.Context, _ string, payload []byte) ([]byte, error) {
	var q decisionQuery
	if err := json.Unmarshal(payload, &q); err != nil {
		return nil, fault.Wrap(fault.BadRequest, err, "the query cannot be read")
	}
	r, err := n.log.Get(ctx, q.ID)
	if fault.Is(err, fault.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	report := decision.NewReport(r, n.masker)
	if q.Rules {
		if report.Explanation, err = n.explain(ctx, r); err != nil {
			return nil, err
		}
	}
	return json.Marshal(report, json.Deterministic(true))
}

// explain replays a decision by the revision that made it.
func (n *Node) explain(ctx context.Context, r *decision.Record) (*decision.Explanation, error) {
	if r.Result.Cause == policy.ByWebhook || r.Query != "" {
		return decision.WithoutRules(r), nil
	}
	past := r.Past()
	if past == nil {
		return nil, fault.New(fault.NotFound, "the input of decision %s, %d bytes, was too large to be kept, so it cannot be replayed; leave out explain=rules to see the rest", r.ID, r.InputBytes)
	}
	if r.PolicyRevision == 0 {
		return decision.WithoutRules(r), nil
	}
	rev, ok := n.machine.View().Policy.Get(r.PolicyRevision)
	if !ok {
		return nil, fault.New(fault.NotFound, "policy revision %d, which made decision %s, is no longer in the history, so it cannot be replayed; leave out explain=rules to see the rest", r.PolicyRevision, r.ID)
	}
	if !r.MadeBy(rev) {
		return nil, fault.New(fault.NotFound, "policy revision %d is another one since a restore, so decision %s cannot be replayed; leave out explain=rules to see the rest", r.PolicyRevision, r.ID)
	}
	again, err := n.engine.Replay(ctx, rev, past)
	if err != nil {
		return nil, err
	}
	told, err := n.engine.Explain(ctx, rev, past, n.masker.Hide("input", r.Input))
	if err != nil {
		return nil, err
	}
	return decision.Explained(r, &again, told), nil
}
