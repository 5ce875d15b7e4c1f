// Command muster is the whole program: a node of an API registry cluster, a
// development cluster on one machine, and the tool to work with either. This
// room owns flags, signals, output and exit codes; it holds no rule of the
// registry and refuses to know what the API does not tell.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the build.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, &app{in: os.Stdin, out: os.Stdout, err: os.Stderr, env: os.Getenv}, os.Args[1:])
	stop()
	os.Exit(code)
}

// app is what commands work with besides their flags.
type app struct {
	in       io.Reader
	out, err io.Writer
	env      func(string) string
	settings settings
	output   string
	started  bool           // a command is running: its errors are not about usage
	command  *cobra.Command // the one that ran, once it has
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, a *app, args []string) int {
	root := a.root()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	a.command = cmd
	if err != nil && !a.started {
		err = usageError{err}
	}
	a.explain(err)
	return exitCode(err)
}
