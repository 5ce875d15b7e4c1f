package git

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/muster-registry/muster/fault"
)

func TestRunPullsWhenAsked(t *testing.T) {
	s := newScene(t, func(c *Config) { c.Interval = time.Hour })
	first := s.commit(s.key, map[string]string{"a.rego": good})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); s.source.Run(ctx) }()
	defer func() { stop(); <-ended }()
	ask, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	status, o, err := s.source.Sync(ask)
	if err != nil || o != Unchanged && o != Accepted || status.Source.Commit != first {
		t.Fatalf("%+v %s %v", status, o, err)
	}
	second := s.commit(s.key, map[string]string{"b.rego": "package b"})
	if status, o, err = s.source.Sync(ask); err != nil || o != Accepted || status.Source.Commit != second {
		t.Errorf("%+v %s %v", status, o, err)
	}
	// Asking without end is one pull at a time, and takes no room.
	for range 1000 {
		s.source.Poke()
	}
	if _, o, err = s.source.Sync(ask); err != nil || o != Unchanged {
		t.Errorf("%s %v", o, err)
	}
}

func TestRunPullsOnTheInterval(t *testing.T) {
	seen := make(chan Outcome, 100)
	s := newScene(t, func(c *Config) { c.Interval = 10 * time.Millisecond })
	s.source.observe = func(o Outcome) {
		select {
		case seen <- o:
		default:
		}
	}
	s.commit(s.key, map[string]string{"a.rego": good})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); s.source.Run(ctx) }()
	for _, want := range []Outcome{Accepted, Unchanged, Unchanged} {
		select {
		case o := <-seen:
			if o != want {
				t.Errorf("%s, want %s", o, want)
			}
		case <-time.After(time.Minute):
			t.Fatal("no pull")
		}
	}
	stop()
	<-ended
	late, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := s.source.Sync(late); !fault.Is(err, fault.NotReady) {
		t.Errorf("after the end: %v", err)
	}
}

func TestBadConfigurations(t *testing.T) {
	for _, c := range []struct {
		cfg  Config
		says string // "": it is fine
	}{
		{Config{URL: "https://git.example.org/a.git"}, ""},
		{Config{URL: "https://git.example.org:8443/a/b", Branch: "release/1", Path: "policies/prod", Mode: ModeActivate}, ""},
		{Config{URL: "ssh://git@git.example.org/a.git", KeyFile: "k", KnownHosts: "h"}, ""},
		{Config{URL: "git@git.example.org:a/b.git", KeyFile: "k", KnownHosts: "h"}, ""},
		{Config{}, "is needed"},
		{Config{URL: "http://git.example.org/a.git"}, "neither"},
		{Config{URL: "file:///srv/git"}, "neither"},
		{Config{URL: "/srv/git"}, "neither"},
		{Config{URL: "git://git.example.org/a"}, "neither"},
		{Config{URL: "ext::sh -c id"}, "neither"},
		{Config{URL: "https://ann:secret@git.example.org/a.git"}, "credentials"},
		{Config{URL: "https://token@git.example.org/a.git"}, "credentials"},
		{Config{URL: "https://git.example.org"}, "path"},
		{Config{URL: "https://git.example.org/a?b"}, "neither ?"},
		{Config{URL: "ssh://git@git.example.org/a.git"}, "needs both"},
		{Config{URL: "https://127.0.0.1/a.git"}, "loopback"},
		{Config{URL: "https://169.254.169.254/a.git"}, "metadata"},
		{Config{URL: "https://localhost/a.git"}, "this machine"},
		{Config{URL: "https://[::1]/a.git"}, "loopback"},
		{Config{URL: "https://0x7f000001/a.git"}, "usual form"},
		{Config{URL: "https://10.0.0.8/a.git"}, "private"},
		{Config{URL: "git@10.0.0.8:a.git", KeyFile: "k", KnownHosts: "h"}, "private"},
		{Config{URL: "https://git.example.org/a", KeyFile: "k"}, "for ssh"},
		{Config{URL: "ssh://git.example.org/a", KeyFile: "k", KnownHosts: "h", TokenFile: "t"}, "for https"},
		{Config{URL: "https://git.example.org/a", Branch: "a b"}, "branch"},
		{Config{URL: "https://git.example.org/a", Branch: "../main"}, "branch"},
		{Config{URL: "https://git.example.org/a", Branch: "refs/heads/main"}, "branch"},
		{Config{URL: "https://git.example.org/a", Path: "../b"}, "path"},
		{Config{URL: "https://git.example.org/a", Path: "/b"}, "path"},
		{Config{URL: "https://git.example.org/a", Path: "b/"}, "path"},
		{Config{URL: "https://git.example.org/a", Mode: "push"}, "mode"},
	} {
		c.cfg.setDefaults()
		errs := c.cfg.Check()
		all := ""
		for _, err := range errs {
			all += err.Error() + "\n"
		}
		if (c.says == "") != (all == "") || !strings.Contains(all, c.says) {
			t.Errorf("%+v: %q, want %q", c.cfg.URL, all, c.says)
		}
	}
}
