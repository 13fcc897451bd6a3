package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/mod/module"
	"golang.org/x/term"

	"github.com/athensctl/athensctl/config"
	"github.com/athensctl/athensctl/crawler"
	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/fleet"
	"github.com/athensctl/athensctl/internal/transfer"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/disk"
)

const storeOfSettings = `The store is the one that the settings name: --store and --data-dir, or Azure's; or, with
--storage-url=URL, that of a storage role that runs.`

// transferCommands copy versions, and check them.
func transferCommands(environ []string, stderr io.Writer) []*cobra.Command {
	var parallel int
	var quarantine string
	command := func(use, short, long string, args cobra.PositionalArgs, run func(*cobra.Command, *process, transfer.Options, []string) (*transfer.Result, error)) *cobra.Command {
		cmd := &cobra.Command{Use: use, Short: short, Long: long + "\n\n" + storeOfSettings, Args: args}
		cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
			cfg, err := config.LoadForStore(cmd.Flags(), environ)
			if err != nil {
				return err
			}
			p := newProcess(cfg, newLogger(cfg, stderr))
			if err := p.openStore(cmd.Context()); err != nil {
				return err
			}
			defer func() { err = errors.Join(err, p.close()) }()
			tmp, err := p.tempDir()
			if err != nil {
				return err
			}
			bar := newBar(stderr)
			o := transfer.Options{Parallel: parallel, TempDir: tmp, Progress: bar.show, Failed: func(m module.Version, err error) {
				bar.clear()
				fmt.Fprintf(stderr, "%s: %v\n", m, err)
			}}
			r, err := run(cmd, p, o, args)
			bar.clear()
			if r == nil {
				return err
			}
			damaged, failed := r.Damaged.Load(), r.Failed.Load()
			if cmd.Name() == "verify" {
				fmt.Fprintf(cmd.OutOrStdout(), "%d versions are good, %d are bad, %d could not be checked, %s of zips\n", r.Done.Load(), damaged, failed, size(r.Bytes.Load()))
			} else {
				fmt.Fprintf(cmd.OutOrStdout(), "%d versions, %d were there already, %d failed, %s of zips\n", r.Done.Load(), r.Skipped.Load(), failed, size(r.Bytes.Load()))
			}
			if damaged > 0 {
				err = errors.Join(err, fmt.Errorf("%d versions are bad", damaged))
			}
			if failed > 0 {
				err = errors.Join(err, fmt.Errorf("%d versions failed", failed))
			}
			return err
		}
		config.Flags(cmd.Flags())
		cmd.Flags().IntVar(&parallel, "parallel", 8, "versions at once")
		return cmd
	}
	imports := command("import SOURCE", "Copy modules into the store, from a folder or a running Athens",
		`Copies every version of SOURCE into the store, each checked before it is kept (not against the checksum
database: athensctl verify does that). What is there already is skipped: an import that was cut goes on where it
was. SOURCE is a folder (a data folder of athensctl, a module cache, any GOPROXY file tree) or the URL of something
that answers /catalog (an Athens, a storage role; a user and password may be in it: for a storage role any user, and its
internal token).`,
		cobra.ExactArgs(1), func(cmd *cobra.Command, p *process, o transfer.Options, args []string) (*transfer.Result, error) {
			from, err := transferSource(p.cfg, args[0])
			if err != nil {
				return nil, err
			}
			return transfer.Copy(cmd.Context(), from, p.store, o)
		})
	exports := command("export TARGET", "Copy the store's modules to a folder, or to an external storage of Athens",
		`Copies every version of the store to TARGET, those of which not all files are kept too (through --storage-url
the complete ones alone: a storage role does not name the others). TARGET is a folder, which is then a data folder
of athensctl with a GOPROXY file tree in modules/, or the URL of a storage role or another server of Athens' external storage protocol
(a user and password may be in it: for a storage role any user, and its internal token).`,
		cobra.ExactArgs(1), func(cmd *cobra.Command, p *process, o transfer.Options, args []string) (*transfer.Result, error) {
			to, done, err := transferTarget(p.cfg, args[0])
			if err != nil {
				return nil, err
			}
			var from transfer.Source = transfer.Stored{Store: p.store, Incomplete: true}
			if p.cfg.StorageURL == "" && p.cfg.Store == "disk" {
				if tree, err := transfer.OpenTree(p.cfg.DataDir); err == nil { // with what is not complete; an empty store is none
					from = tree
				}
			}
			r, err := transfer.Copy(cmd.Context(), from, to, o)
			return r, errors.Join(err, done())
		})
	verify := command("verify", "Read the whole store again and check it",
		`Reads every complete version again: the zip's structure, its go.mod file, the hash that was kept with it, and
the hashes of both in the checksum database (not for private modules, and not with --sumdb=off). With --quarantine
the files of a bad version are moved to a folder, and the version is deleted from the store. One that could not be
checked, since the checksum database or the store did not answer, stays.`,
		cobra.NoArgs, func(cmd *cobra.Command, p *process, o transfer.Options, _ []string) (*transfer.Result, error) {
			db, err := crawler.NewSumDB(p.cfg.SumDB, &http.Client{Timeout: p.cfg.UpstreamTimeout}, proxies(p.cfg), p.ledger, p.cfg.IsPrivate)
			if err != nil {
				return nil, err
			}
			if db != nil {
				o.H1 = db.H1
			}
			if quarantine != "" {
				report := o.Failed
				o.Failed = func(m module.Version, err error) {
					if !errors.As(err, &transfer.Damaged{}) {
						// nothing is proved of it: it stays
					} else if e := setAside(cmd.Context(), p.store, m, quarantine); e != nil {
						err = fmt.Errorf("%w; it could not be moved to quarantine: %w", err, e)
					} else {
						err = fmt.Errorf("%w; moved to quarantine", err)
					}
					report(m, err)
				}
			}
			return transfer.Verify(cmd.Context(), p.store, o)
		})
	verify.Flags().StringVar(&quarantine, "quarantine", "", "folder to which bad versions are moved; empty: they stay")
	return []*cobra.Command{imports, exports, verify}
}

