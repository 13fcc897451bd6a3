// Package proxy is the role that the go command talks to. It answers from its
// caches and from storage, and asks the crawler for what is not there. It
// starts no process, holds no credential of a database, and reaches nothing but
// the other two roles.
package proxy

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
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
	if time.Since(disk.seen()) > deletionsKnown {
		disk.files.clear(isDeletable)
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

// heldModBytes is the largest .mod file that is kept in memory, where it also is while a
// client reads it, for as long as that takes. A larger one, up to 16 MiB, is a file, as a zip is.
const heldModBytes = 64 << 10

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
	if b := p.disk.get(k.String()); b != nil {
		p.metrics.answered(ctx, start, fromDisk, k.File)
		return b, nil
	}
	v, tier, err := p.fetch(ctx, k, func(ctx context.Context, s goproxy.Source) (any, error) {
		b, err := s.Mod(ctx, m)
		if err != nil {
			return nil, err
		}
		if b.SizeBytes > heldModBytes {
			defer b.Close()
			if isLocalFile(b) {
				return nil, nil
			}
			return nil, p.cache(k.String(), b, b.SizeBytes, b.ModTime)
		}
		content, err := b.ReadAll(goproxy.MaxModBytes)
		return &file{content, b.ModTime}, err
	})
	p.metrics.answered(ctx, start, tier, k.File)
	if err != nil {
		return nil, err
	}
	if f, ok := v.(*file); ok {
		return goproxy.NewBlob(f.content, f.kept), nil
	}
	if b := p.disk.get(k.String()); b != nil {
		return b, nil
	}
	return p.store.Mod(ctx, m) // it is a local file there, or can't be cached
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
