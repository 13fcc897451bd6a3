// Package cli is the command line, and the wiring of the roles: the only
// package that knows all others.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/athensctl/athensctl/config"
)

// version is set when a release is built.
var version = ""

// Version is the release, or what the Go toolchain recorded of the build.
func Version() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

// Main runs a command line and returns the exit status.
func Main(args, environ []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process as it is
	return execute(ctx, args, environ, stdout, stderr)
}

// execute is Main until ctx ends, which is an interruption.
func execute(ctx context.Context, args, environ []string, stdout, stderr io.Writer) int {
	root := command(environ, stderr)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	switch err := root.ExecuteContext(ctx); {
	case err == nil:
		return 0
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		fmt.Fprintln(stderr, "athensctl: interrupted before the end")
		return 130
	default:
		fmt.Fprintln(stderr, "athensctl:", err)
		return 1
	}
}

// group makes a command that has others below it refuse a name that is none of theirs, for
// which cobra prints the help and exits with 0.
func group(cmd *cobra.Command) *cobra.Command {
	cmd.Args, cmd.RunE = cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	return cmd
}

func command(environ []string, stderr io.Writer) *cobra.Command {
	root := &cobra.Command{
		Use:           "athensctl",
		Short:         "A Go module proxy in three roles: proxy, storage, crawler",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	serve := &cobra.Command{
		Use:   "serve",
		Short: "Serve one role, several, or all of them",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(cmd.Flags(), environ)
			if err != nil {
				return err
			}
			return runServe(cmd.Context(), cfg, stderr)
		},
	}
	show := &cobra.Command{
		Use:   "config",
		Short: "Print the settings in force and where each came from",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(cmd.Flags(), environ)
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
			for _, s := range cfg.Settings() {
				fmt.Fprintf(w, "%s\t%s\t(%s)\n", s.Key, s.Value, s.Source)
			}
			return w.Flush()
		},
	}
	config.Flags(serve.Flags())
	config.Flags(show.Flags())
	root.AddCommand(serve, show, storageCommand(environ), doctorCommand(environ), warmCommand(environ, stderr), queueCommand(environ, stderr), &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintf(cmd.OutOrStdout(), "athensctl %s %s %s/%s\n", Version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
		},
	})
	root.AddCommand(transferCommands(environ, stderr)...)
	return root
}