// storageAt is the client of a storage role, or an Athens, at a URL. It gets what the URL has
// for a user and password, and never the token of this site: it may be another's.
func storageAt(cfg *config.Config, s string) (*storage.Client, error) {
	urls, err := config.ParseURLs(s)
	if err != nil || len(urls) != 1 {
		return nil, fmt.Errorf("%q is not one http or https URL", s)
	}
	t := fleet.New(urls, "")
	return &storage.Client{Client: goproxy.Client{Base: t.Base(), HTTP: &http.Client{Transport: t}, IdleTimeout: cfg.UpstreamTimeout}}, nil
}

func isURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https")
}

func transferSource(cfg *config.Config, s string) (transfer.Source, error) {
	if !isURL(s) {
		return transfer.OpenTree(s)
	}
	c, err := storageAt(cfg, s)
	return transfer.Stored{Store: c}, err
}

func transferTarget(cfg *config.Config, s string) (to storage.Store, done func() error, err error) {
	if isURL(s) {
		to, err = storageAt(cfg, s)
		return to, func() error { return nil }, err
	}
	if err := os.MkdirAll(s, 0o755); err != nil {
		return nil, nil, err
	}
	d, err := disk.Open(s, disk.Options{})
	if err != nil {
		return nil, nil, err
	}
	return d, d.Close, nil
}

// setAside copies what there is of a version to a folder, and then deletes it. What can't be
// read is what is bad; what can be, and not be written, is a reason not to delete it.
func setAside(ctx context.Context, s storage.Store, m module.Version, dir string) error {
	write := func(f goproxy.File, r io.Reader) error {
		p, err := goproxy.Request{Path: m.Path, Query: m.Version, File: f}.URLPath()
		if err != nil {
			return err
		}
		name := filepath.Join(dir, filepath.FromSlash(p))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		w, err := os.Create(name)
		if err != nil {
			return err
		}
		from := &reader{r: r}
		_, err = io.Copy(w, from)
		if from.err != nil {
			err = nil // as much of it as there is
		}
		return errors.Join(err, w.Sync(), w.Close())
	}
	if info, err := s.Resolve(ctx, m.Path, m.Version); err == nil {
		if err := write(goproxy.FileInfo, strings.NewReader(string(info.JSON()))); err != nil {
			return err
		}
	}
	for f, get := range map[goproxy.File]func(context.Context, module.Version) (*goproxy.Blob, error){goproxy.FileMod: s.Mod, goproxy.FileZip: s.Zip} {
		b, err := get(ctx, m)
		if err != nil {
			continue
		}
		err = write(f, b)
		b.Close()
		if err != nil {
			return err
		}
	}
	return s.Delete(ctx, m)
}

// reader remembers why reading failed.
type reader struct {
	r   io.Reader
	err error
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if err != nil && err != io.EOF {
		r.err = err
	}
	return n, err
}

// bar shows progress: a bar on a terminal, else a line every ten seconds.
type bar struct {
	w    io.Writer
	bar  *progressbar.ProgressBar
	tty  bool
	last time.Time
}

func newBar(w io.Writer) *bar {
	f, ok := w.(*os.File)
	return &bar{w: w, tty: ok && term.IsTerminal(int(f.Fd())), last: time.Now()}
}

func (b *bar) show(r *transfer.Result, count int) {
	n := r.Done.Load() + r.Skipped.Load() + r.Failed.Load()
	if b.tty {
		if b.bar == nil {
			b.bar = progressbar.NewOptions(count, progressbar.OptionSetWriter(b.w), progressbar.OptionShowCount(), progressbar.OptionSetDescription("versions"),
				progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish())
		}
		b.bar.Set64(n)
		return
	}
	if time.Since(b.last) < 10*time.Second {
		return
	}
	b.last = time.Now()
	of := ""
	if count >= 0 {
		of = fmt.Sprintf(" of %d", count)
	}
	fmt.Fprintf(b.w, "%d%s versions, %s of zips\n", n, of, size(r.Bytes.Load()))
}

func (b *bar) clear() {
	if b.bar != nil {
		b.bar.Clear()
	}
}

func size(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }
