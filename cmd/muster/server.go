package main

import (
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/muster-registry/muster/node"
)

func (a *app) server() *cobra.Command {
	var config, trail, level string
	var tracing bool
	c := &cobra.Command{
		Use: "server --config FILE", Short: "Run one node", Args: cobra.NoArgs,
		Long: "Run one node until SIGINT or SIGTERM, upon which it hands over the leadership,\nfinishes what it has begun and ends with exit code 0. It logs to standard error.",
		RunE: a.do(func(cmd *cobra.Command, _ []string) error {
			if config == "" {
				return usage("name the configuration file with --config")
			}
			closeFiles()
			cfg, err := node.Load(config, a.env)
			if err != nil {
				return err
			}
			if trail != "" {
				cfg.Audit.Path = trail
			}
			if cmd.Flags().Changed("tracing-enabled") {
				cfg.Tracing.Enabled = tracing
			}
			if level != "" {
				if new(slog.Level).UnmarshalText([]byte(level)) != nil {
					return usage("--log-level is none of debug, info, warn, error")
				}
				cfg.Log.Level = level
			}
			logger := newLogger(cfg.Log, a.err)
			limitMemory(logger, a.env)
			return node.Run(cmd.Context(), cfg, version, logger)
		}),
	}
	c.Flags().StringVar(&config, "config", "", "the node's configuration, in YAML")
	c.Flags().StringVar(&trail, "audit-path", "", "file of the audit trail (default audit.path of the configuration); off: none")
	c.Flags().StringVar(&level, "log-level", "", "debug, info, warn or error (default log.level of the configuration)")
	c.Flags().BoolVar(&tracing, "tracing-enabled", false, "send the spans of requests to an OpenTelemetry collector (default tracing.enabled of the configuration)")
	return c
}

func newLogger(s node.LogSettings, w io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(s.Level)); err != nil {
		level = slog.LevelInfo // Load has refused all that is not a level
	}
	o := &slog.HandlerOptions{Level: level}
	if s.Format == "text" {
		return slog.New(slog.NewTextHandler(w, o))
	}
	return slog.New(slog.NewJSONHandler(w, o))
}

// limitMemory makes the collector work harder before the container's limit is
// reached, unless GOMEMLIMIT says otherwise. Go sees to the limit on CPUs.
func limitMemory(logger *slog.Logger, env func(string) string) {
	if env("GOMEMLIMIT") != "" {
		return
	}
	for _, file := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		limit, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		if err != nil || limit <= 0 || limit > 1<<50 { // "max", or version 1's way to say so
			return
		}
		debug.SetMemoryLimit(limit / 10 * 9)
		logger.Info("memory limit taken from the control group", "limit_bytes", limit)
		return
	}
}
