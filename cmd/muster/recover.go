package main

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"github.com/muster-registry/muster/fault"
	"github.com/muster-registry/muster/node"
)

// recovery is what cluster recover prints with -o json, and what --report reads.
type recovery struct {
	Disks     []*node.Disk `json:"disks"`
	Newest    string       `json:"newest,omitzero"`
	Lost      []string     `json:"lost,omitzero"`
	Recovered bool         `json:"recovered"`
	Kept      string       `json:"kept,omitzero"` // a copy of what the disk held
}

func (a *app) clusterRecover() *cobra.Command {
	var dirs, reports, peers []string
	var config string
	var dry, yes bool
	c := &cobra.Command{
		Use: "recover --config FILE|--data-dir DIR…", Short: "Bring a cluster back that has lost its majority for good, from the disks that are left", Args: cobra.NoArgs,
		Long: "Bring a cluster back that has lost the majority of its nodes for good. Stop the nodes\n" +
			"that are left, and name their data directories (data_dir of their configurations).\n" +
			"Where a disk is on another machine, run this there with --dry-run -o json and give\n" +
			"its output with --report. It shows what each disk holds, chooses the newest, says what\n" +
			"may be lost, and asks. Then that node is a cluster of one with all that its disk held;\n" +
			"a copy of what was there is kept. Start it, and start the others with empty data\n" +
			"directories: they join by themselves.\n\n" +
			"It refuses while a node runs on one of the disks, while any other node of the cluster\n" +
			"answers (at the addresses that the disk knows, at those of --peer, or by gossip where\n" +
			"--config gives the key for it), and where the disks make up a majority, which needs no recovery.",
		RunE: a.do(func(cmd *cobra.Command, _ []string) error {
			where := node.Search{Peers: peers}
			if config != "" {
				cfg, err := node.Load(config, a.env)
				if err != nil {
					return err
				}
				where.Config = cfg
				if len(dirs) == 0 {
					dirs = []string{cfg.DataDir}
				}
			}
			if len(dirs) == 0 {
				return usage("name the data directory of each node that is left with --data-dir, or the node's configuration with --config")
			}
			here, all, err := gather(dirs, reports)
			if err != nil {
				return err
			}
			l, err := node.Weigh(all)
			if err != nil {
				_ = a.showDisks(&recovery{Disks: all}) // what was found explains the refusal
				if len(all) == 1 && dry {
					return nil // a report for another machine
				}
				return err
			}
			r := &recovery{Disks: all, Newest: l.Newest.NodeID, Lost: l.Lost}
			if err := l.Living(cmd.Context(), here, where); err != nil {
				_ = a.showDisks(r)
				return err
			}
			if dry {
				return a.showDisks(r)
			}
			if err := a.agreed(r, l, here, yes); err != nil {
				return err
			}
			r.Kept, err = l.Recover(time.Now(), slog.New(slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: slog.LevelWarn})))
			if err != nil {
				return err
			}
			r.Recovered = true
			a.after(r, l)
			if a.output == "json" || a.output == "yaml" {
				return a.show(r, nil)
			}
			return nil
		}),
	}
	c.Flags().StringArrayVar(&dirs, "data-dir", nil, "data directory of a stopped node; may be repeated")
	c.Flags().StringVar(&config, "config", "", "configuration of the stopped node, for its data_dir and to look for others by gossip")
	c.Flags().StringArrayVar(&peers, "peer", nil, "peer address at which another node may live by now; may be repeated")
	c.Flags().StringArrayVar(&reports, "report", nil, "what this command printed with --dry-run -o json on another machine; may be repeated")
	c.Flags().BoolVar(&dry, "dry-run", false, "only show what the disks hold")
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	a.outputFlag(c)
	return c
}

