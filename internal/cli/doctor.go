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

	"github.com/spf13/cobra"

	"github.com/athensctl/athensctl/config"
	"github.com/athensctl/athensctl/crawler"
	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/fleet"
	"github.com/athensctl/athensctl/internal/tracing"
	"github.com/athensctl/athensctl/proxy"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/blob"
	"github.com/athensctl/athensctl/storage/cosmos"
	"github.com/athensctl/athensctl/storage/memory"
)

// check is one dependency of a role, tried.
type check struct {
	what string
	try  func(context.Context) error
}

const (
	checkTimeout = 20 * time.Second
	// Azure refuses signatures that are 15 minutes off.
	clockMost = 5 * time.Minute
)

func doctorCommand(environ []string) *cobra.Command {
	doctor := &cobra.Command{
		Use:   "doctor",
		Short: "Try everything that the roles of this process depend on, and say what is wrong",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(cmd.Flags(), environ)
			if err != nil {
				return err
			}
			bad := 0
			for _, c := range checks(cfg) {
				ctx, cancel := context.WithTimeout(cmd.Context(), checkTimeout)
				err := c.try(ctx)
				cancel()
				if cmd.Context().Err() != nil {
					return cmd.Context().Err() // nothing is wrong with what was not tried to its end
				}
				if err != nil {
					bad++
					fmt.Fprintf(cmd.OutOrStdout(), "FAIL  %s: %v\n", c.what, err)
				} else {
					fmt.Fprintf(cmd.OutOrStdout(), "ok    %s\n", c.what)
				}
			}
			if bad > 0 {
				return fmt.Errorf("doctor: %d of the checks failed", bad)
			}
			return nil
		},
	}
	config.Flags(doctor.Flags())
	return doctor
}

func checks(cfg *config.Config) (list []check) {
	add := func(what string, try func(context.Context) error) { list = append(list, check{what, try}) }
	if cfg.Has("storage") {
		if cfg.Store == "cosmos" {
			addAzure(cfg, add)
		} else if cfg.Store == "disk" {
			add("data-dir "+cfg.DataDir+" can be written", func(context.Context) error { return writable(cfg.DataDir) })
		}
	} else {
		urls, _ := config.ParseURLs(cfg.StorageURL) // Load has checked it
		for _, u := range urls {
			add("storage at "+goproxy.WithoutUser(u).String(), func(ctx context.Context) error {
				t := fleet.New([]*url.URL{u}, cfg.InternalToken)
				c := &storage.Client{Client: goproxy.Client{Base: t.Base(), HTTP: &http.Client{Transport: t}}}
				_, err := c.Load(ctx, "ready")
				return err
			})
		}
	}
	if spool := filepath.Join(cfg.DataDir, "spool"); cfg.Has("crawler") || cfg.Store == "cosmos" && cfg.Has("storage") {
		add("files that are being made can be written in "+spool, func(context.Context) error { return writable(spool) })
	}
	if cfg.Has("proxy") {
		add("cache-dir "+cfg.CacheDir+" can be written", func(context.Context) error { return writable(cfg.CacheDir) })
		if !cfg.Has("crawler") {
			urls, _ := config.ParseURLs(cfg.CrawlerURL)
			for _, u := range urls {
				add("crawler at "+goproxy.WithoutUser(u).String(), func(ctx context.Context) error { return ready(ctx, u, cfg.InternalToken) })
			}
		}
	}
	if cfg.OTLPEndpoint != "" {
		add("traces are taken at "+cfg.OTLPEndpoint, func(ctx context.Context) error { return tracing.Check(ctx, receiver(cfg)) })
	}
	if cfg.Has("crawler") && cfg.NetworkMode != proxy.Offline {
		for _, u := range proxies(cfg) {
			add("upstream "+goproxy.WithoutUser(u).String(), func(ctx context.Context) error { return answers(ctx, u) })
		}
		addAhead(cfg, add)
		if name := crawler.SumDBName(cfg.SumDB); name != "" {
			add("checksum database "+name, func(ctx context.Context) error {
				db, err := crawler.NewSumDB(cfg.SumDB, http.DefaultClient, proxies(cfg), memory.New(0, nil), cfg.IsPrivate)
				if err != nil {
					return err
				}
				_, err = db.Get(ctx, "/latest")
				return err
			})
		}
		addGit(cfg, add)
	}
	return list
}

