package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/memory"
)

// fetcher is a crawler: it answers lists, and zips of which storage gets nothing.
type fetcher struct {
	goproxy.Source
	ledger storage.Ledger

	mu       sync.Mutex
	versions []string
	err      error
	takes    time.Duration
	asked    int
}

func (f *fetcher) set(err error, takes time.Duration, versions ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err, f.takes, f.versions = err, takes, versions
}

func (f *fetcher) List(ctx context.Context, path string) (*goproxy.VersionList, error) {
	f.mu.Lock()
	f.asked++
	err, takes, versions := f.err, f.takes, f.versions
	f.mu.Unlock()
	select {
	case <-time.After(takes):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	now := time.Now()
	f.ledger.SetKnown(ctx, storage.Key{Path: path, File: storage.FileList}, &storage.Known{Checked: now, Versions: versions})
	return goproxy.NewVersionList(path, versions, now), nil
}

func (f *fetcher) Resolve(ctx context.Context, path, query string) (*goproxy.Info, error) {
	if _, err := f.List(ctx, path); err != nil {
		return nil, err
	}
	return nil, goproxy.NotFound("%s@%s", path, query)
}

func (f *fetcher) Mod(ctx context.Context, m module.Version) (*goproxy.Blob, error) {
	if _, err := f.List(ctx, m.Path); err != nil {
		return nil, err
	}
	return goproxy.NewBlob([]byte("module "+m.Path+"\n"), time.Now()), nil
}

type bed struct {
	*Proxy
	t     *testing.T
	up    *fetcher
	store *memory.Store
}

const modPath = "example.com/m"

func newBed(t *testing.T, mode string) *bed {
	store := memory.New(0, nil)
	up := &fetcher{ledger: store, versions: []string{"v1.0.0"}}
	p, err := New(store, store, up, Options{
		Mode: mode, Freshness: time.Minute, ListMaxStale: time.Hour, ListWait: 2 * time.Second, FetchTimeout: 50 * time.Second,
		FetchTimeoutStatus: 504, MaxWaiting: 20, CacheDir: t.TempDir(), CacheBytes: 1 << 20, MemoryBytes: 1 << 20,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return &bed{p, t, up, store}
}

// want asks for the list and compares: the versions ("!404" for an error with that
// status), whether it is stale, how long it took, and how often upstream was asked.
func (b *bed) want(what, versions string, stale bool, takes time.Duration, asked int) {
	b.t.Helper()
	b.up.mu.Lock()
	b.up.asked = 0
	b.up.mu.Unlock()
	start := time.Now()
	l, err := b.List(b.t.Context(), modPath)
	took := time.Since(start)
	synctest.Wait() // what goes on behind, until it waits for time
	got, gotStale := "", false
	if err != nil {
		got = "!" + http.StatusText(goproxy.Status(err))
	} else {
		got, gotStale = strings.Join(l.Versions, " "), l.Stale
	}
	b.up.mu.Lock()
	n := b.up.asked
	b.up.mu.Unlock()
	if got != versions || gotStale != stale || took != takes || n != asked {
		b.t.Errorf("%s: %q (%v), stale %v, after %v, asked %d; want %q, stale %v, after %v, asked %d", what, got, err, gotStale, took, n, versions, stale, takes, asked)
	}
}

func TestFreshness(t *testing.T) {
	for _, mode := range []string{Strict, Fallback} {
		synctest.Test(t, func(t *testing.T) {
			b := newBed(t, mode)
			b.up.set(nil, 3*time.Second, "v1.0.0")
			b.want("the first sight waits", "v1.0.0", false, 3*time.Second, 1)
			b.up.set(nil, 3*time.Second, "v1.0.0", "v1.1.0")
			time.Sleep(59 * time.Second)
			b.want("fresh", "v1.0.0", false, 0, 0)
			time.Sleep(2 * time.Second)
			b.want("a little old: served, and refreshed behind", "v1.0.0", false, 0, 1)
			b.want("while that goes on", "v1.0.0", false, 0, 0)
			time.Sleep(4 * time.Second)
			b.want("after it", "v1.0.0 v1.1.0", false, 0, 0)
			time.Sleep(2 * time.Hour)
			b.up.set(nil, time.Second, "v1.2.0")
			b.want("too old: waits for the refresh", "v1.2.0", false, time.Second, 1)
			time.Sleep(2 * time.Hour)
			b.up.set(nil, 10*time.Second, "v1.3.0")
			if mode == Strict {
				b.want("too old, a slow refresh", "v1.3.0", false, 10*time.Second, 1)
				time.Sleep(2 * time.Hour)
				b.up.set(goproxy.Errorf(502, "down"), 0)
				b.want("too old, upstream down", "!Bad Gateway", false, 0, 1)
				return
			}
			b.want("too old, a slow refresh", "v1.2.0", true, 2*time.Second, 1)
			time.Sleep(9 * time.Second)
			b.want("it went on behind", "v1.3.0", false, 0, 0)
			time.Sleep(2 * time.Hour)
			b.up.set(goproxy.Errorf(502, "down"), 0)
			b.want("too old, upstream down", "v1.3.0", true, 0, 1)
			b.up.set(goproxy.NotFound("gone"), 0)
			b.want("upstream says that it is gone", "!Not Found", false, 0, 1)
			b.want("which is remembered", "!Not Found", false, 0, 0)
			b.up.set(nil, 0, "v2.0.0+incompatible")
			time.Sleep(time.Minute)
			b.want("for a minute", "v2.0.0+incompatible", false, 0, 1)
		})
	}
}

// What another proxy had refreshed is served without a question.
func TestFreshnessOfTheFleet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, Fallback)
		b.want("the first sight", "v1.0.0", false, 0, 1)
		time.Sleep(2 * time.Minute)
		k := storage.Key{Path: modPath, File: storage.FileList}
		if err := b.store.SetKnown(t.Context(), k, &storage.Known{Checked: time.Now(), Versions: []string{"v1.5.0"}}); err != nil {
			t.Fatal(err)
		}
		b.want("the ledger has a newer one", "v1.5.0", false, 0, 0)
	})
}

// A list that is outdated, since a push or a feed named a version that it lacks, is served
// as what it is while the new one is fetched, however that goes.
func TestOutdated(t *testing.T) {
	for _, mode := range []string{Strict, Fallback} {
		synctest.Test(t, func(t *testing.T) {
			b := newBed(t, mode)
			b.Proxy.metrics = newMetrics(prometheus.NewRegistry())
			b.Proxy.o.ListRemember = time.Second
			k := storage.Key{Path: modPath, File: storage.FileList}
			outdate := func() {
				known, err := b.store.Known(t.Context(), k)
				if err != nil {
					t.Fatal(err)
				}
				known.Outdated = true
				if err := b.store.SetKnown(t.Context(), k, known); err != nil {
					t.Fatal(err)
				}
			}
			b.want("the first sight", "v1.0.0", false, 0, 1)
			time.Sleep(2 * time.Second)
			outdate()
			b.up.set(goproxy.Errorf(502, "down"), 0)
			b.want("upstream fails", "v1.0.0", false, 0, 1)
			b.want("and fails", "v1.0.0", false, 0, 1)
			b.up.set(nil, 10*time.Second, "v1.0.0", "v1.1.0")
			b.want("upstream is slow", "v1.0.0", false, 0, 1)
			time.Sleep(5 * time.Second)
			b.want("while it answers", "v1.0.0", false, 0, 0)
			if young, all := b.ages(60); young != all {
				t.Errorf("%d of %d lists were served as older than a minute", all-young, all)
			}
			time.Sleep(5*time.Second + time.Millisecond)
			b.want("the first reader after its answer", "v1.0.0 v1.1.0", false, 0, 0)
			// Another has it fetched.
			time.Sleep(2 * time.Second)
			outdate()
			b.up.set(goproxy.Errorf(502, "down"), 0)
			b.want("a reader meanwhile", "v1.0.0 v1.1.0", false, 0, 1)
			if err := b.store.SetKnown(t.Context(), k, &storage.Known{Checked: time.Now(), Versions: []string{"v1.2.0"}}); err != nil {
				t.Fatal(err)
			}
			b.want("at once after another had the answer", "v1.2.0", false, 0, 0)
			outdate()
			time.Sleep(2 * time.Hour)
			want, stale := "v1.2.0", true
			if mode == Strict {
				want, stale = "!Bad Gateway", false
			}
			b.want("outdated, and too old", want, stale, 0, 1)
		})
	}
}

func keep(t *testing.T, s storage.Store, v string) {
	t.Helper()
	m := module.Version{Path: modPath, Version: v}
	err := s.Put(t.Context(), m, storage.Files{
		Info: []byte(`{"Version":"` + v + `","Time":"2026-01-02T03:04:05Z"}`), Mod: []byte("module " + modPath + "\n"), Zip: strings.NewReader("zip"),
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestOffline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, Offline)
		b.want("nothing kept", "!Not Found", false, 0, 0)
		keep(t, b.store, "v1.0.0")
		keep(t, b.store, "v1.2.0")
		b.want("what is kept", "v1.0.0 v1.2.0", false, 0, 0)
		if i, err := b.Resolve(t.Context(), modPath, "latest"); err != nil || i.Version != "v1.2.0" {
			t.Errorf("latest: %+v, %v", i, err)
		}
		if _, err := b.Mod(t.Context(), module.Version{Path: modPath, Version: "v1.9.0"}); goproxy.Status(err) != 404 {
			t.Errorf("a version that is not kept: %v", err)
		}
	})
}

// restarting is a store that is away until some time.
type restarting struct {
	storage.Store
	lists, resolves time.Time
}

func (r restarting) List(ctx context.Context, path string) (*goproxy.VersionList, error) {
	if time.Now().Before(r.lists) {
		return nil, goproxy.Errorf(502, "away")
	}
	return r.Store.List(ctx, path)
}

func (r restarting) Resolve(ctx context.Context, path, query string) (*goproxy.Info, error) {
	if time.Now().Before(r.resolves) {
		return nil, goproxy.Errorf(502, "away")
	}
	return r.Store.Resolve(ctx, path, query)
}

// A storage that restarts is waited for where there is nothing else to answer from: for
// lists too; and it has not said meanwhile that nothing is kept.
func TestOfflineStorageRestarts(t *testing.T) {
	const pseudo = "v0.0.0-20240102030405-abcdefabcdef"
	for _, mode := range []string{Offline, Fallback} {
		synctest.Test(t, func(t *testing.T) {
			b := newBed(t, mode)
			ctx := goproxy.WithNoFetch(t.Context())
			keep(t, b.store, pseudo)
			away := func(lists, resolves time.Duration) {
				b.Proxy.store = restarting{b.store, time.Now().Add(lists), time.Now().Add(resolves)}
			}
			for _, until := range [][2]time.Duration{{5 * time.Second, 0}, {0, 5 * time.Second}} {
				away(until[0], until[1])
				start := time.Now()
				if l, err := b.List(ctx, modPath); err != nil || len(l.Versions) != 0 || time.Since(start) != 5*time.Second {
					t.Errorf("%s: %+v, %v after %v", mode, l, err, time.Since(start))
				}
			}
			away(0, 5*time.Second)
			if i, err := b.Resolve(ctx, modPath, goproxy.Latest); err != nil || i.Version != pseudo {
				t.Errorf("%s: latest: %+v, %v", mode, i, err)
			}
			away(time.Hour, time.Hour)
			start := time.Now()
			if _, err := b.List(ctx, modPath); goproxy.Status(err) != 502 || time.Since(start) > storageWait {
				t.Errorf("%s: one that stays away: %v after %v", mode, err, time.Since(start))
			}
		})
	}
}

// A clock that was an hour ahead, and is set back, leaves answers of an hour to come: they
// are as fresh as freshness says from then on, and no fresher.
func TestClockSetBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, Fallback)
		k := storage.Key{Path: modPath, File: storage.FileList}
		known := func(ahead time.Duration) {
			t.Helper()
			if err := b.store.SetKnown(t.Context(), k, &storage.Known{Checked: time.Now().Add(ahead).UTC(), Versions: []string{"v0.9.0"}}); err != nil {
				t.Fatal(err)
			}
		}
		known(time.Hour)
		b.want("of an hour to come", "v1.0.0", false, 0, 1)
		b.want("then", "v1.0.0", false, 0, 0)
		time.Sleep(2 * time.Minute)
		known(time.Minute) // as far as clocks are apart
		b.want("of another's clock", "v0.9.0", false, 0, 0)
		known(time.Hour)
		b.up.set(goproxy.Errorf(502, "down"), 0)
		time.Sleep(3 * time.Minute)
		b.want("upstream is down", "v0.9.0", true, 0, 1)
		// A refusal of a file too.
		b.up.set(&goproxy.Error{Status: 404, Message: "not found: x", Checked: time.Now().Add(time.Hour).UTC()}, 0)
		m := module.Version{Path: modPath, Version: "v1.0.0"}
		if _, err := b.Mod(t.Context(), m); goproxy.Status(err) != 404 {
			t.Errorf("refused: %v", err)
		}
		b.up.set(nil, 0, "v1.0.0")
		if _, err := b.Mod(t.Context(), m); err != nil {
			t.Errorf("of an hour to come: %v", err)
		}
	})
}

// hanging is a store that answers no question about a list or a query.
type hanging struct{ storage.Store }

