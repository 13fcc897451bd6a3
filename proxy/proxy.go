// Package proxy is the role that the go command talks to. It answers from its
// caches and from storage, and asks the crawler for what is not there. It
// starts no process, holds no credential of a database, and reaches nothing but
// the other two roles.
package proxy

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/mod/module"
	"golang.org/x/sync/singleflight"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
)

// Network modes: what happens when upstream is needed and fails.
const (
	Strict   = "strict"   // the request fails
	Fallback = "fallback" // what is kept is served
	Offline  = "offline"  // upstream is never asked
)

// Options of a Proxy. All are needed unless it says otherwise.
type Options struct {
	Mode         string
	Freshness    time.Duration // a list is served without a question
	ListMaxStale time.Duration // a list is served while it is refreshed behind
	ListWait     time.Duration // how long a request waits for the refresh of an older one
	ListRemember time.Duration // how long what the ledger says is believed without looking again; 0: Freshness
	FetchTimeout time.Duration // how long a request waits for the crawler
	// FetchTimeoutStatus is what it gets then: 504 or 404.
	FetchTimeoutStatus int
	MaxWaiting         int    // requests that may wait for a fetch
	CacheDir           string // zips and sumdb answers
	CacheBytes         int64
	MemoryBytes        int64 // lists, .info and .mod files
	Metrics            prometheus.Registerer
	Log                *slog.Logger
}

// Proxy is the role, a goproxy.Source over the two others.
type Proxy struct {
	o       Options
	store   storage.Store
	ledger  storage.Ledger // only Known is read
	crawler goproxy.Source // nil: nothing can be fetched

	memory  *lru[storage.Key, any] // *goproxy.Info, *file, *goproxy.VersionList, refusal
	disk    *diskCache
	flights singleflight.Group
	waiting atomic.Int64
	behinds atomic.Int64 // refreshes going on behind readers
	metrics *metrics
	// generation grows with each deletion: what was read before is not kept after.
	generation atomic.Int64
	behind     sync.Map    // keys that are refreshed behind a reader now
	local      atomic.Bool // storage's zips are files of this machine: there is nothing to bring in
}

type file struct {
	content []byte
	kept    time.Time
}

// refusal is a "not found" that is remembered.
type refusal struct {
	err     error
	checked time.Time
}

var _ goproxy.Source = (*Proxy)(nil)

// New returns a proxy; Close ends it. crawler is nil in offline mode.
func New(store storage.Store, ledger storage.Ledger, crawler goproxy.Source, o Options) (*Proxy, error) {
	if o.ListRemember <= 0 {
		o.ListRemember = o.Freshness
	}
	disk, err := openDiskCache(o.CacheDir, o.CacheBytes)
	if err != nil {
		return nil, err
	}
	if time.Since(disk.seen()) > storage.TombstoneTTL-time.Hour {
		disk.clear() // versions were deleted that nobody will tell of any more
	}
	p := &Proxy{
		o: o, store: store, ledger: ledger, crawler: crawler, disk: disk,
		memory: newLRU[storage.Key, any](o.MemoryBytes, nil), metrics: newMetrics(o.Metrics),
	}
	if o.Metrics != nil {
		o.Metrics.MustRegister(
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "athensctl_proxy_waiting", Help: "Requests that wait for a fetch."},
				func() float64 { return float64(p.waiting.Load()) }),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "athensctl_proxy_cache_bytes", Help: "Bytes in the disk cache."},
				func() float64 { return float64(disk.files.bytes()) }),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "athensctl_proxy_cache_memory_bytes", Help: "Bytes in the memory cache."},
				func() float64 { return float64(p.memory.bytes()) }))
	}
	return p, nil
}

// Close lets another process have the cache's folder.
func (p *Proxy) Close() error { return p.disk.close() }

// entryBytes is what an entry of the memory cache takes besides its content.
const entryBytes = 512

func (p *Proxy) remember(k storage.Key, v any, bytes int) {
	p.memory.put(k, v, int64(bytes+len(k.Path)+entryBytes))
}

