package cluster

import (
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/muster-registry/muster/cluster/wire"
	"github.com/muster-registry/muster/command"
	"github.com/muster-registry/muster/fault"
)

// TestRoster follows what a leader sees, second by second, and what it decides.
func TestRoster(t *testing.T) {
	const term, commit = 7, 1000
	rules := Membership{Stabilization: 3 * time.Second, MaxContact: 500 * time.Millisecond, MaxTrailing: 250, DeadAfter: 4 * time.Second, MinQuorum: 3}
	// A letter is a second: what the node answers then. All others are well.
	answers := map[rune]*wire.State{
		'+': {Instance: "a", Term: term, Applied: commit, LastContactMs: 40},
		'*': {Instance: "b", Term: term, Applied: commit, LastContactMs: 40}, // started again
		'l': {Instance: "a", Term: term, Applied: commit - 251, LastContactMs: 40},
		'n': {Instance: "a", Term: term, Applied: commit - 250, LastContactMs: 40},
		'o': {Instance: "a", Term: term - 1, Applied: commit, LastContactMs: 40},
		'c': {Instance: "a", Term: term, Applied: commit, LastContactMs: 501},
		'0': {Instance: "a", Term: term, Applied: commit, LastContactMs: -1}, // never
		'.': nil,
	}
	for _, c := range []struct{ name, voters, subject, seen, want string }{
		{"a healthy node votes", "n1 n2 n3", "", "+++++", "votes after 5"},
		{"a flapping one does not", "n1 n2 n3", "", "+++.+++.+++.+++.", ""},
		{"nor one that starts again and again", "n1 n2 n3", "", "+++***+++***+++***", ""},
		{"nor one that hears too little", "n1 n2 n3", "", "+++c+++c+++0", ""},
		{"nor one of another term", "n1 n2 n3", "", "ooooooooo", ""},
		{"nor one that lags", "n1 n2 n3", "", "lllllllll", ""},
		{"a little behind is healthy", "n1 n2 n3", "", "nnnnn", "votes after 5"},
		{"a dead non-voter goes", "n1", "", "+....", "goes after 5"},
		{"a dead voter goes", "n1 n2 n3", "voter", "+....", "goes after 5"},
		{"one that answers in time stays", "n1 n2 n3", "voter", "+...+...+...+", ""},
		{"of three, none goes", "n1 n2", "voter", "+.........", ""},
		{"nor one of five when two more are silent", "n1 n2 -n3 -n4", "voter", "+....", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &roster{rules: rules, log: slog.New(slog.DiscardHandler), known: map[raft.ServerID]*health{}}
			got := ""
			for i, a := range []rune(c.seen) {
				var looks []look
				for _, id := range strings.Fields(c.voters) {
					l := look{Server: raft.Server{ID: raft.ServerID(strings.TrimPrefix(id, "-"))}, state: answers['+']}
					if strings.HasPrefix(id, "-") && i > 0 {
						l.state = nil
					}
					looks = append(looks, l)
				}
				l := look{Server: raft.Server{ID: "n9", Suffrage: raft.Nonvoter}, state: answers[a]}
				if c.subject == "voter" {
					l.Suffrage = raft.Voter
				}
				now := time.Unix(int64(i), 0)
				r.see(append(looks, l), term, commit, now)
				if who, ok := r.worthy(now); ok && got == "" {
					got = fmt.Sprintf("%s votes after %d", who.ID, i+1)
				}
				if who, ok := r.dead(now); ok && got == "" {
					got = fmt.Sprintf("%s goes after %d", who.ID, i+1)
				}
			}
			if got = strings.TrimPrefix(got, "n9 "); got != c.want {
				t.Errorf("%q: %q, want %q", c.seen, got, c.want)
			}
		})
	}
}

