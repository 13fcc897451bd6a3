package cli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
	"golang.org/x/sync/errgroup"

	"github.com/athensctl/athensctl/config"
	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/transfer"
	"github.com/athensctl/athensctl/storage"
)

// seed is what is to be there of one version.
type seed struct {
	zip   bool
	zipH1 string // from a go.sum file; "": not known
	modH1 string
}

type seeds map[module.Version]seed

func (s seeds) add(m module.Version, more seed) {
	have := s[m]
	have.zip = have.zip || more.zip
	if more.zipH1 != "" {
		have.zipH1 = more.zipH1
	}
	if more.modH1 != "" {
		have.modH1 = more.modH1
	}
	s[m] = have
}

// read adds what a file names, by its name: go.mod, go.sum, go.work, else a list with
// a module a line.
func (s seeds) read(name string) error {
	data, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	switch base := filepath.Base(name); {
	case base == "go.work":
		work, err := modfile.ParseWork(name, data, nil)
		if err != nil {
			return err
		}
		var mods []*modfile.File
		for _, use := range work.Use {
			dir := filepath.FromSlash(use.Path)
			if !filepath.IsAbs(dir) {
				dir = filepath.Join(filepath.Dir(name), dir)
			}
			file := filepath.Join(dir, "go.mod")
			data, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			mod, err := parseMod(file, data)
			if err != nil {
				return err
			}
			mods = append(mods, mod)
		}
		s.mods(work.Replace, mods...)
		return nil
	case strings.HasSuffix(base, ".mod"):
		mod, err := parseMod(name, data)
		if err != nil {
			return err
		}
		s.mods(nil, mod)
		return nil
	}
	sum := strings.HasSuffix(name, ".sum")
	lines := bufio.NewScanner(bytes.NewReader(data))
	for n := 1; lines.Scan(); n++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		f := strings.Fields(text)
		if len(f) == 0 {
			continue
		}
		if err := s.line(f, sum); err != nil {
			return fmt.Errorf("%s:%d: %w", name, n, err)
		}
	}
	return lines.Err()
}

// parseMod reads a go.mod file. Of one with a later Go's directive it reads no replace
// directives.
func parseMod(name string, data []byte) (*modfile.File, error) {
	mod, err := modfile.Parse(name, data, nil)
	if err == nil {
		return mod, nil
	}
	if mod, lax := modfile.ParseLax(name, data, nil); lax == nil {
		return mod, nil
	}
	return nil, err
}

// mods adds what go.mod files require that are used together, and what replaces it. What one
// of them replaces is replaced for all; a replacement of the go.work file, work, goes before
// theirs, of one version or of all. Of a module of the workspace that another requires the go
// command asks for the go.mod file alone.
// Sources: https://go.dev/ref/mod#go-work-file-replace, replacementFrom in
// cmd/go/internal/modload.
func (s seeds) mods(work []*modfile.Replace, mods ...*modfile.File) {
	replaced := map[module.Version]bool{} // without a version: all
	is := func(m module.Version) bool { return replaced[m] || replaced[module.Version{Path: m.Path}] }
	for _, r := range work {
		replaced[r.Old] = true
	}
	all := slices.Clone(work)
	own := map[string]bool{}
	for _, mod := range mods {
		for _, r := range mod.Replace {
			if !is(r.Old) {
				all = append(all, r)
			}
		}
		if mod.Module != nil {
			own[mod.Module.Mod.Path] = true
		}
	}
	for _, r := range all {
		replaced[r.Old] = true
		if r.New.Version != "" {
			s.add(r.New, seed{zip: !own[r.Old.Path]})
		}
	}
	for _, mod := range mods {
		for _, r := range mod.Require {
			if !is(r.Mod) {
				s.add(r.Mod, seed{zip: !own[r.Mod.Path]})
			}
		}
	}
}