// Mod implements goproxy.Source.
func (p *Proxy) Mod(ctx context.Context, m module.Version) (*goproxy.Blob, error) {
	start := time.Now()
	k := storage.Key{Path: m.Path, Query: m.Version, File: storage.FileMod}
	if v, ok := p.memory.get(k); ok {
		if f, ok := v.(*file); ok {
			p.metrics.answered(ctx, start, fromMemory, k.File)
			return goproxy.NewBlob(f.content, f.kept), nil
		}
	}
	v, tier, err := p.fetch(ctx, k, func(ctx context.Context, s goproxy.Source) (any, error) {
		b, err := s.Mod(ctx, m)
		if err != nil {
			return nil, err
		}
		content, err := b.ReadAll(goproxy.MaxModBytes)
		return &file{content, b.ModTime}, err
	})
	p.metrics.answered(ctx, start, tier, k.File)
	if err != nil {
		return nil, err
	}
	f := v.(*file)
	return goproxy.NewBlob(f.content, f.kept), nil
}

// Resolve implements goproxy.Source.
func (p *Proxy) Resolve(ctx context.Context, path, query string) (*goproxy.Info, error) {
	start := time.Now()
	k := storage.Key{Path: path, Query: query, File: storage.FileInfo}
	if !goproxy.IsCanonical(path, query) {
		return p.resolveQuery(ctx, start, k)
	}
	if v, ok := p.memory.get(k); ok {
		if info, ok := v.(*goproxy.Info); ok {
			p.metrics.answered(ctx, start, fromMemory, k.File)
			return info, nil
		}
	}
	v, tier, err := p.fetch(ctx, k, func(ctx context.Context, s goproxy.Source) (any, error) {
		return s.Resolve(ctx, path, query)
	})
	p.metrics.answered(ctx, start, tier, k.File)
	if err != nil {
		return nil, err
	}
	return v.(*goproxy.Info), nil
}

// Zip implements goproxy.Source.
func (p *Proxy) Zip(ctx context.Context, m module.Version) (*goproxy.Blob, error) {
	start := time.Now()
	b, tier, err := p.zip(ctx, m)
	p.metrics.answered(ctx, start, tier, storage.FileZip)
	return b, err
}

func (p *Proxy) zip(ctx context.Context, m module.Version) (b *goproxy.Blob, tier string, err error) {
	k := storage.Key{Path: m.Path, Query: m.Version, File: storage.FileZip}
	if b := p.disk.get(k.String()); b != nil {
		return b, fromDisk, nil
	}
	if p.local.Load() {
		if b, err := p.store.Zip(ctx, m); err == nil {
			return b, fromStorage, nil
		}
	}
	for range 2 {
		// One reader brings it into the disk cache; the others wait and open the file.
		_, tier, err = p.fetch(ctx, k, func(ctx context.Context, s goproxy.Source) (any, error) {
			return nil, p.spool(ctx, k, s, m)
		})
		if err != nil {
			return nil, tier, err
		}
		if b := p.disk.get(k.String()); b != nil {
			return b, tier, nil
		}
		// Storage has it as a local file, or it can't be cached.
		b, err = p.store.Zip(ctx, m)
		if err == nil {
			return b, tier, nil
		} else if !goproxy.IsAbsent(err) {
			return nil, "", err
		}
	}
	return nil, tier, goproxy.NotFound("%s (zip): it was deleted", m)
}

// spoolTimeout bounds a zip whose bytes go on coming.
const spoolTimeout = 30 * time.Minute

// spool brings a zip into the disk cache. ctx's deadline is for its beginning: from then on it
// goes on as long as bytes come. A cache that does not work is no error: the zip is
// then read without it.
func (p *Proxy) spool(ctx context.Context, k storage.Key, s goproxy.Source, m module.Version) error {
	generation := p.generation.Load()
	reading, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	reading, stop := context.WithTimeout(reading, max(spoolTimeout, 2*p.o.FetchTimeout))
	defer stop()
	begun := context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })
	b, err := s.Zip(reading, m)
	if err != nil {
		return err
	}
	defer b.Close()
	begun()
	if isLocalFile(b) {
		p.local.Store(true)
		return nil
	}
	if err := p.cache(k.String(), b, b.SizeBytes, b.ModTime); err != nil {
		return err
	}
	if p.generation.Load() != generation {
		p.disk.remove(k.String())
	}
	return nil
}

// cache keeps what r has in the disk cache, if that works. An error is r's.
func (p *Proxy) cache(key string, r io.Reader, size int64, modTime time.Time) error {
	err := p.disk.put(key, r, size, modTime)
	var broken cacheError
	if !errors.As(err, &broken) {
		return err
	}
	p.metrics.uncached.Inc()
	p.o.Log.Warn("not cached", "key", key, "err", err)
	return nil
}

