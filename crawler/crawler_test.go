package crawler

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/fleet"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/memory"
)

// options are those of a crawler with an upstream, as big as the defaults.
func options(u goproxy.Source) Options {
	return Options{
		Name: "c", Origins: []Origin{{Name: "test", Source: u}}, Freshness: time.Minute, Workers: 64, ZipWorkers: 8,
		InflightBytes: 1 << 30, Lease: 15 * time.Second, Attempts: 5, ModuleOf: bare, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
}

// bare is a URL without its scheme.
func bare(url string) string { return strings.TrimPrefix(url, "https://") }

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
	if !goproxy.IsCanonical(path, query) {
		return goproxy.ParseInfo(path, query, infoOf("v1.0.0"))
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

// An answer is as old as its question, and is what was waited for however long it took.
func TestSlowAnswerIsOld(t *testing.T) {
	o := options(source{
		list: func(ctx context.Context, _ string) ([]string, error) {
			return []string{"v1.0.0"}, pause(ctx, 40*time.Second)
		},
		resolve: func(ctx context.Context, _, query string) error { return pause(ctx, 40*time.Second) },
	})
	o.Freshness = 10 * time.Second
	s := memory.New(0, nil)
	inBubble(t, s, o, func(t *testing.T, c *Crawler) {
		for range 2 {
			began := time.Now()
			l, err := c.List(t.Context(), "example.com/m")
			if err != nil || !l.Checked.Equal(began) || time.Since(began) != 40*time.Second {
				t.Errorf("%+v, %v after %v", l, err, time.Since(began))
			}
			began = time.Now()
			info, err := c.Resolve(t.Context(), "example.com/m", "main")
			if err != nil || !info.Checked.Equal(began) || time.Since(began) != 40*time.Second {
				t.Errorf("a branch: %+v, %v after %v", info, err, time.Since(began))
			}
		}
	})
}

// extending is a ledger that does with the extension of a lease what it is told.
type extending struct {
	*memory.Store
	extend func(ctx context.Context, j *storage.Job) error
}

func (l *extending) Extend(ctx context.Context, j *storage.Job, lease time.Duration) error {
	if err := l.extend(ctx, j); err != nil {
		return err
	}
	return l.Store.Extend(ctx, j, lease)
}

// A worker whose lease is lost stops, and does not write what it was told.
func TestLeaseLost(t *testing.T) {
	s := &extending{Store: memory.New(0, nil), extend: func(context.Context, *storage.Job) error { return storage.ErrLeaseLost }}
	o := options(source{list: func(ctx context.Context, _ string) ([]string, error) {
		time.Sleep(20 * time.Second) // whatever ctx says
		return []string{"v1.0.0"}, nil
	}})
	inBubble(t, s, o, func(t *testing.T, c *Crawler) {
		_, err := c.List(t.Context(), "example.com/m")
		if known, kerr := s.Known(t.Context(), storage.Key{Path: "example.com/m", File: storage.FileList}); err == nil || known != nil {
			t.Errorf("%v; known %+v, %v", err, known, kerr)
		}
	})
}

// The .info that a zip's worker fetches with it is given back where the zip's lease is lost,
// and its job says that.
func TestLeaseLostOfZip(t *testing.T) {
	s := &extending{Store: memory.New(0, nil), extend: func(_ context.Context, j *storage.Job) error {
		if j.Key.File == storage.FileZip {
			return storage.ErrLeaseLost
		}
		return nil
	}}
	asked := 0
	o := options(source{
		zip: func(context.Context, module.Version) error { return nil },
		resolve: func(ctx context.Context, _, _ string) error {
			if asked++; asked == 1 {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		},
	})
	inBubble(t, s, o, func(t *testing.T, c *Crawler) {
		m := module.Version{Path: "example.com/m", Version: "v1.0.0"}
		if b, err := c.Zip(t.Context(), m); err != nil {
			t.Error(err)
		} else {
			b.Close()
		}
		var why []string
		for range 100 {
			jobs, err := s.Jobs(t.Context(), 10)
			if err != nil {
				t.Fatal(err)
			}
			for _, j := range jobs {
				if j.Key.File == storage.FileInfo && j.LastErr != "" {
					why = append(why, j.LastErr)
				}
			}
			time.Sleep(100 * time.Millisecond)
		}
		if len(why) == 0 || !strings.Contains(why[0], "its zip's job is over: lease lost") {
			t.Errorf("its job says %q", why)
		}
		if _, err := s.Resolve(t.Context(), m.Path, m.Version); err != nil || asked != 2 {
			t.Errorf("asked %d times: %v", asked, err)
		}
	})
}

// A storage process that is gone without a word costs a heartbeat, not the lease: another
// answers the next.
func TestHeartbeatHangs(t *testing.T) {
	calls, asked := 0, 0
	s := &extending{Store: memory.New(0, nil), extend: func(ctx context.Context, _ *storage.Job) error {
		if calls++; calls%2 == 1 {
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}}
	o := options(source{list: func(ctx context.Context, _ string) ([]string, error) {
		asked++
		return []string{"v1.0.0"}, pause(ctx, time.Minute)
	}})
	inBubble(t, s, o, func(t *testing.T, c *Crawler) {
		o.Name = "another"
		another := New(s, s, o)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { another.Run(ctx) })
		if _, err := c.List(t.Context(), "example.com/m"); err != nil || asked != 1 {
			t.Errorf("upstream was asked %d times: %v", asked, err)
		}
		cancel()
		wg.Wait()
	})
}

// silent is a ledger that answers nothing.
type silent struct{ *memory.Store }

func (silent) Known(ctx context.Context, _ storage.Key) (*storage.Known, error) {
	<-ctx.Done()
	return nil, fmt.Errorf("storage: %w", ctx.Err())
}

func (silent) Start(ctx context.Context, _ storage.Job, _ string, _ time.Duration) (*storage.Job, error) {
	<-ctx.Done()
	return nil, fmt.Errorf("storage: %w", ctx.Err())
}

func (silent) Put(ctx context.Context, _ module.Version, _ storage.Files) error {
	<-ctx.Done()
	return fmt.Errorf("storage: %w", ctx.Err())
}

// Storage that does not answer is waited for, for a time.
func TestSilentStorage(t *testing.T) {
	s := silent{memory.New(0, nil)}
	inBubble(t, s, options(source{}), func(t *testing.T, c *Crawler) {
		m := module.Version{Path: "example.com/m", Version: "v1.0.0"}
		for what, tc := range map[string]struct {
			most time.Duration
			f    func() error
		}{
			"known": {ledgerTimeout, func() error { _, err := c.List(t.Context(), m.Path); return err }},
			"in the background": {ledgerTimeoutAhead, func() error {
				_, err := c.ledger.Known(fleet.WithBackground(t.Context()), storage.Key{})
				return err
			}},
			"start": {ledgerTimeout, func() error {
				return c.fetched(t.Context(), storage.Key{Path: m.Path, Query: m.Version, File: storage.FileMod})
			}},
			"put":        {time.Minute, func() error { return c.put(t.Context(), m, storage.Files{Mod: modOf(m.Path)}, 10) }},
			"put a zip":  {5 * time.Minute, func() error { return c.put(t.Context(), m, storage.Files{}, 60<<20) }},
			"put, ahead": {5 * time.Minute, func() error { return c.put(fleet.WithBackground(t.Context()), m, storage.Files{}, 10) }},
		} {
			began := time.Now()
			if err := tc.f(); goproxy.Status(err) != 503 || retryAfter(err) == 0 || time.Since(began) != tc.most {
				t.Errorf("%s: %d after %v: %v", what, goproxy.Status(err), time.Since(began), err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.ledger.Known(ctx, storage.Key{}); goproxy.Status(err) != 504 {
			t.Errorf("the caller's own time is over: %v", err)
		}
	})
}

// puts notes what is put.
type puts struct {
	*memory.Store
	list []storage.Files
}

func (p *puts) Put(ctx context.Context, m module.Version, f storage.Files) error {
	p.list = append(p.list, f)
	return p.Store.Put(ctx, m, f)
}

// A zip that is found kept, with its .info, may have been kept by a Put that was cut
// before the version was listed: it is put again, so that it is.
func TestKeptIsListed(t *testing.T) {
	s := &puts{Store: memory.New(0, nil)}
	u := newUpstream()
	m := module.Version{Path: "example.com/m", Version: "v1.0.0"}
	u.add(m.Path, m.Version)
	inBubble(t, s, options(u), func(t *testing.T, c *Crawler) {
		k := storage.Key{Path: m.Path, Query: m.Version, File: storage.FileZip}
		for _, want := range []int{2, 3} { // the zip and .info; .info again
			if _, err := s.Enqueue(t.Context(), storage.Job{Key: k}); err != nil {
				t.Fatal(err)
			}
			c.wakeWorker()
			if err := s.Wait(t.Context(), k); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if last := s.list[len(s.list)-1]; len(s.list) != want || last.Info == nil || last.Zip != nil || u.count(m.String()+".zip") != 1 || u.count(m.String()+".info") != 1 {
				t.Errorf("%d puts, the last %+v; the zip was fetched %d times", len(s.list), last, u.count(m.String()+".zip"))
			}
		}
	})
}
