package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/fault"
)

func (a *app) watch() *cobra.Command {
	var all bool
	var after uint64
	c := &cobra.Command{
		Use: "watch [SERVICE]", Short: "Follow the changes of a service, of a namespace, or of all",
		Long: "Follows changes until it is interrupted, at another node whenever one fails. On a terminal it shows the service's instances, or\n" +
			"the services, and what has changed of them; otherwise, and with -o, one line for each change.",
		Example: "  muster watch payments -n shop\n  muster watch -A -o json | jq .service",
		Args:    cobra.MaximumNArgs(1),
		RunE: a.ask(func(cmd *cobra.Command, c *client.Client, args []string) error {
			w := &watcher{app: a, client: c, Watching: client.Watching{Namespace: a.settings.Namespace, After: after}}
			switch {
			case all && len(args) > 0:
				return usage("-A follows all namespaces; leave SERVICE out")
			case all:
				w.Namespace = ""
			case len(args) > 0:
				w.Service = args[0]
			}
			if f, ok := a.out.(*os.File); ok && (a.output == "" || a.output == "table") && after == 0 && term.IsTerminal(int(f.Fd())) {
				return w.live(cmd.Context(), f)
			}
			return w.lines(cmd.Context())
		}),
	}
	c.Flags().BoolVarP(&all, "all-namespaces", "A", false, "follow all namespaces")
	c.Flags().Uint64Var(&after, "after", 0, "begin behind this revision; by default behind the newest")
	a.outputFlag(c)
	return c
}

// watcher is one watch of a person or a script.
type watcher struct {
	*app
	client *client.Client
	client.Watching
	begun atomic.Bool // a node has taken the watch up
}

// follow watches, and begins anew where changes were missed. That nobody can be
// reached at the beginning is an error; later it is only told.
func (w *watcher) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	begun := w.Begun
	w.Begun = func(revision uint64) {
		w.begun.Store(true)
		if begun != nil {
			begun(revision)
		}
	}
	lost := w.Lost
	w.Lost = func(err error) {
		if !w.begun.Load() {
			cancel(err)
		} else if lost != nil {
			lost(err)
		}
	}
	for asked := w.After; ; w.After = 0 {
		err := w.client.Watch(ctx, w.Watching)
		switch cause := context.Cause(ctx); {
		case cause != nil && !errors.Is(cause, context.Canceled):
			return cause
		case cause != nil:
			return nil // interrupted: that is how a watch ends
		case fault.Is(err, fault.Compacted) && asked == 0:
			if lost != nil {
				lost(err)
			}
			if w.output == "json" {
				fmt.Fprintln(w.out, `{"type":"reset"}`)
			}
		default:
			return err
		}
	}
}

// lines prints each change.
func (w *watcher) lines(ctx context.Context) error {
	w.Event = w.line
	w.Lost = func(err error) { fmt.Fprintf(w.err, "the watch broke off and goes on: %s\n", oneLine(err)) }
	return w.follow(ctx)
}

func (w *watcher) line(e *client.Event) error {
	name := string(e.Kind) + "/" + e.Service
	if e.Kind != client.Service {
		name += "/" + e.ID
	}
	switch w.output {
	case "json":
		v := jsontext.Value(slices.Clone(e.JSON))
		if err := v.Compact(); err != nil {
			return err
		}
		_, err := fmt.Fprintf(w.out, "%s\n", v)
		return err
	case "yaml":
		if _, err := fmt.Fprintln(w.out, "---"); err != nil {
			return err
		}
		return w.raw(e.JSON)
	case "name":
		_, err := fmt.Fprintln(w.out, name)
		return err
	}
	var r row
	if err := json.Unmarshal(e.Record, &r); err != nil && e.Type == "put" { // a policy may have put another in its place
		r = row{}
	}
	cells := []string{strconv.FormatUint(e.Revision, 10), e.Type, e.Namespace, name}
	if e.Type == "put" {
		switch e.Kind {
		case client.Instance:
			cells = append(cells, r.Status, r.Address+":"+strconv.Itoa(r.Port))
			if w.output == "wide" {
				cells = append(cells, r.Version, r.Zone, strconv.Itoa(r.Weight), strings.Join(r.Tags, ","))
			}
		case client.Version:
			cells = append(cells, r.Lifecycle, r.Format)
		case client.Service:
			cells = append(cells, r.Protocol, r.Owner)
		}
	}
	_, err := fmt.Fprintln(w.out, strings.Join(clean(cells), "\t"))
	return err
}