// addAhead: the feeds and catalogs that are followed have such a page.
func addAhead(cfg *config.Config, add func(string, func(context.Context) error)) {
	for _, list := range []struct {
		what, page, query string
		urls              []string
	}{{"index feed", "index", "limit=1", cfg.CrawlIndex}, {"catalog", "catalog", "pagesize=1", cfg.CrawlCatalog}} {
		for _, s := range list.urls {
			u, err := url.Parse(s)
			if err != nil || s == "store" { // Load has checked it; storage is tried by itself
				continue
			}
			add(list.what+" "+goproxy.WithoutUser(u).String(), func(ctx context.Context) error {
				page := u.JoinPath(list.page)
				page.RawQuery = list.query
				resp, body, err := get(ctx, page, http.DefaultClient)
				if err == nil && resp.StatusCode != http.StatusOK {
					err = fmt.Errorf("/%s: %s: %s", list.page, resp.Status, body)
				}
				return err
			})
		}
	}
}

// addGit: the settings of git hosts, and a login at those that are reached over SSH.
func addGit(cfg *config.Config, add func(string, func(context.Context) error)) {
	r, err := gitRemote(cfg, nil)
	add("settings of git hosts", func(context.Context) error { return err })
	if err != nil {
		return
	}
	for _, u := range r.Logins() {
		add("git over SSH at "+u.User.Username()+"@"+u.Host, func(ctx context.Context) error {
			// There need not be such a repository: the host has let us in when it says so.
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.JoinPath("athensctl-doctor").String(), io.NopCloser(strings.NewReader("")))
			if err != nil {
				return err
			}
			resp, err := r.HTTP().Do(req)
			if err != nil {
				return err
			}
			return resp.Body.Close()
		})
	}
}

func addAzure(cfg *config.Config, add func(string, func(context.Context) error)) {
	a := azureOf(cfg)
	endpoint := cfg.CosmosEndpoint
	for part := range strings.SplitSeq(cfg.CosmosConnectionString, ";") {
		if v, ok := strings.CutPrefix(strings.TrimSpace(part), "AccountEndpoint="); ok {
			endpoint = v
		}
	}
	if u, err := url.Parse(endpoint); err == nil && endpoint != "" {
		add("Cosmos DB answers at "+endpoint+", and the clock is right", func(ctx context.Context) error { return clock(ctx, u) })
	}
	add("Cosmos DB, database "+cfg.CosmosDatabase+", can be read and written", func(ctx context.Context) error {
		s, err := cosmos.Open(ctx, a.cosmos, cosmos.Options{Patience: 10 * time.Second})
		if err != nil {
			return err
		}
		defer s.Close()
		const key = "doctor"
		have, err := s.Load(ctx, key)
		if err != nil {
			return err
		}
		err = s.CompareAndSwap(ctx, key, have, []byte(time.Now().UTC().Format(time.RFC3339)))
		if errors.Is(err, storage.ErrSwapped) {
			err = nil // another doctor
		}
		return err
	})
	if a.blob != nil {
		add("Blob Storage, container "+cfg.BlobContainer+", can be read and written", func(ctx context.Context) error {
			s, err := blob.Open(ctx, *a.blob)
			if err != nil {
				return err
			}
			name := "doctor/" + fleet.NewID(8)
			return errors.Join(s.Put(ctx, name, strings.NewReader("x"), 1), s.Delete(ctx, name, 1))
		})
	}
}

func writable(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".doctor-")
	if err != nil {
		return err
	}
	_, err = f.WriteString("x")
	return errors.Join(err, f.Sync(), f.Close(), os.Remove(f.Name()))
}

func get(ctx context.Context, u *url.URL, client *http.Client) (*http.Response, string, error) {
	req, err := (&goproxy.Client{Base: u}).NewRequest(ctx, http.MethodGet, "", nil)
	if err != nil {
		return nil, "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
	return resp, strings.TrimSpace(string(body)), nil
}

// ready asks a role whether it is, and then whether it takes the token.
func ready(ctx context.Context, base *url.URL, token string) error {
	client := &http.Client{Transport: fleet.New([]*url.URL{base}, token)}
	for _, path := range []string{"readyz", "version"} {
		resp, body, err := get(ctx, base.JoinPath(path), client)
		if err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("/%s: %s: %s", path, resp.Status, body)
		}
	}
	return nil
}

// answers: any answer that is not an error of the server's own will do; not every
// mirror has a page of its own.
func answers(ctx context.Context, u *url.URL) error {
	resp, body, err := get(ctx, u, http.DefaultClient)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 500 || resp.StatusCode == http.StatusForbidden || resp.StatusCode == http.StatusUnauthorized {
		return fmt.Errorf("%s: %s", resp.Status, body)
	}
	return nil
}

// clock compares this machine's clock with the one of a server.
func clock(ctx context.Context, u *url.URL) error {
	resp, _, err := get(ctx, u, http.DefaultClient)
	if err != nil {
		return err
	}
	then, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return nil // it does not say
	}
	if off := time.Since(then); off.Abs() > clockMost {
		return fmt.Errorf("this machine's clock is off by %v: signatures and tokens are refused", off.Round(time.Second))
	}
	return nil
}
