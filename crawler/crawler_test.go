package crawler

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/memory"
)

// options are those of a crawler with an upstream, as big as the defaults.
func options(u goproxy.Source) Options {
	return Options{
		Name: "c", Origins: []Origin{{Name: "test", Source: u}}, Freshness: time.Minute, Workers: 64, ZipWorkers: 8,
		InflightBytes: 1 << 30, Lease: 15 * time.Second, Attempts: 5, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
}

// inBubble calls f in virtual time with a crawler that works until f returns.
func inBubble(t *testing.T, s interface {
	storage.Store
	storage.Ledger
}, o Options, f func(*testing.T, *Crawler)) {
	o.TempDir = t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := New(s, s, o)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { c.Run(ctx) })
		synctest.Wait()
		f(t, c)
		cancel()
		wg.Wait()
	})
}

// runCrawler has it work until stop is called.
func runCrawler(c *Crawler) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { c.Run(ctx); close(done) }()
	return sync.OnceFunc(func() { cancel(); <-done })
}

// source answers as its functions do; what has none is not there.
type source struct {
	list    func(ctx context.Context, path string) ([]string, error)
	resolve func(ctx context.Context, path, query string) error
	mod     func(ctx context.Context, m module.Version) error
	zip     func(ctx context.Context, m module.Version) error
}

func (s source) List(ctx context.Context, path string) (*goproxy.VersionList, error) {
	if s.list == nil {
		return nil, goproxy.NotFound("%s", path)
	}
	versions, err := s.list(ctx, path)
	if err != nil {
		return nil, err
	}
	return goproxy.NewVersionList(path, versions, time.Now()), nil
}

func (s source) Resolve(ctx context.Context, path, query string) (*goproxy.Info, error) {
	if s.resolve == nil {
		return nil, goproxy.NotFound("%s@%s", path, query)
	}
	if err := s.resolve(ctx, path, query); err != nil {
		return nil, err
	}
	return goproxy.ParseInfo(path, query, infoOf(query))
}

func (s source) Mod(ctx context.Context, m module.Version) (*goproxy.Blob, error) {
	if s.mod == nil {
		return nil, goproxy.NotFound("%s", m)
	}
	if err := s.mod(ctx, m); err != nil {
		return nil, err
	}
	return goproxy.NewBlob(modOf(m.Path), time.Time{}), nil
}

func (s source) Zip(ctx context.Context, m module.Version) (*goproxy.Blob, error) {
	if s.zip == nil {
		return nil, goproxy.NotFound("%s", m)
	}
	if err := s.zip(ctx, m); err != nil {
		return nil, err
	}
	return goproxy.NewBlob(zipOf(m), time.Time{}), nil
}

// A fetch that panics ends with an error, its job is parked, and the crawler goes on.
func TestPanic(t *testing.T) {
	var log strings.Builder
	o := options(source{
		list: func(_ context.Context, path string) ([]string, error) {
			if path == "evil.example/m" {
				panic("index out of range")
			}
			return []string{"v1.0.0"}, nil
		},
		mod: func(context.Context, module.Version) error { return nil },
	})
	o.Log = slog.New(slog.NewTextHandler(&log, nil))
	o.Verifier = verifierFunc(func() (string, error) { panic("a verifier's") })
	s := memory.New(0, nil)
	inBubble(t, s, o, func(t *testing.T, c *Crawler) {
		for range 2 {
			if _, err := c.List(t.Context(), "evil.example/m"); goproxy.Status(err) != 500 || !strings.Contains(err.Error(), "index out of range") {
				t.Errorf("the list: %d %v", goproxy.Status(err), err)
			}
		}
		if _, err := c.Mod(t.Context(), module.Version{Path: "example.com/m", Version: "v1.0.0"}); goproxy.Status(err) != 500 || !strings.Contains(err.Error(), "a verifier's") {
			t.Errorf("the go.mod file: %d %v", goproxy.Status(err), err)
		}
		jobs, err := s.Jobs(t.Context(), 10)
		if err != nil || len(jobs) != 2 || !jobs[0].Parked || !jobs[1].Parked || jobs[0].Attempts != 1 {
			t.Errorf("jobs %+v, %v", jobs, err)
		}
		if l, err := c.List(t.Context(), "example.com/m"); err != nil || len(l.Versions) != 1 {
			t.Errorf("another list: %v, %v", l, err)
		}
	})
	if text := log.String(); strings.Count(text, "a bug in athensctl") < 2 || !strings.Contains(text, "crawler_test.go") {
		t.Errorf("the log has no stack: %s", text)
	}
}

