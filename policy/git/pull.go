package git

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/policy"
)

// Cluster is what the source needs of the cluster, on the leader.
type Cluster interface {
	// Status gives what was saved last; nil when nothing was.
	Status(ctx context.Context) (*Status, error)
	// Save replicates the status.
	Save(ctx context.Context, s *Status) error
	// Verify checks the signature of a commit by the keys that are trusted now;
	// see [Verifier].
	Verify(signed, armored []byte) (key string, err error)
	// Parse reads a bundle into the content of a revision.
	Parse(bundle []byte) (*policy.Content, error)
	// Find gives the newest revision that was made of the source's commit.
	Find(s policy.Source) (*policy.Revision, bool)
	// Stage checks the content, runs its tests and stores it as a revision.
	Stage(ctx context.Context, c *policy.Content, o policy.Origin) (*policy.Revision, error)
	// Shadow and Activate move a revision on.
	Shadow(ctx context.Context, number uint64) error
	Activate(ctx context.Context, number uint64) error
}

// Source pulls from one repository. One goroutine at a time runs it; see [Source.Run].
type Source struct {
	cfg     Config
	cluster Cluster
	logger  *slog.Logger
	observe func(Outcome)
	wake    chan *request
}

// New makes a source. Observe, which may be nil, is told how each pull ended.
// The error is that of [Config.Check].
func New(cfg Config, c Cluster, logger *slog.Logger, observe func(Outcome)) (*Source, error) {
	if err := errors.Join(cfg.Check()...); err != nil {
		return nil, err
	}
	cfg.setDefaults()
	if observe == nil {
		observe = func(Outcome) {}
	}
	return &Source{cfg: cfg, cluster: c, logger: logger.With("git_url", cfg.URL, "git_branch", cfg.Branch), observe: observe, wake: make(chan *request, 64)}, nil
}

// pull is one look at the repository and what follows from it.
type pull struct {
	*Source
	status *Status
	found  []Event // of this pull
	commit string
}