// fetch gets an immutable file from storage, or else from the crawler, and says from
// which; tier is "" where neither had an answer. Requests for the same key share one
// fetch, which goes on when they leave. Only those who wait for the crawler count as
// waiting.
func (p *Proxy) fetch(ctx context.Context, k storage.Key, get func(context.Context, goproxy.Source) (any, error)) (v any, tier string, err error) {
	if v, ok := p.memory.get(k); ok {
		if r, ok := v.(*refusal); ok && time.Since(r.checked) < p.o.Freshness && p.o.Mode != Offline {
			return nil, fromMemory, r.err
		}
	}
	v, tier, err = p.share(ctx, "kept "+k.String(), k, func(ctx context.Context) (any, string, error) {
		return p.keep(ctx, k, fromStorage, func(ctx context.Context) (any, error) {
			v, err := get(ctx, p.store)
			for end := time.Now().Add(min(storageWait, p.o.FetchTimeout)); isAway(ctx, err); {
				pause := max(storagePause, retryAfter(err))
				if time.Now().Add(pause).After(end) {
					break
				}
				time.Sleep(pause)
				v, err = get(ctx, p.store)
			}
			return v, err
		})
	})
	switch {
	case !goproxy.IsAbsent(err):
		return v, tier, err
	case !p.mayFetch(ctx):
		return nil, tier, notKept(k)
	}
	leave, err := p.enter()
	if err != nil {
		return nil, "", err
	}
	defer leave()
	v, tier, err = p.share(ctx, k.String(), k, func(ctx context.Context) (any, string, error) {
		return p.keep(ctx, k, fromCrawler, func(ctx context.Context) (any, error) {
			v, err := get(ctx, p.crawler)
			p.rememberRefusal(k, err)
			return v, err
		})
	})
	if err != nil && p.o.Mode == Fallback && !isRefusal(err) && ctx.Err() == nil {
		if e := p.wasAbsent(p.fromLedger(ctx, k), err); e != nil {
			return nil, fromOld, e
		}
	}
	return v, tier, err
}

// keep remembers what get returns, unless it was deleted meanwhile.
func (p *Proxy) keep(ctx context.Context, k storage.Key, tier string, get func(context.Context) (any, error)) (any, string, error) {
	generation := p.generation.Load()
	v, err := get(ctx)
	if err != nil && !isRefusal(err) {
		return nil, "", err
	} else if err != nil {
		return nil, tier, err
	}
	switch v := v.(type) {
	case *file:
		p.remember(k, v, len(v.content))
	case *goproxy.Info:
		p.remember(k, v, len(v.Raw))
	}
	if p.generation.Load() != generation {
		p.memory.remove(k)
	}
	return v, tier, nil
}

// A storage that restarts is waited for: a proxy that has just started has nothing
// else to answer from.
const (
	storageWait  = 20 * time.Second
	storagePause = 250 * time.Millisecond
)

// isAway: storage has not answered, which says nothing of what it keeps.
func isAway(ctx context.Context, err error) bool {
	switch goproxy.Status(err) {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return ctx.Err() == nil
	}
	return false
}

// retryAfter is what an error says of when to come again, 5 s at most.
func retryAfter(err error) time.Duration {
	var e *goproxy.Error
	if errors.As(err, &e) {
		return min(e.RetryAfter, 5*time.Second)
	}
	return 0
}

func (p *Proxy) mayFetch(ctx context.Context) bool {
	return p.crawler != nil && p.o.Mode != Offline && !goproxy.NoFetch(ctx)
}

func notKept(k storage.Key) error {
	e := goproxy.NotFound("%s: not kept, and nothing is fetched for this request", k)
	e.NoStore = true
	return e
}

// isRefusal: there is no such thing, or it can't be had.
func isRefusal(err error) bool {
	switch goproxy.Status(err) {
	case http.StatusNotFound, http.StatusGone, http.StatusForbidden, http.StatusNotImplemented:
		return true
	}
	return false
}

// lasts reports whether a refusal is worth remembering: one while a fetch goes on is not.
func lasts(err error) bool {
	var e *goproxy.Error
	return isRefusal(err) && !(errors.As(err, &e) && e.NoStore)
}

func (p *Proxy) rememberRefusal(k storage.Key, err error) {
	if lasts(err) {
		p.remember(k, &refusal{err, checkedOf(err)}, len(err.Error()))
	}
}

// checkedOf is when upstream refused: one that the crawler remembered is as old as it is
// there.
func checkedOf(err error) time.Time {
	if e := (*goproxy.Error)(nil); errors.As(err, &e) && !e.Checked.IsZero() {
		return e.Checked
	}
	return time.Now()
}