// gather looks at the disks here, and reads what was told of others.
func gather(dirs, reports []string) (here, all []*node.Disk, err error) {
	for _, dir := range dirs {
		d, err := node.Look(dir)
		if err != nil {
			return nil, nil, err
		}
		here = append(here, d)
	}
	all = append(all, here...)
	for _, file := range reports {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, nil, err
		}
		var r recovery
		if err := json.Unmarshal(b, &r, json.RejectUnknownMembers(true)); err != nil || len(r.Disks) == 0 {
			return nil, nil, fmt.Errorf("%s is not what muster cluster recover --dry-run -o json prints: %w", file, err)
		}
		all = append(all, r.Disks...)
	}
	return here, all, nil
}

func (a *app) showDisks(r *recovery) error {
	return a.show(r, func() table {
		t := table{head: []string{"NODE", "DATA", "TERM", "LAST ENTRY", "WRITTEN", "APPLIED", "REVISION", "STATE", "SERVICES", "INSTANCES", ""}}
		for _, d := range r.Disks {
			written, note := "", ""
			if !d.LastAt.IsZero() {
				written = d.LastAt.Local().Format(time.DateTime)
			}
			switch {
			case d.OnProbation:
				note = "had not caught up"
			case d.Diverged:
				note = "differed from the cluster"
			case d.NodeID == r.Newest:
				note = "newest"
			}
			t.rows = append(t.rows, []string{d.NodeID, d.DataDir, fmt.Sprint(d.Term), fmt.Sprintf("%d of term %d", d.LastIndex, d.LastTerm), written,
				fmt.Sprint(d.Applied), fmt.Sprint(d.Revision), d.StateHash[:min(12, len(d.StateHash))], fmt.Sprint(d.Services), fmt.Sprint(d.Instances), note})
			t.names = append(t.names, "node/"+d.NodeID)
		}
		return t
	})
}

// agreed shows what will happen and has it confirmed.
func (a *app) agreed(r *recovery, l *node.Loss, here []*node.Disk, yes bool) error {
	if a.output != "json" && a.output != "yaml" {
		if err := a.showDisks(r); err != nil {
			return err
		}
	}
	local := false
	for _, d := range here {
		local = local || d == l.Newest
	}
	if !local {
		return fault.New(fault.Conflict, "the newest disk is %s of node %s, on another machine: run this there, with what this one reports", l.Newest.DataDir, l.Newest.NodeID)
	}
	until := "entry"
	if !l.Newest.LastAt.IsZero() {
		until = fmt.Sprintf("entry, of %s,", l.Newest.LastAt.Local().Format(time.DateTime))
	}
	a.say("\n%s is the newest. It will be the only member of cluster %s, with all that its disk holds.", l.Newest.NodeID, l.ClusterID)
	a.say("What may be lost: changes that were acknowledged after its last %s and are on the lost disks alone (%s).", until, strings.Join(l.Lost, ", "))
	a.say("What may appear: changes that were under way at the end, and whose callers never heard of their outcome.")
	a.say("The disks of %s must never be started again: their nodes would go on as if nothing had happened.", strings.Join(others(l), ", "))
	if yes {
		return nil
	}
	fmt.Fprintf(a.err, "Type %s to go on: ", l.Newest.NodeID)
	line, _ := bufio.NewReader(a.in).ReadString('\n') // what has no end is no answer
	if strings.TrimSpace(line) != l.Newest.NodeID {
		return errors.New("nothing was changed: it was not confirmed (--yes goes on without asking)")
	}
	return nil
}

// others are the voters beside the newest.
func others(l *node.Loss) (ids []string) {
	for _, m := range l.Newest.Members {
		if m.ID != l.Newest.NodeID {
			ids = append(ids, m.ID)
		}
	}
	return ids
}

// after says what comes next.
func (a *app) after(r *recovery, l *node.Loss) {
	a.say("\n%s is recovered. What its disk held before is in %s.", l.Newest.NodeID, r.Kept)
	a.say("1. Start %s as always, and look with: muster cluster status", l.Newest.NodeID)
	a.say("2. Start the others, %s or new ones, with empty data directories: they join by themselves, and vote when they have caught up.", strings.Join(others(l), ", "))
	a.say("3. Their audit trails begin anew. Accept each when audit_differs is raised: muster audit accept NODE")
}
