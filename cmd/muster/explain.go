package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/muster-registry/muster/client"
	"github.com/muster-registry/muster/policy"
)

func (a *app) policyExplain() *cobra.Command {
	var input bool
	c := &cobra.Command{
		Use: "explain DECISION", Short: "Tell why a decision came out as it did, rule by rule", Args: cobra.ExactArgs(1),
		Long:    "Tell why a decision came out as it did. The id is in the answer's header\nMuster-Decision-Id, in the body of a refusal and in the node's log. The node that made\nthe decision replays it by the policy revision of then, and tells what became of each\nrule: ✓ it holds, ✗ it does not, – the decision did not need it.",
		Example: "  muster policy explain 01a206f8-fefb-70ff-b5b3-526bbdbeae57",
		RunE: a.ask(func(cmd *cobra.Command, c *client.Client, args []string) error {
			report, err := c.Decision(cmd.Context(), args[0], true)
			if err != nil {
				return err
			}
			switch a.output {
			case "json", "yaml":
				return a.raw(report)
			case "name":
				_, err := fmt.Fprintf(a.out, "decision/%s\n", args[0])
				return err
			}
			var d toldDecision
			if err := json.Unmarshal(report, &d); err != nil {
				return err
			}
			return d.write(a.out, a.colours(), input || a.output == "wide")
		}),
	}
	c.Flags().BoolVar(&input, "input", false, "print the input document as well, without credentials")
	a.outputFlag(c)
	return c
}

// colours says whether the output is a terminal whose user wants them.
func (a *app) colours() bool {
	f, ok := a.out.(*os.File)
	return ok && a.env("NO_COLOR") == "" && term.IsTerminal(int(f.Fd()))
}

// toldDecision is the answer of GET /v1/decisions/{id}, as far as people read
// it.
type toldDecision struct {
	ID             string         `json:"decision_id"`
	Time           time.Time      `json:"time"`
	Node           string         `json:"node"`
	PolicyRevision uint64         `json:"policy_revision"`
	Revision       uint64         `json:"revision"`
	Engine         string         `json:"engine"`
	EntryPoint     string         `json:"entrypoint"`
	Input          jsontext.Value `json:"input"`
	Masked         []string       `json:"masked"`
	TookNS         int64          `json:"took_ns"`
	RequestedBy    string         `json:"requested_by"`
	Principal      string         `json:"principal"`
	RequestID      string         `json:"request_id"`
	TraceID        string         `json:"trace_id"`
	Result         struct {
		Allow    bool           `json:"allow"`
		Reasons  []string       `json:"reasons"`
		Filtered jsontext.Value `json:"filtered"`
		Default  bool           `json:"default"`
	} `json:"result"`
	Explanation struct {
		Same  bool          `json:"same"`
		Rules []policy.Rule `json:"rules"`
	} `json:"explanation"`
}

// page writes lines and remembers the first error.
type page struct {
	w       io.Writer
	colours bool
	err     error
}

func (p *page) line(indent int, format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, "%s%s\n", strings.Repeat("  ", indent), p.clean(fmt.Sprintf(format, args...)))
	}
}

// clean keeps what others have stored from steering the terminal.
func (p *page) clean(s string) string {
	if s == "" {
		return ""
	}
	marks := strings.NewReplacer(inGreen, "\x00g", inRed, "\x00r", uncoloured, "\x00p")
	back := strings.NewReplacer("\x00g", inGreen, "\x00r", inRed, "\x00p", uncoloured)
	if !p.colours {
		return clean([]string{s})[0]
	}
	parts := strings.Split(marks.Replace(s), "\x00")
	for i, part := range parts {
		if part != "" {
			parts[i] = clean([]string{part})[0]
		}
	}
	return back.Replace(strings.Join(parts, "\x00"))
}

const (
	inGreen    = "\x1b[32m"
	inRed      = "\x1b[31m"
	uncoloured = "\x1b[0m"
)

// mark is the sign for an outcome.
func (p *page) mark(outcome string) string {
	sign, colour := "✗", inRed
	switch outcome {
	case policy.True:
		sign, colour = "✓", inGreen
	case policy.NotReached:
		return "–"
	}
	if !p.colours {
		return sign
	}
	return colour + sign + uncoloured
}

