// Package crawler is the role that brings modules in: it is the only one that
// reaches upstream. It is a goproxy.Source that fetches what it is asked for;
// each fetch is a job in the ledger's queue, so that the whole fleet makes it
// once, and a job outlives the request that made it.
package crawler

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
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

// Origin is one entry of the upstream setting.
type Origin struct {
	Name   string // for messages: a URL without secrets, or "direct"; behind "off" nobody is asked
	Source goproxy.Source
	// AnyError: the next origin is asked after any error ("|"); else only after
	// the answer that there is no such thing (",").
	AnyError bool
}

// Verifier says whether upstream's content is what everybody gets.
type Verifier interface {
	// H1 is the h1: hash that everybody gets; version is "v1.2.3" for a zip,
	// "v1.2.3/go.mod" for a go.mod file. "": nobody says, and none is needed. An error
	// of 403 is a refusal, to be remembered: it has no hash, and never is to be had.
	H1(ctx context.Context, path, version string) (string, error)
}

// Options of a Crawler. All are needed unless it says otherwise.
type Options struct {
	Name          string // unique in the fleet
	Origins       []Origin
	Verifier      Verifier      // nil: nothing is verified
	TempDir       string        // takes zips until they are verified; "": the system's
	Freshness     time.Duration // how long a list, an answer or a refusal is good
	Workers       int           // fetches at once; no host has more than half of them
	ZipWorkers    int           // of which zips; so are these shared
	MaxWaiting    int           // fetches that may wait for their turn, behind workers or zip workers; one host's half as many. 0: 4096
	InflightBytes int64         // bytes of zips being fetched at once; no host has more than half of them
	Lease         time.Duration // after which another crawler takes a dead one's job
	Attempts      int           // of one job
	Ahead         Ahead
	ModuleOf      func(url string) string // the module path of a repository, of which pushes are told; nil: none are
	Metrics       prometheus.Registerer
	Tracer        trace.Tracer // nil: fetches are not traced
	Log           *slog.Logger
}

// Crawler is the role. Run does its work; the Source methods wait for it, or
// for another crawler.
type Crawler struct {
	o          Options
	store      storage.Store
	ledger     storage.Ledger
	nudge      chan struct{}
	workers    *gate              // a place for each fetch that goes on
	zips       *gate              // of which zips
	claims     *gate              // jobs of the queue that this crawler holds: they go on, or wait for their turn
	refreshes  *gate              // lists that are looked at ahead of demand
	claimed    atomic.Int64       // jobs of the queue that wait for their turn
	starved    atomic.Bool        // the queue was not looked at, for want of a worker
	flights    singleflight.Group // demand, by key
	inflight   *inflight
	memory     *inflight // of lists and go.mod files that are being fetched
	checks     storage.Checks
	outcomes   *prometheus.CounterVec
	mismatches prometheus.Counter
	queueFull  prometheus.Counter
	ahead      *prometheus.CounterVec
	feedTime   *prometheus.GaugeVec
	refresh    refresher
	busy       atomic.Int64
	names      atomic.Uint64 // of workers, that were given
	complained atomic.Int64  // when a claim failed last, seconds since 1970
	vanities   sync.Map      // names that are kept, see noteVanity
	noted      atomic.Int64  // how many, roughly

	mu      sync.Mutex
	running context.Context // Run's; nil: it does not run
	begun   sync.WaitGroup  // what Run waits for besides its own
}

var _ goproxy.Source = (*Crawler)(nil)