// A node that stays away is removed where enough voters are left, and told so
// when it comes back, which disturbs nobody; one of three stays.
func TestDeadServerIsRemoved(t *testing.T) {
	l := newLab(t)
	var mu sync.Mutex
	var gone []string
	l.tune = func(cfg *Config) {
		cfg.Membership.DeadAfter, cfg.Membership.MinQuorum = 5*time.Second, 3
		cfg.OnRemoved = func(id, why string) {
			mu.Lock()
			defer mu.Unlock()
			gone = append(gone, id+" "+why)
		}
	}
	nodes := l.form(3)
	n4 := l.start(l.config("n4", 0))
	leader := l.leader(nodes...)
	l.eventually("n4 votes", func() error {
		if n := leader.voters(); n != 4 {
			return fmt.Errorf("%d voters", n)
		}
		return nil
	})
	l.crash(n4)
	l.eventually("n4 is removed", func() error {
		if leader = l.leader(nodes...); leader.member("n4") != "" {
			return fmt.Errorf("members: %s", roles(leader))
		}
		mu.Lock()
		defer mu.Unlock()
		// Where the lead is lost while the removal is replicated, the next leader
		// tells of it as well.
		if !slices.Contains(gone, "n4 dead") && !slices.Contains(gone, "n4 before") {
			return fmt.Errorf("told of %q", gone)
		}
		return nil
	})
	term := leader.Term()
	n4 = l.start(n4.cfg)
	l.eventually("n4 is told", func() error {
		if tr := n4.trouble.Load(); tr == nil || !fault.Is(tr, fault.Conflict) || !strings.Contains(tr.Detail, "removed") {
			return fmt.Errorf("%v", tr)
		}
		return nil
	})
	if now := leader.Term(); now != term && os.Getenv("MUSTER_STRICT") == "1" { // a busy machine has elections of its own
		t.Errorf("the removed node's return took the term from %d to %d", term, now)
	}
}

// TestRemoveRefused: nobody can take the quorum away by a slip.
func TestRemoveRefused(t *testing.T) {
	l := newLab(t)
	nodes := l.form(3)
	leader := l.leader(nodes...)
	var rest []*node
	for _, n := range nodes {
		if n != leader {
			rest = append(rest, n)
		}
	}
	l.crash(rest[0])
	refused := func(err error, words string) {
		t.Helper()
		if e := fault.From(err); err == nil || e.Code != fault.Conflict || e.Outcome != fault.Definite || !strings.Contains(e.Detail, words) {
			t.Errorf("got %v, want a conflict with %q", err, words)
		}
	}
	refused(leader.Remove(within(t, 10*time.Second), rest[1].ID()), "lose its quorum")
	refused(leader.TransferLeader(within(t, 10*time.Second), rest[0].ID()), "does not answer")
	if len(leader.Members()) != 3 {
		t.Fatalf("members: %s", roles(leader))
	}
	must(t, leader.Remove(within(t, 10*time.Second), rest[0].ID()))
	must(t, leader.Remove(within(t, 10*time.Second), rest[1].ID()))
	refused(leader.Remove(within(t, 10*time.Second), leader.ID()), "last voter")
	_, err := leader.Call(within(t, 30*time.Second), "put", []byte("after"))
	must(t, err)
}

// Versions are mixed: the feature level rises when the last member knows the
// newer format, voter or not, and not while one is away; from then on nobody
// who does not know it is taken in.
func TestMixedVersions(t *testing.T) {
	l := newLab(t)
	next := uint32(command.Format + 1)
	newer := false
	l.tune = func(cfg *Config) {
		if newer {
			cfg.Format = next
		}
	}
	nodes := l.form(3)
	leader := l.leader(nodes...)
	l.seated(leader)
	levels := func(want uint32) {
		t.Helper()
		l.eventually(fmt.Sprintf("feature level %d", want), func() error {
			for _, n := range nodes {
				if got := n.kv.Level(); !n.stopping.Load() && got != want {
					return fmt.Errorf("%s is at %d", n.ID(), got)
				}
			}
			return nil
		})
	}
	for i, n := range nodes { // one after the other, as an upgrade does
		levels(command.Format)
		l.crash(n)
		cfg := n.cfg
		cfg.Format = next
		if l.disks == nil {
			l.disks = map[string]*kv{}
		}
		l.disks[cfg.DataDir] = n.kv
		if i == len(nodes)-1 {
			// The last old one is away: that alone does not raise it.
			rest := nodes[:i]
			_, err := l.leader(rest...).Propose(within(t, 20*time.Second), put("meanwhile", "v"))
			must(t, err)
			if got := rest[0].kv.Level(); got != command.Format {
				t.Errorf("the level is %d while an old member is away", got)
			}
		}
		nodes[i] = l.start(cfg)
		l.ready(nodes[i])
	}
	levels(next)
	for _, n := range nodes {
		if n.kv.get("meanwhile") == "" {
			t.Errorf("%s lost a write", n.ID())
		}
	}
	old := l.start(l.config("n4", 0))
	l.eventually("the old version is told", func() error {
		if tr := old.trouble.Load(); tr == nil || !fault.Is(tr, fault.Conflict) || !strings.Contains(tr.Detail, "feature level") {
			return fmt.Errorf("%v", tr)
		}
		return nil
	})
	newer = true
	l.ready(l.start(l.config("n5", 0)))
}