func (d *toldDecision) write(w io.Writer, colours, input bool) error {
	p := &page{w: w, colours: colours}
	outcome, word := policy.True, "allowed"
	if !d.Result.Allow {
		outcome, word = policy.False, "refused"
	}
	p.line(0, "%s %s  decision %s", p.mark(outcome), word, d.ID)
	p.line(1, "made       %s on %s, in %.3f ms", d.Time.UTC().Format(time.RFC3339Nano), d.Node, float64(d.TookNS)/1e6)
	by := fmt.Sprintf("policy revision %d, %s, by %s", d.PolicyRevision, dotted(d.EntryPoint), d.Engine)
	if d.Revision > 0 {
		by += fmt.Sprintf(", on the registry at revision %d", d.Revision)
	}
	p.line(1, "by         %s", by)
	d.asked(p)
	for _, r := range d.Result.Reasons {
		p.line(1, "reason     %s", r)
	}
	if d.Result.Filtered != nil {
		p.line(1, "filtered   the policy replaced the content: %s", cutShort(string(d.Result.Filtered)))
	}
	switch {
	case d.Result.Default:
		p.line(1, "No policy is defined for this: the built-in roles alone have decided.")
	case !d.Explanation.Same:
		p.line(1, "A replay came out otherwise: the decision was not answered in time, or the engine has changed since.")
	}
	if input && d.Input != nil {
		v := d.Input
		if err := v.Indent(jsontext.WithIndent("  ")); err == nil {
			p.line(0, "")
			for line := range strings.Lines(string(v)) {
				p.line(1, "%s", strings.TrimSuffix(line, "\n"))
			}
		}
	}
	d.rules(p)
	return p.err
}

func dotted(path string) string { return strings.ReplaceAll(path, "/", ".") }

func cutShort(s string) string {
	if len(s) > 160 {
		return strings.ToValidUTF8(s[:160], "") + "…"
	}
	return s
}

// asked tells who asked what.
func (d *toldDecision) asked(p *page) {
	var in struct {
		Action     string `json:"action"`
		Attributes struct {
			Request struct {
				HTTP struct {
					Method string `json:"method"`
					Path   string `json:"path"`
				} `json:"http"`
			} `json:"request"`
		} `json:"attributes"`
		Resource struct {
			Kind      string `json:"kind"`
			Namespace string `json:"namespace"`
			Name      string `json:"name"`
		} `json:"resource"`
	}
	_ = json.Unmarshal(d.Input, &in) // an input of another shape has none of it
	who := d.Principal
	if d.RequestedBy != "" {
		who += " from " + d.RequestedBy
	}
	p.line(1, "asked by   %s", who)
	if in.Action != "" {
		what := in.Action
		if r := in.Resource; r.Kind != "" {
			what += fmt.Sprintf(" %s %s/%s", r.Kind, r.Namespace, r.Name)
		}
		if h := in.Attributes.Request.HTTP; h.Method != "" {
			what += fmt.Sprintf(" (%s %s)", h.Method, h.Path)
		}
		p.line(1, "to         %s", what)
	}
	if d.RequestID != "" {
		p.line(1, "request    %s", d.RequestID)
	}
	if d.TraceID != "" {
		p.line(1, "trace      %s", d.TraceID)
	}
}

// rules prints the tree of packages, rules and definitions.
func (d *toldDecision) rules(p *page) {
	pkg := ""
	for _, r := range d.Explanation.Rules {
		if r.Package != pkg {
			pkg = r.Package
			p.line(0, "")
			p.line(0, "%s", pkg)
		}
		text := r.Outcome
		if r.Value != "" {
			text = r.Value
		}
		p.line(1, "%s %s: %s", p.mark(r.Outcome), r.Name, text)
		for _, def := range r.Definitions {
			p.line(2, "%s %s:%d  %s", p.mark(def.Outcome), def.File, def.Row, def.Text)
			if f := def.Failed; f != nil {
				d.failure(p, &def, f)
			}
		}
	}
}

func (d *toldDecision) failure(p *page, def *policy.Definition, f *policy.Failure) {
	if f.Row != def.Row {
		p.line(4, "stopped at %s:%d  %s", f.File, f.Row, f.Text)
	}
	for _, name := range slices.Sorted(maps.Keys(f.Values)) {
		p.line(5, "%s = %s", name, f.Values[name])
	}
	if f.Error != "" {
		p.line(5, "error: %s", f.Error)
	}
}
