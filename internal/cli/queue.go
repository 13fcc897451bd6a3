package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/athensctl/athensctl/config"
	"github.com/athensctl/athensctl/storage"
)

// queueTimeout bounds one command.
const queueTimeout = time.Minute

// jobsAtMost is how many jobs a storage role tells of at once.
const jobsAtMost = 10000

func queueCommand(environ []string, stderr io.Writer) *cobra.Command {
	queue := group(&cobra.Command{
		Use:   "queue",
		Short: "Look at the queue of fetches, and change it",
		Long: `The queue is that of the store that the settings name, or of the storage role at --storage-url. A job's name is
MODULE@QUERY#FILE, as list prints it.`,
	})
	var limit int
	list := &cobra.Command{
		Use: "list", Short: "Print the jobs: those that failed first, then by age", Args: cobra.NoArgs,
		RunE: withLedger(environ, stderr, func(ctx context.Context, cmd *cobra.Command, l storage.Ledger, _ []string) error {
			if limit < 1 || limit > jobsAtMost {
				return fmt.Errorf("limit: %d is not a number from 1 to %d", limit, jobsAtMost)
			}
			jobs, err := l.Jobs(ctx, jobsAtMost) // they come in no order
			if err != nil {
				return err
			}
			printJobs(cmd.OutOrStdout(), jobs, limit, time.Now())
			if more := len(jobs) == jobsAtMost; more || len(jobs) > limit {
				fmt.Fprintf(stderr, "%d jobs of %d%s: see --limit\n", min(limit, len(jobs)), len(jobs), map[bool]string{true: " or more"}[more])
			}
			return nil
		}),
	}
	retry := &cobra.Command{
		Use: "retry JOB...", Short: "Have jobs tried at once, as if they were new", Args: cobra.MinimumNArgs(1),
		RunE: withLedger(environ, stderr, eachJob("queued", func(ctx context.Context, l storage.Ledger, k storage.Key) error {
			if err := l.Drop(ctx, k); err != nil {
				return err
			}
			_, err := l.Enqueue(ctx, storage.Job{Key: k, Priority: storage.Demand})
			return err
		})),
	}
	drop := &cobra.Command{
		Use: "drop JOB...", Short: "Take jobs out of the queue", Args: cobra.MinimumNArgs(1),
		RunE: withLedger(environ, stderr, eachJob("dropped", func(ctx context.Context, l storage.Ledger, k storage.Key) error { return l.Drop(ctx, k) })),
	}
	for _, c := range []*cobra.Command{list, retry, drop} {
		config.Flags(c.Flags())
		queue.AddCommand(c)
	}
	list.Flags().IntVar(&limit, "limit", 1000, fmt.Sprintf("jobs to print at most; up to %d", jobsAtMost))
	return queue
}

// withLedger runs f with the ledger of the settings.
func withLedger(environ []string, stderr io.Writer, f func(context.Context, *cobra.Command, storage.Ledger, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) (err error) {
		cfg, err := config.LoadForStore(cmd.Flags(), environ)
		if err != nil {
			return err
		}
		p := newProcess(cfg, newLogger(cfg, stderr))
		defer func() { err = errors.Join(err, p.close()) }()
		if err := p.openStore(cmd.Context()); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), queueTimeout)
		defer cancel()
		return f(ctx, cmd, p.ledger, args)
	}
}

func eachJob(done string, f func(context.Context, storage.Ledger, storage.Key) error) func(context.Context, *cobra.Command, storage.Ledger, []string) error {
	return func(ctx context.Context, cmd *cobra.Command, l storage.Ledger, args []string) error {
		var errs []error
		for _, arg := range args {
			k, err := parseJob(arg)
			if err == nil {
				err = f(ctx, l, k)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", arg, err))
				continue
			}
			fmt.Fprintln(cmd.OutOrStdout(), done, k)
		}
		return errors.Join(errs...)
	}
}

// parseJob is the inverse of storage.Key.String.
func parseJob(s string) (k storage.Key, err error) {
	rest, file, ok := cutLast(s, "#")
	if !ok || !slices.Contains([]storage.File{storage.FileList, storage.FileInfo, storage.FileMod, storage.FileZip}, storage.File(file)) {
		return k, errors.New("not a job such as example.com/m@v1.0.0#zip or example.com/m@#list")
	}
	k.File = storage.File(file)
	if k.Path, k.Query, ok = strings.Cut(rest, "@"); !ok || k.Path == "" {
		return k, errors.New("not a job such as example.com/m@v1.0.0#zip or example.com/m@#list")
	}
	return k, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// printJobs prints the first of jobs, limit at most.
func printJobs(w io.Writer, jobs []storage.Job, limit int, now time.Time) {
	slices.SortFunc(jobs, func(a, b storage.Job) int {
		return cmp.Or(-cmp.Compare(min(a.LastStatus, 1), min(b.LastStatus, 1)), a.Created.Compare(b.Created), cmp.Compare(a.Key.String(), b.Key.String()))
	})
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "JOB\tSTATE\tAGE\tTRIES\tLAST ERROR")
	for _, j := range jobs[:min(limit, len(jobs))] {
		state := "waits"
		switch {
		case j.ParkedErr(now) != nil:
			state = "parked for " + j.NotBefore.Sub(now).Round(time.Second).String()
		case j.Worker != "" && j.LeaseEnds.After(now):
			state = "is done by " + j.Worker
		case j.NotBefore.After(now):
			state = "again in " + j.NotBefore.Sub(now).Round(time.Second).String()
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\n", j.Key, state, now.Sub(j.Created).Round(time.Second), j.Attempts, strings.ReplaceAll(j.LastErr, "\n", " "))
	}
	t.Flush()
}