// New returns a crawler that has not started.
func New(store storage.Store, ledger storage.Ledger, o Options) *Crawler {
	c := &Crawler{
		o: o, store: steady{store}, ledger: bounded{ledger},
		nudge:   make(chan struct{}, max(1, o.Workers)),
		workers: newGate(o.Workers, cmp.Or(o.MaxWaiting, defaultWaiting)),
		zips:    newGate(o.ZipWorkers, cmp.Or(o.MaxWaiting, defaultWaiting)),
		claims:  newGate(o.Workers, 0),

		refreshes: newGate(o.Ahead.Parallel, 0),
		inflight:  newInflight(o.InflightBytes),
		memory:    newInflight(memoryBytes),
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "athensctl_fetches_total",
			Help: "Fetches from upstream that ended, by file (list, info, mod, zip) and outcome (ok, kept, refused, retry, held, parked, failed, lost).",
		}, []string{"file", "outcome"}),
		queueFull: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "athensctl_crawler_queue_full_total", Help: "Fetches that were refused because the queue, or their host's line, was full.",
		}),
		ahead: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "athensctl_ahead_total",
			Help: "Lists and versions that were looked at ahead of demand, by outcome (brought, kept, refused, failed, invalid).",
		}, []string{"outcome"}),
		feedTime: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "athensctl_feed_timestamp_seconds", Help: "Up to when an index feed was followed, seconds since 1970.",
		}, []string{"feed"}),
		refresh: refresher{lists: map[string]*watched{}},
		mismatches: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "athensctl_checksum_mismatches_total",
			Help: "Files that upstream has with another content than the checksum database says; none was kept.",
		}),
	}
	if o.Metrics != nil {
		gauge := func(name, help string, v *atomic.Int64) prometheus.Collector {
			return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return float64(v.Load()) })
		}
		o.Metrics.MustRegister(c.outcomes, c.mismatches, c.queueFull, c.ahead, c.feedTime,
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "athensctl_crawler_waiting", Help: "Fetches that wait for their turn, behind others of the same host.",
			}, func() float64 { return float64(c.workers.waits() + c.zips.waits()) }),
			gauge("athensctl_crawler_busy_workers", "Fetches going on.", &c.busy),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "athensctl_crawler_inflight_bytes", Help: "Bytes of zips being fetched."},
				func() float64 { return float64(c.inflight.bytes()) }))
	}
	return c
}

// List implements goproxy.Source: the list as fresh as Freshness says.
func (c *Crawler) List(ctx context.Context, path string) (*goproxy.VersionList, error) {
	k := storage.Key{Path: path, File: storage.FileList}
	list, err := ensure(ctx, c, k, func(ctx context.Context, maxAge time.Duration) (*goproxy.VersionList, error) {
		known, err := c.known(ctx, k, maxAge)
		if err != nil {
			return nil, err
		}
		return goproxy.NewVersionList(path, known.Versions, known.Checked), nil
	})
	c.watch(path, err)
	return list, err
}

// Resolve implements goproxy.Source.
func (c *Crawler) Resolve(ctx context.Context, path, query string) (*goproxy.Info, error) {
	k := storage.Key{Path: path, Query: query, File: storage.FileInfo}
	return ensure(ctx, c, k, func(ctx context.Context, maxAge time.Duration) (*goproxy.Info, error) {
		if goproxy.IsCanonical(path, query) {
			return c.store.Resolve(ctx, path, query)
		}
		known, err := c.known(ctx, k, maxAge)
		if err != nil {
			return nil, err
		}
		info, err := goproxy.ParseInfo(path, query, known.Info)
		if err == nil {
			info.Checked = known.Checked
		}
		return info, err
	})
}

// Mod implements goproxy.Source.
func (c *Crawler) Mod(ctx context.Context, m module.Version) (*goproxy.Blob, error) {
	k := storage.Key{Path: m.Path, Query: m.Version, File: storage.FileMod}
	return ensure(ctx, c, k, func(ctx context.Context, _ time.Duration) (*goproxy.Blob, error) { return c.store.Mod(ctx, m) })
}

// Zip implements goproxy.Source. The job fetches .info too, so that the version
// becomes complete; the go.mod file is in the zip.
func (c *Crawler) Zip(ctx context.Context, m module.Version) (*goproxy.Blob, error) {
	k := storage.Key{Path: m.Path, Query: m.Version, File: storage.FileZip}
	return ensure(ctx, c, k, func(ctx context.Context, _ time.Duration) (*goproxy.Blob, error) { return c.store.Zip(ctx, m) })
}

// known is upstream's answer for k that is younger than maxAge, and not outdated:
// fs.ErrNotExist when there is none, a refusal as an error of its own, which isRefused matches.
func (c *Crawler) known(ctx context.Context, k storage.Key, maxAge time.Duration) (*storage.Known, error) {
	known, err := c.ledger.Known(ctx, k)
	if err != nil {
		return nil, err
	}
	if known.Outdated || storage.Age(known.Checked, time.Now()) >= maxAge {
		return nil, goproxy.NotFound("%s: the answer is old", k)
	}
	if err := Refusal(known); err != nil {
		return nil, refused{err}
	}
	return known, nil
}

// refused marks an error that is upstream's answer, or the checksum database's, and is
// remembered as one.
type refused struct{ error }

func (r refused) Unwrap() error { return r.error }

func isRefused(err error) bool {
	var r refused
	return errors.As(err, &r)
}

// Refusal is the error that a remembered answer stands for; nil when it is none.
func Refusal(k *storage.Known) error {
	if k.RefusedStatus == 0 {
		return nil
	}
	return &goproxy.Error{Status: k.RefusedStatus, Message: k.Refused, Checked: k.Checked}
}