func (s seeds) line(f []string, sum bool) error {
	if sum {
		if len(f) != 3 || !strings.HasPrefix(f[2], "h1:") {
			return errors.New("not a line of a go.sum file")
		}
		if v, ok := strings.CutSuffix(f[1], "/go.mod"); ok {
			s.add(module.Version{Path: f[0], Version: v}, seed{modH1: f[2]})
		} else {
			s.add(module.Version{Path: f[0], Version: f[1]}, seed{zip: true, zipH1: f[2]})
		}
		return nil
	}
	if len(f) > 2 {
		return fmt.Errorf("%q is not a module path and a version", strings.Join(f, " "))
	}
	path, query, _ := strings.Cut(f[0], "@")
	if len(f) == 2 {
		query = f[1]
	}
	if query == "" {
		query = goproxy.Latest
	}
	if err := module.CheckPath(path); err != nil {
		return err
	}
	s.add(module.Version{Path: path, Version: query}, seed{zip: true})
	return nil
}

func warmCommand(environ []string, stderr io.Writer) *cobra.Command {
	var server string
	var parallel int
	warm := &cobra.Command{
		Use:   "warm FILE|MODULE@VERSION...",
		Short: "Bring modules in before anybody asks for them",
		Long: `Fetches what the files name, and keeps it: go.mod and go.work files (what they require, or what
replaces it), go.sum files (the very files that are in them, whose hashes are compared), or lists with a module a line
(path, path@version, or path and version; latest where there is none). Modules can be named on the command line too.

With --server it asks a server that runs, as the go command would, with the header that the setting require-header
names, if any; without, it fetches by itself into the store that the settings name, or with --storage-url that of a
storage role that runs.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			cfg, err := config.LoadForStore(cmd.Flags(), environ)
			if err != nil {
				return err
			}
			all := seeds{}
			for _, arg := range args {
				if _, statErr := os.Stat(arg); statErr != nil && strings.Contains(arg, "@") {
					err = all.line([]string{arg}, false)
				} else {
					err = all.read(arg)
				}
				if err != nil {
					return err
				}
			}
			src, done, err := warmSource(cmd.Context(), cfg, server, stderr)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, done()) }()
			bar := newBar(stderr)
			r := warmAll(cmd.Context(), src, all, parallel, bar, stderr)
			bar.clear()
			fmt.Fprintf(cmd.OutOrStdout(), "%d versions, %d failed, %s of zips\n", r.Done.Load(), r.Failed.Load(), size(r.Bytes.Load()))
			err = cmd.Context().Err()
			if n := r.Failed.Load(); n > 0 {
				err = errors.Join(err, fmt.Errorf("%d versions failed", n))
			}
			return err
		},
	}
	config.Flags(warm.Flags())
	warm.Flags().StringVar(&server, "server", "", "URL of a server to warm, as in GOPROXY; empty: the store of the settings")
	warm.Flags().IntVar(&parallel, "parallel", 16, "versions at once")
	return warm
}

// unlocking sends header, NAME=VALUE, to host and no other: what a proxy behind a CDN
// asks for. "": none.
type unlocking struct{ host, header string }

func (u unlocking) RoundTrip(req *http.Request) (*http.Response, error) {
	if name, value, ok := strings.Cut(u.header, "="); ok && req.URL.Host == u.host {
		req = req.Clone(req.Context())
		req.Header.Set(name, value)
	}
	return http.DefaultTransport.RoundTrip(req)
}

// warmSource is the server, or a crawler in this process.
func warmSource(ctx context.Context, cfg *config.Config, server string, stderr io.Writer) (src goproxy.Source, done func() error, err error) {
	if server != "" {
		urls, err := config.ParseURLs(server)
		if err != nil || len(urls) != 1 {
			return nil, nil, fmt.Errorf("server: %q is not one http or https URL", server)
		}
		client := &http.Client{Transport: unlocking{urls[0].Host, cfg.RequireHeader}}
		return &goproxy.Client{Base: urls[0], HTTP: client, IdleTimeout: cfg.UpstreamTimeout}, func() error { return nil }, nil
	}
	if !cfg.Has("crawler") {
		return nil, nil, fmt.Errorf("role %s: warm needs a crawler, or --server", cfg.Role)
	}
	p := newProcess(cfg, newLogger(cfg, stderr))
	p.silent = true
	if err = errors.Join(p.openStore(ctx), p.addCrawler()); err == nil && p.crawler == nil {
		err = errors.New("network-mode offline: nothing can be fetched")
	}
	if err != nil {
		return nil, nil, errors.Join(err, p.close())
	}
	workCtx, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for _, w := range p.work {
		wg.Go(func() { w(workCtx) })
	}
	return p.crawler, func() error {
		stop()
		wg.Wait()
		return p.close()
	}, nil
}

// warmAll asks for all seeds. One that fails is reported, and the others go on.
func warmAll(ctx context.Context, src goproxy.Source, all seeds, parallel int, bar *bar, stderr io.Writer) *transfer.Result {
	r := new(transfer.Result)
	var g errgroup.Group
	g.SetLimit(max(1, parallel))
	var mu sync.Mutex
	order := slices.SortedFunc(maps.Keys(all), func(a, b module.Version) int { return strings.Compare(a.String(), b.String()) })
	for _, m := range order {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error {
			n, err := warmOne(ctx, src, m, all[m])
			r.Bytes.Add(n)
			mu.Lock()
			defer mu.Unlock()
			if err != nil && ctx.Err() != nil {
				return nil // it has not failed: it was left
			}
			if err != nil {
				r.Failed.Add(1)
				bar.clear()
				fmt.Fprintf(stderr, "%s: %v\n", m, err)
			} else {
				r.Done.Add(1)
			}
			bar.show(r, len(order))
			return nil
		})
	}
	g.Wait()
	return r
}

// warmAttempts is how often a server is asked that says to come again.
const warmAttempts = 10

// warmUnreached is how often one is asked that can't be reached, or does not reach what it
// needs (502): on Kubernetes a Service may lead nowhere for a second after its pods are ready.
const warmUnreached = 4

// warmOne brings one version in. A server that is busy, or still fetching, is asked again.
func warmOne(ctx context.Context, src goproxy.Source, m module.Version, want seed) (n int64, err error) {
	for try := range warmAttempts {
		if n, err = warmOnce(ctx, src, m, want); err == nil {
			return n, nil
		}
		pause := time.Second << min(try, 4)
		switch goproxy.Status(err) {
		case http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		case http.StatusBadGateway:
			if try+1 >= warmUnreached {
				return n, err
			}
		default:
			return n, err
		}
		var e *goproxy.Error
		if errors.As(err, &e) && e.RetryAfter > 0 {
			pause = min(e.RetryAfter, time.Minute)
		}
		select {
		case <-ctx.Done():
			return n, ctx.Err()
		case <-time.After(pause):
		}
	}
	return n, err
}

func warmOnce(ctx context.Context, src goproxy.Source, m module.Version, want seed) (int64, error) {
	if want.zip || !goproxy.IsCanonical(m.Path, m.Version) {
		info, err := src.Resolve(ctx, m.Path, m.Version)
		if err != nil {
			return 0, err
		}
		m.Version = info.Version
	}
	b, err := src.Mod(ctx, m)
	if err != nil {
		return 0, err
	}
	mod, err := b.ReadAll(goproxy.MaxModBytes)
	if err != nil {
		return 0, err
	}
	if h1, err := goproxy.ModH1(mod); err != nil || want.modH1 != "" && h1 != want.modH1 {
		return 0, errors.Join(err, fmt.Errorf("go.mod has %s, go.sum says %s", h1, want.modH1))
	}
	if !want.zip {
		return 0, nil
	}
	if b, err = src.Zip(ctx, m); err != nil {
		return 0, err
	}
	defer b.Close()
	tmp, err := os.CreateTemp("", "athensctl-warm-")
	if err != nil {
		return 0, storage.FullDisk(err)
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	n, err := io.Copy(tmp, io.LimitReader(b, goproxy.MaxZipBytes+1))
	if err != nil {
		return n, err
	}
	h1, _, err := storage.CheckZip(m, tmp.Name())
	if err == nil && want.zipH1 != "" && h1 != want.zipH1 {
		err = fmt.Errorf("the zip has %s, go.sum says %s", h1, want.zipH1)
	}
	return n, err
}