func (hanging) List(ctx context.Context, _ string) (*goproxy.VersionList, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (hanging) Resolve(ctx context.Context, _, _ string) (*goproxy.Info, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// Nobody waits longer for a storage that hangs than what is in front of a proxy waits.
func TestStorageHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, Fallback)
		b.Proxy.store = hanging{b.store}
		b.up.set(goproxy.Errorf(502, "down"), 0)
		b.want("with upstream down too", "!Bad Gateway", false, keptWait, 1)
		start := time.Now()
		if _, err := b.Resolve(t.Context(), modPath, goproxy.Latest); goproxy.Status(err) != 502 || time.Since(start) != keptWait {
			t.Errorf("latest: %v after %v", err, time.Since(start))
		}
	})
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, Offline)
		b.Proxy.store = hanging{b.store}
		b.want("offline", "!Gateway Timeout", false, b.o.FetchTimeout, 0)
		start := time.Now()
		if _, err := b.Resolve(t.Context(), modPath, goproxy.Latest); goproxy.Status(err) != 504 || time.Since(start) != b.o.FetchTimeout {
			t.Errorf("latest, offline: %v after %v", err, time.Since(start))
		}
	})
}

// Fallback serves what is kept where nothing is known of upstream and it is down.
func TestFallbackToKept(t *testing.T) {
	for _, mode := range []string{Strict, Fallback} {
		synctest.Test(t, func(t *testing.T) {
			b := newBed(t, mode)
			keep(t, b.store, "v1.0.0")
			b.up.set(goproxy.Errorf(502, "down"), 0)
			if mode == Strict {
				b.want("strict", "!Bad Gateway", false, 0, 1)
			} else {
				b.want("fallback", "v1.0.0", true, 0, 1)
			}
		})
	}
}

func TestBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, Fallback)
		b.up.set(nil, 70*time.Second, "v1.0.0")
		m := module.Version{Path: modPath, Version: "v1.0.0"}
		results := make(chan error, 30)
		left, leave := context.WithCancel(t.Context())
		for i := range 25 {
			ctx := t.Context()
			if i == 0 {
				ctx = left
			}
			go func() { _, err := b.Mod(ctx, m); results <- err }()
			if i == 0 {
				synctest.Wait() // so that who leaves is none of those that are one too many
			}
		}
		synctest.Wait()
		for range 5 { // more than may wait: told so at once
			var e *goproxy.Error
			if err := <-results; !errors.As(err, &e) || e.Status != 503 || e.RetryAfter <= 0 {
				t.Errorf("one too many: %v", err)
			}
		}
		leave()
		synctest.Wait()
		if err := <-results; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("who left: %v", err)
		}
		time.Sleep(51 * time.Second)
		for range 19 { // fetch-timeout
			var e *goproxy.Error
			if err := <-results; !errors.As(err, &e) || e.Status != 504 || !e.NoStore {
				t.Errorf("after fetch-timeout: %v", err)
			}
		}
		time.Sleep(30 * time.Second)
		start := time.Now()
		blob, err := b.Mod(t.Context(), m) // the fetch went on
		if err != nil || time.Since(start) != 0 {
			t.Errorf("%v, after %v", err, time.Since(start))
		} else if c, _ := blob.ReadAll(100); string(c) != "module "+modPath+"\n" {
			t.Errorf("%q", c)
		}
		if b.up.asked != 1 {
			t.Errorf("upstream was asked %d times", b.up.asked)
		}
	})
}

// A deletion reaches the caches of a proxy within a minute.
func TestDeletion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, Fallback)
		keep(t, b.store, "v1.0.0")
		m := module.Version{Path: modPath, Version: "v1.0.0"}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go b.Run(ctx, 20*time.Second)
		if _, err := b.Mod(ctx, m); err != nil {
			t.Fatal(err)
		}
		if err := b.store.Delete(ctx, m); err != nil {
			t.Fatal(err)
		}
		b.up.set(goproxy.NotFound("gone"), 0)
		if _, err := b.Mod(ctx, m); err != nil {
			t.Errorf("from the cache: %v", err)
		}
		time.Sleep(21 * time.Second)
		synctest.Wait()
		if _, err := b.Mod(ctx, m); goproxy.Status(err) != 404 {
			t.Errorf("after the deletion: %v", err)
		}
	})
}

// Modules of which only pseudo-versions are kept have an empty list, not none: the go
// command asks @latest then.
func TestKeptPseudoVersion(t *testing.T) {
	const pseudo = "v0.0.0-20240102030405-abcdefabcdef"
	for _, mode := range []string{Offline, Fallback} {
		synctest.Test(t, func(t *testing.T) {
			b := newBed(t, mode)
			b.up.set(goproxy.Errorf(502, "down"), 0)
			keep(t, b.store, pseudo)
			l, err := b.List(t.Context(), modPath)
			if err != nil || len(l.Versions) != 0 {
				t.Errorf("%s: %+v, %v", mode, l, err)
			}
			if mode == Offline {
				if i, err := b.Resolve(t.Context(), modPath, "latest"); err != nil || i.Version != pseudo {
					t.Errorf("latest: %+v, %v", i, err)
				}
			}
		})
	}
}