type verifierFunc func() (string, error)

func (f verifierFunc) H1(context.Context, string, string) (string, error) { return f() }

// An upstream that never answers takes a worker for some minutes, not for ever: with every
// worker taken, and every client gone, the crawler is back by itself.
func TestUpstreamHangs(t *testing.T) {
	hang := func(ctx context.Context, host string) error {
		if !strings.HasPrefix(host, "hangs") {
			return nil
		}
		<-ctx.Done()
		return ctx.Err()
	}
	o := options(source{
		list:    func(ctx context.Context, path string) ([]string, error) { return []string{"v1.0.0"}, hang(ctx, path) },
		resolve: func(ctx context.Context, path, _ string) error { return hang(ctx, path) },
		mod:     func(ctx context.Context, m module.Version) error { return hang(ctx, m.Path) },
		zip:     func(ctx context.Context, m module.Version) error { return hang(ctx, m.Path) },
	})
	o.Attempts = 1
	s := memory.New(20_000, nil)
	inBubble(t, s, o, func(t *testing.T, c *Crawler) {
		for _, tc := range []struct {
			most time.Duration
			f    func(m module.Version) error
		}{
			{2 * time.Minute, func(m module.Version) error { _, err := c.List(t.Context(), m.Path); return err }},
			{5 * time.Minute, func(m module.Version) error { _, err := c.Mod(t.Context(), m); return err }},
			{5 * time.Minute, func(m module.Version) error { _, err := c.Resolve(t.Context(), m.Path, m.Version); return err }},
			{30 * time.Minute, func(m module.Version) error { _, err := c.Zip(t.Context(), m); return err }},
		} {
			began := time.Now()
			if err := tc.f(module.Version{Path: "hangs.example/m", Version: "v1.0.0"}); goproxy.Status(err) != 504 || !strings.Contains(err.Error(), "given up after "+tc.most.String()) || time.Since(began) != tc.most {
				t.Errorf("after %v: %d %v", time.Since(began), goproxy.Status(err), err)
			}
			jobs, err := s.Jobs(t.Context(), 10)
			if err != nil || len(jobs) != 1 || !jobs[0].Parked || jobs[0].Attempts != 1 {
				t.Errorf("jobs %+v, %v", jobs, err)
			}
			for _, j := range jobs {
				s.Drop(t.Context(), j.Key)
			}
		}
	})

	o.Workers, o.ZipWorkers = 2, 1
	s = memory.New(20_000, nil)
	inBubble(t, s, o, func(t *testing.T, c *Crawler) {
		var wg sync.WaitGroup
		for _, host := range []string{"hangs1.example", "hangs2.example", "hangs3.example"} {
			asks(t.Context(), &wg, 1, func(ctx context.Context, i int) { c.List(ctx, host+"/m") })
		}
		wg.Wait()
		one, stop := context.WithTimeout(t.Context(), 50*time.Second)
		defer stop()
		if _, err := c.List(one, "example.com/m"); err == nil {
			t.Error("no worker is taken")
		}
		time.Sleep(10 * time.Minute)
		promptly(t, "later a list", func() error { _, err := c.List(t.Context(), "example.com/m2"); return err })
	})
}