// flight is what those who share a fetch get, and whose trace has it.
type flight struct {
	value any
	tier  string
	span  trace.SpanContext
}

// enter takes a place among those who wait for a fetch; leave gives it back.
func (p *Proxy) enter() (leave func(), err error) {
	if n := p.waiting.Add(1); n > int64(p.o.MaxWaiting) {
		p.waiting.Add(-1)
		p.metrics.gaveUp.WithLabelValues("waiting").Inc()
		return nil, goproxy.Busy(2*time.Second, "busy: %d requests wait for a fetch already", p.o.MaxWaiting)
	}
	return func() { p.waiting.Add(-1) }, nil
}

// share runs f, which says from where its answer is, once for all who ask for key at the
// same time. It waits as long as FetchTimeout; f goes on behind, up to twice that.
func (p *Proxy) share(ctx context.Context, key string, k storage.Key, f func(context.Context) (any, string, error)) (v any, tier string, err error) {
	if goproxy.NoFetch(ctx) {
		key = "no-fetch " + key
	}
	ch := p.flights.DoChan(key, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*p.o.FetchTimeout)
		defer cancel()
		v, tier, err := f(ctx)
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil { // not one of upstream's own
			err = p.late(k)
		}
		return &flight{v, tier, trace.SpanContextFromContext(ctx)}, err
	})
	timeout := time.NewTimer(p.o.FetchTimeout)
	defer timeout.Stop()
	select {
	case r := <-ch:
		got := r.Val.(*flight)
		if span := trace.SpanFromContext(ctx); span.IsRecording() && got.span.IsSampled() && !got.span.Equal(span.SpanContext()) {
			span.AddLink(trace.Link{SpanContext: got.span}) // the fetch is in another's trace
		}
		return got.value, got.tier, r.Err
	case <-ctx.Done():
		return nil, "", ctx.Err()
	case <-timeout.C:
		p.metrics.gaveUp.WithLabelValues("timeout").Inc()
		return nil, "", p.late(k)
	}
}

// late is the answer to who has waited long enough.
func (p *Proxy) late(k storage.Key) error {
	return &goproxy.Error{
		Status: p.o.FetchTimeoutStatus, NoStore: true,
		Message: k.String() + ": still being fetched after " + p.o.FetchTimeout.String() + "; it goes on, come again",
	}
}

// deletionsOverlap is how long a deletion is looked at again and again: what read a
// version while it was deleted may have cached it after the first time.
const deletionsOverlap = 2 * time.Minute

// Run drops what was deleted in storage from the caches, until ctx ends. It
// looks every interval, which must be well below a minute.
func (p *Proxy) Run(ctx context.Context, interval time.Duration) {
	since := time.Now().Add(-storage.TombstoneTTL)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		now := time.Now()
		last, err := p.forgetDeleted(ctx, since)
		if err == nil {
			since = last.Add(-deletionsOverlap)
			if err := p.disk.saw(now); err != nil {
				p.o.Log.Warn("the cache's folder cannot be written", "err", err)
			}
		} else if ctx.Err() == nil {
			p.o.Log.Warn("deletions cannot be read", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// forgetDeleted drops what was deleted at or after since, and returns the time of the last.
func (p *Proxy) forgetDeleted(ctx context.Context, since time.Time) (last time.Time, err error) {
	const page = 1000
	last = since.Add(deletionsOverlap)
	for {
		one, cancel := context.WithTimeout(ctx, deletionsTimeout)
		deleted, err := p.store.Deleted(one, since, page)
		cancel()
		if err != nil {
			return last, err
		}
		for _, d := range deleted {
			p.Forget(module.Version{Path: d.Path, Version: d.Version})
			since = d.Timestamp.Add(time.Microsecond)
			if d.Timestamp.After(last) {
				last = d.Timestamp
			}
		}
		if len(deleted) < page {
			return last, nil
		}
	}
}

const deletionsTimeout = 15 * time.Second

// Forget drops a version from the caches.
func (p *Proxy) Forget(m module.Version) {
	p.generation.Add(1)
	for _, f := range []storage.File{storage.FileInfo, storage.FileMod, storage.FileZip} {
		k := storage.Key{Path: m.Path, Query: m.Version, File: f}
		p.memory.remove(k)
		p.disk.remove(k.String())
	}
	p.memory.remove(storage.Key{Path: m.Path, File: storage.FileList})
}