// A module that was published here, which no upstream knows.
func TestKeptOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, Fallback)
		keep(t, b.store, "v1.0.0")
		b.up.set(goproxy.NotFound("no such module"), 0)
		b.want("what is kept", "v1.0.0", true, 0, 1)
		b.up.set(goproxy.Errorf(403, "not allowed"), 0)
		time.Sleep(2 * time.Minute)
		b.want("what is forbidden", "!Forbidden", false, 0, 1)
	})
}

// A "not found" of a crawler whose fetch goes on is no answer to remember.
func TestPassingRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, Fallback)
		e := goproxy.NotFound("a fetch goes on")
		e.NoStore = true
		b.up.set(e, 0)
		b.want("while it goes on", "!Not Found", false, 0, 1)
		b.up.set(nil, 0, "v1.0.0")
		b.want("then", "v1.0.0", false, 0, 1)
	})
}

// Whoever joins a fetch that is going on gets the same answer when it takes too long.
func TestJoinLateFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, Fallback)
		b.Proxy.o.FetchTimeoutStatus = 404
		b.up.set(nil, time.Hour)
		m := module.Version{Path: modPath, Version: "v1.0.0"}
		go b.Mod(context.Background(), m)
		time.Sleep(60 * time.Second)
		var e *goproxy.Error
		if _, err := b.Mod(t.Context(), m); !errors.As(err, &e) || e.Status != 404 || !e.NoStore {
			t.Errorf("got %v", err)
		}
	})
}

// What goes on behind readers, and what waits for a hanging upstream, takes nothing from
// who wants what is kept.
func TestKeptWhileOthersWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, Fallback) // 20 may wait
		v := b.put("example.com/kept", "v1.0.0")
		for i := range 30 {
			k := storage.Key{Path: fmt.Sprintf("example.com/m%d", i), File: storage.FileList}
			if err := b.store.SetKnown(t.Context(), k, &storage.Known{Checked: time.Now(), Versions: []string{"v1.0.0"}}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(2 * time.Minute) // old by a minute, and upstream hangs
		b.up.set(nil, time.Hour)
		for i := range 30 {
			if _, err := b.List(t.Context(), fmt.Sprintf("example.com/m%d", i)); err != nil {
				t.Error(err)
			}
		}
		synctest.Wait()
		if n := b.behinds.Load(); n != 20 {
			t.Errorf("%d refreshes go on behind readers, with a bound of 20", n)
		}
		for i := range 25 {
			go b.List(context.Background(), fmt.Sprintf("example.com/new%d", i))
		}
		synctest.Wait()
		if _, err := b.Mod(t.Context(), v.Version); err != nil {
			t.Errorf("a .mod that storage keeps: %v", err)
		}
		if _, err := b.List(t.Context(), "example.com/more"); goproxy.Status(err) != 503 {
			t.Errorf("one more that has to wait: %v", err)
		}
		time.Sleep(2 * time.Hour)
		if w, n := b.waiting.Load(), b.behinds.Load(); w != 0 || n != 0 {
			t.Errorf("%d wait and %d refresh, when all have ended", w, n)
		}
	})
}

// A refusal that the crawler remembered is no younger here: absence is believed for as long
// as freshness says, not twice that.
func TestRefusalAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, Fallback)
		refuse := func(age time.Duration) {
			b.up.set(&goproxy.Error{Status: 404, Message: "not found: x", Checked: time.Now().Add(-age)}, 0)
		}
		m := module.Version{Path: modPath, Version: "v1.0.0"}
		mod := func(what string, status, asked int) {
			t.Helper()
			b.up.asked = 0
			if _, err := b.Mod(t.Context(), m); goproxy.Status(err) != status || b.up.asked != asked {
				t.Errorf("%s: %v, the crawler was asked %d times", what, err, b.up.asked)
			}
		}
		refuse(40 * time.Second)
		b.want("first", "!Not Found", false, 0, 1)
		mod("first", 404, 1)
		time.Sleep(15 * time.Second)
		b.want("55 seconds old", "!Not Found", false, 0, 0)
		mod("55 seconds old", 404, 0)
		b.up.set(nil, 0, "v1.0.0")
		time.Sleep(10 * time.Second)
		b.want("65 seconds old", "v1.0.0", false, 0, 1)
		mod("65 seconds old", 200, 1)
	})
}