// failure is an error with the outcome that it means.
type failure struct {
	outcome Outcome
	err     error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func failed(o Outcome, err error) error {
	if err == nil {
		return nil
	}
	return &failure{o, err}
}

// Pull looks at the repository once. A commit that has been refused is looked
// at again only when it is forced to, or when another is the newest. The
// status is what was saved, or would have been.
func (s *Source) Pull(ctx context.Context, force bool) (status *Status, outcome Outcome) {
	defer func() {
		if v := recover(); v != nil {
			s.logger.Error("a pull from Git panicked", "panic", fmt.Sprint(v))
			outcome = Failed
		}
		s.observe(outcome)
	}()
	p := &pull{Source: s}
	saved, err := s.cluster.Status(ctx)
	if err != nil {
		s.logger.Warn("the state of the Git source cannot be read", "error", err)
		return new(Status), Failed
	}
	p.begin(saved)
	before := *p.status
	outcome, err = p.run(ctx, force)
	if err != nil {
		outcome = Failed
		if f, ok := errors.AsType[*failure](err); ok {
			outcome = f.outcome
		}
		if ctx.Err() != nil { // the leadership is over: the next leader tells
			return p.status, Failed
		}
		s.logger.Warn("the Git source failed", "commit", p.commit, "outcome", outcome, "error", err)
		p.event(string(outcome), message(err))
	}
	p.end(ctx, &before, outcome, err)
	return p.status, outcome
}

// begin takes over what is known of this source; of another one nothing counts.
func (p *pull) begin(saved *Status) {
	source := policy.Source{Kind: "git", URL: p.cfg.URL, Branch: p.cfg.Branch, Path: p.cfg.Path}
	p.status = new(Status)
	if saved != nil {
		*p.status = *saved
		p.status.History = append([]Event(nil), saved.History...)
	}
	was := p.status.Source
	if was.Commit = ""; was != source {
		p.status.Source, p.status.Revision, p.status.Refused, p.status.Outcome = source, 0, nil, ""
	}
}

// end saves what is new. The same failure time and again is saved once.
func (p *pull) end(ctx context.Context, before *Status, o Outcome, err error) {
	now := p.status
	switch {
	case o == Unchanged || o == Accepted:
		now.Refused, now.Outcome = nil, Accepted
	case o.refused() && err != nil:
		now.Refused, now.Outcome = &Refusal{Commit: p.commit, Outcome: o, Message: clip(message(err))}, o
	default:
		now.Outcome = o
	}
	same := now.Outcome == before.Outcome && now.Source == before.Source && (now.Refused == nil) == (before.Refused == nil) &&
		(now.Refused == nil || *now.Refused == *before.Refused)
	if same && o != Accepted {
		return
	}
	for _, e := range p.found {
		now.add(e)
	}
	if err := p.cluster.Save(ctx, now); err != nil {
		// Nothing is lost by it: the same pull happens again, and finds the
		// revision that it made.
		p.logger.Warn("the state of the Git source was not saved", "error", err)
	}
}

func (p *pull) event(step, message string) {
	p.found = append(p.found, Event{At: time.Now().UTC(), Commit: p.commit, Step: step, Message: clip(message)})
}

// message is what may be told of an error to those who read the history.
func message(err error) string {
	if f, ok := errors.AsType[*fault.Error](err); ok {
		return f.Detail
	}
	return err.Error()
}

func (p *pull) run(ctx context.Context, force bool) (Outcome, error) {
	fetching, cancel := context.WithTimeout(ctx, p.cfg.Timeout)
	defer cancel()
	r, err := newRemote(&p.cfg)
	if err != nil {
		return "", failed(FetchFailed, err)
	}
	tip, err := r.tip(fetching)
	if err != nil {
		return "", failed(FetchFailed, err)
	}
	p.commit = tip.String()
	if p.commit == p.status.Source.Commit {
		return Unchanged, nil
	}
	if refused := p.status.Refused; refused != nil && refused.Commit == p.commit && !force {
		return refused.Outcome, nil
	}
	c, h, err := p.fetch(fetching, r)
	if err != nil {
		return "", err
	}
	p.event("fetched", "")
	signature, err := p.verify(c)
	if err != nil {
		return "", failed(Unverified, err)
	}
	source := p.status.Source
	source.Commit = p.commit
	rev, staged := p.cluster.Find(source) // an earlier pull may not have got to its end
	if !staged {
		if rev, err = p.take(ctx, c, h, policy.Origin{Source: &source, Signature: signature}); err != nil {
			return "", err
		}
	}
	if err := p.advance(ctx, rev); err != nil {
		return "", failed(Failed, err)
	}
	p.status.Source, p.status.Revision = source, rev.Number
	p.logger.Info("the Git source gave a policy", "commit", p.commit, "policy_revision", rev.Number, "mode", p.cfg.Mode)
	return Accepted, nil
}

// fetch gets the newest commit, and enough of the past to see that it descends
// from the last accepted one.
func (p *pull) fetch(ctx context.Context, r *remote) (*commit, *history, error) {
	last := plumbing.NewHash(p.status.Source.Commit)
	depth := 1
	if !last.IsZero() && !p.cfg.Rewrites {
		depth = depthFirst
	}
	for ; ; depth *= 20 {
		h, err := r.fetch(ctx, depth)
		if err != nil {
			return nil, nil, failed(FetchFailed, err)
		}
		p.commit = h.head.String()
		if depth > 1 {
			descends, err := h.descends(last)
			if errors.Is(err, errTooShallow) && h.cut {
				continue
			}
			if err != nil {
				return nil, nil, failed(FetchFailed, err)
			}
			if !descends {
				return nil, nil, failed(NotForward, fmt.Errorf("it does not descend from %s, the last accepted commit: history was rewritten or taken back; "+
					"commit on top of that one, or set policy.git.allow_rewrites", last))
			}
		}
		c, err := readCommit(h.objects, h.head)
		return c, h, failed(BadContent, err)
	}
}

// verify holds the commit to a trusted signature.
func (p *pull) verify(c *commit) (*policy.Signature, error) {
	if p.cfg.Unsigned {
		p.event("verified", "signatures are not required")
		return nil, nil
	}
	key, err := c.verify(p.cluster.Verify)
	if err != nil {
		return nil, fmt.Errorf("the commit is not believed: %s", message(err))
	}
	p.event("verified", "signed by "+key)
	return &policy.Signature{Key: key}, nil
}

// take makes a revision of a commit.
func (p *pull) take(ctx context.Context, c *commit, h *history, origin policy.Origin) (*policy.Revision, error) {
	content, err := p.content(c, h)
	if err != nil {
		return nil, failed(BadContent, err)
	}
	for _, e := range p.found {
		origin.Steps = append(origin.Steps, policy.Step{Step: e.Step, At: e.At, By: p.cfg.URL, Note: e.Message})
	}
	// It is only staged if its tests pass.
	origin.Steps = append(origin.Steps, policy.Step{Step: "tested", At: time.Now().UTC(), By: p.cfg.URL})
	rev, err := p.cluster.Stage(ctx, content, origin)
	if err != nil {
		if fault.Is(err, fault.InvalidPolicy) || fault.Is(err, fault.InvalidField) || fault.Is(err, fault.BadRequest) || fault.Is(err, fault.TooLarge) {
			return nil, failed(CheckFailed, err)
		}
		return nil, failed(Failed, err)
	}
	p.event("tested", fmt.Sprintf("%d passed", rev.Tests.Passed))
	p.event(string(policy.Staged), fmt.Sprintf("policy revision %d", rev.Number))
	return rev, nil
}

func (p *pull) content(c *commit, h *history) (*policy.Content, error) {
	list, err := files(h.objects, c.tree, p.cfg.Path, p.cfg.MaxSize)
	if err != nil {
		return nil, err
	}
	// A folder that was emptied, or a wrong one, must not become a policy that
	// decides nothing.
	if !slices.ContainsFunc(list, func(f file) bool { return strings.HasSuffix(f.name, ".rego") }) {
		return nil, errors.New("there is no module, a file whose name ends in .rego, in the folder")
	}
	bundle, err := pack(list)
	if err != nil {
		return nil, err
	}
	content, err := p.cluster.Parse(bundle)
	if err == nil && content.Note == "" {
		content.Note = "commit " + c.id.String()
	}
	return content, err
}

// advance does what the mode demands beyond staging. A revision that somebody
// has moved on already is left where it is.
func (p *pull) advance(ctx context.Context, rev *policy.Revision) error {
	switch {
	case p.cfg.Mode == ModeShadow && rev.State == policy.Staged:
		if err := p.cluster.Shadow(ctx, rev.Number); err != nil {
			return err
		}
		p.event(string(policy.Shadow), fmt.Sprintf("policy revision %d", rev.Number))
	case p.cfg.Mode == ModeActivate && (rev.State == policy.Staged || rev.State == policy.Shadow):
		if err := p.cluster.Activate(ctx, rev.Number); err != nil {
			return err
		}
		p.event(string(policy.Active), fmt.Sprintf("policy revision %d", rev.Number))
	}
	return nil
}