// oneLine is an error in one line.
func oneLine(err error) string {
	text, _, _ := strings.Cut(err.Error(), "\n")
	return text
}

// How soon after a change the screen shows it, and for how long what has changed
// is marked.
const (
	drawEvery = 200 * time.Millisecond
	markFor   = 10 * time.Second
)

// live shows a table on a terminal, and draws it anew when something changes.
// What it shows is read anew each time, from a state that has the change.
func (w *watcher) live(ctx context.Context, screen *os.File) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := newScreen(screen, w.env("NO_COLOR") == "")
	var newest atomic.Uint64 // that something is to be read at
	changed := make(chan struct{}, 1)
	tell := func(revision uint64) {
		newest.Store(revision) // the watch goes forward
		select {
		case changed <- struct{}{}:
		default: // told already
		}
	}
	problem := make(chan string, 1)
	w.Event = func(e *client.Event) error { tell(e.Revision); return nil }
	w.Begun = tell
	w.Lost = func(err error) {
		select {
		case problem <- oneLine(err):
		default:
		}
	}
	ended := make(chan error, 1)
	go func() { ended <- w.follow(ctx) }()
	tick := time.NewTicker(drawEvery)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			return err
		case s.problem = <-problem:
			s.draw(time.Now())
		case <-changed:
			revision := newest.Load()
			title, t, err := w.look(ctx, revision)
			switch {
			case ctx.Err() != nil:
				return <-ended
			case err != nil:
				s.problem = oneLine(err)
				select {
				case changed <- struct{}{}: // tried again
				default:
				}
			default:
				s.problem = ""
				s.show(title, t, time.Now())
			}
			s.draw(time.Now())
			select { // what comes at once is shown at once
			case <-ctx.Done():
			case <-time.After(drawEvery):
			}
		case now := <-tick.C:
			if s.fade(now) {
				s.draw(now)
			}
		}
	}
}

// look reads what the screen shows.
func (w *watcher) look(ctx context.Context, revision uint64) (title string, t table, err error) {
	read := client.Read{MinRevision: revision}
	if w.Service == "" {
		all, err := w.client.Discoverable(ctx, w.Namespace, read)
		if err != nil {
			return "", t, err
		}
		t.head = []string{"NAMESPACE", "SERVICE", "INSTANCES", "PASSING", "REVISION"}
		for _, s := range all {
			t.rows = append(t.rows, []string{s.Namespace, s.Service, strconv.Itoa(s.Instances), strconv.Itoa(s.Passing), strconv.FormatUint(s.Revision, 10)})
			t.names = append(t.names, s.Namespace+"/"+s.Service)
		}
		return count(len(all), "service"), t, nil
	}
	d, err := w.client.Discover(ctx, w.Namespace, w.Service, client.Filter{Read: read, AnyStatus: true})
	if err != nil {
		if fault.Is(err, fault.ServiceNotFound) && w.begun.Load() { // it may come
			return w.Namespace + "/" + w.Service + ": there is no such service", t, nil
		}
		return "", t, err
	}
	passing := 0
	t.head = []string{"ID", "ADDRESS", "PORT", "VERSION", "ZONE", "WEIGHT", "STATUS"}
	for _, i := range d.Instances {
		if i.Status == "passing" {
			passing++
		}
		t.rows = append(t.rows, []string{i.ID, i.Address, strconv.Itoa(i.Port), i.Version, i.Zone, strconv.Itoa(i.Weight), i.Status})
		t.names = append(t.names, i.ID)
	}
	return fmt.Sprintf("%s/%s: %d of %s passing", w.Namespace, w.Service, passing, count(len(d.Instances), "instance")), t, nil
}
