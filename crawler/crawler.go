// Package crawler is the role that brings modules in: it is the only one that
// reaches upstream. It is a goproxy.Source that fetches what it is asked for;
// each fetch is a job in the ledger's queue, so that the whole fleet makes it
// once, and a job outlives the request that made it.
package crawler

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/mod/module"
	"golang.org/x/sync/singleflight"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/fleet"
	"github.com/athensctl/athensctl/internal/tracing"
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
	outcomes   *prometheus.CounterVec
	mismatches prometheus.Counter
	queueFull  prometheus.Counter
	ahead      *prometheus.CounterVec
	feedTime   *prometheus.GaugeVec
	refresh    refresher
	busy       atomic.Int64
	names      atomic.Uint64 // of workers, that were given
	complained atomic.Int64  // when a claim failed last, seconds since 1970

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

// known is upstream's answer for k that is younger than maxAge: fs.ErrNotExist when there
// is none, a refusal as an error of its own, which isRefused matches.
func (c *Crawler) known(ctx context.Context, k storage.Key, maxAge time.Duration) (*storage.Known, error) {
	known, err := c.ledger.Known(ctx, k)
	if err != nil {
		return nil, err
	}
	if time.Since(known.Checked) >= maxAge {
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

// ensure returns what look finds for k. Where it finds nothing it makes a job of
// it, and does it at once when a worker is free; otherwise, and when there was a
// job already, it waits until somebody has done it.
func ensure[T any](ctx context.Context, c *Crawler, k storage.Key, look func(ctx context.Context, maxAge time.Duration) (T, error)) (T, error) {
	var none T
	maxAge := c.o.Freshness
	for range 3 {
		v, err := look(ctx, maxAge)
		if isRefused(err) || !errors.Is(err, fs.ErrNotExist) {
			return v, err
		}
		if k.File != storage.FileList {
			if _, err := c.known(ctx, k, maxAge); isRefused(err) {
				return none, err
			}
		}
		if goproxy.NoFetch(ctx) {
			e := goproxy.NotFound("%s: not kept, and the request says not to fetch it", k)
			e.NoStore = true
			return none, e
		}
		if err := c.fetched(ctx, k); err != nil {
			return none, err
		}
		maxAge = c.o.Freshness + atMost(k.File) // so old it may be, just fetched
	}
	return none, goproxy.Errorf(http.StatusBadGateway, "%s: the fetch ended without a result", k)
}

// fetched returns when a job for k has ended, with its error.
func (c *Crawler) fetched(ctx context.Context, k storage.Key) error {
	ch := c.flights.DoChan(k.String(), func() (any, error) { return c.demand(forMany(ctx), k) })
	select {
	case r := <-ch: // it goes on when the request ends
		if done, _ := r.Val.(bool); done || r.Err != nil {
			return r.Err
		}
	case <-ctx.Done():
		return ctx.Err()
	}
	err := c.wait(ctx, k)
	// One that was given back before it was tried (a crawler was told to stop, others of
	// the host went before, or it was tried for nobody, who has less room) is waited for
	// again, and made due, which it is not by itself where it is old.
	givenBack := func() bool {
		return goproxy.Status(err) == http.StatusServiceUnavailable && retryAfter(err) > 0 && retryAfter(err) <= time.Second
	}
	for pause := time.Second; givenBack(); pause = min(2*pause, maxTurn) {
		turn, cancel := context.WithTimeout(ctx, pause)
		err = c.wait(turn, k)
		late := turn.Err() != nil
		cancel()
		switch {
		case err == nil || ctx.Err() != nil:
			return err
		case late:
			if err = c.enqueue(ctx, k); err == nil {
				err = c.wait(ctx, k)
			}
		case givenBack(): // at once, where it is parked for a moment yet
			sleep(ctx, retryAfter(err))
		}
	}
	return err
}

// wait is the ledger's Wait. The job outlives a storage process that does not: it is waited
// for when storage is back.
func (c *Crawler) wait(ctx context.Context, k storage.Key) error {
	_, err := again(ctx, func() (struct{}, error) { return struct{}{}, c.ledger.Wait(ctx, k) })
	return err
}

// maxTurn is how long a job that was given back is waited for before it is made due.
const maxTurn = time.Minute

// forMany is the context of a question that is asked for all who want its answer: it
// does not end with one of them, and somebody waits for it.
func forMany(ctx context.Context) context.Context {
	call := fleet.CallOf(ctx)
	call.Background = false
	return fleet.WithCall(context.WithoutCancel(ctx), call)
}

// demand does the job for k when its turn has come, and reports whether it did: somebody
// else may have the job. It waits without one, since a job that waits would need a lease,
// and what is asked of a fleet's crawlers in turn, their proxies have spread already.
func (c *Crawler) demand(ctx context.Context, k storage.Key) (done bool, err error) {
	running, ok := c.begin()
	if !ok {
		return false, c.enqueue(ctx, k)
	}
	defer c.begun.Done()
	leave, err := c.enter(running, k, storage.Demand)
	if running.Err() != nil { // another crawler takes it over
		if err == nil {
			leave()
		}
		return false, c.enqueue(ctx, k)
	} else if err != nil {
		c.queueFull.Inc()
		return false, err
	}
	defer c.left(leave)
	job, err := c.ledger.Start(ctx, jobOf(ctx, k, storage.Demand), c.workerName(), c.o.Lease)
	if err != nil || job == nil {
		c.wakeWorker() // it may be that nobody has it yet
		return false, c.countFull(err)
	}
	return true, c.run(running, job, nil)
}

// begin returns Run's context, and false where it does not run. Run ends after begun.Done.
func (c *Crawler) begin() (context.Context, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running == nil || c.running.Err() != nil {
		return nil, false
	}
	c.begun.Add(1)
	return c.running, true
}

// defaultWaiting fetches may wait for their turn, those of one host half as many; a waiting
// fetch that was asked for has no more to it than the request has.
const defaultWaiting = 4096

// enter waits until it is k's turn to be fetched: for a zip, among the zips first.
func (c *Crawler) enter(ctx context.Context, k storage.Key, p storage.Priority) (leave func(), err error) {
	l := laneOf(k)
	if k.File != storage.FileZip {
		return c.workers.enter(ctx, l, p)
	}
	leaveZips, err := c.zips.enter(ctx, l, p)
	if err != nil {
		return nil, err
	}
	leaveWorkers, err := c.workers.enter(ctx, l, p)
	if err != nil {
		leaveZips()
		return nil, err
	}
	return func() { leaveWorkers(); leaveZips() }, nil
}

// left gives a place back, and sees to it that the queue is looked at if it was waited
// for there.
func (c *Crawler) left(leave func()) {
	leave()
	if c.starved.Swap(false) {
		c.wakeWorker()
	}
}

func (c *Crawler) enqueue(ctx context.Context, k storage.Key) error {
	_, err := c.ledger.Enqueue(ctx, jobOf(ctx, k, storage.Demand))
	c.wakeWorker()
	return c.countFull(err)
}

// jobOf is a job that belongs to the trace in ctx.
func jobOf(ctx context.Context, k storage.Key, p storage.Priority) storage.Job {
	return storage.Job{Key: k, Priority: p, Trace: tracing.Parent(ctx)}
}

func (c *Crawler) wakeWorker() {
	select {
	case c.nudge <- struct{}{}:
	default: // as many as there are workers are on their way
	}
}

func (c *Crawler) countFull(err error) error {
	if errors.Is(err, storage.ErrQueueFull) {
		c.queueFull.Inc()
	}
	return err
}

// Run works on the queue until ctx ends. Jobs that are not finished then go
// back to the queue.
func (c *Crawler) Run(ctx context.Context) {
	c.mu.Lock()
	c.running = ctx
	c.mu.Unlock()
	var wg sync.WaitGroup
	for range c.o.Workers {
		wg.Go(func() { c.work(ctx) })
	}
	wg.Go(func() {
		for sleep(ctx, time.Duration(float64(pollEvery)*(0.5+rand.Float64()))) {
			c.wakeWorker()
		}
	})
	ahead := fleet.WithBackground(ctx)
	a := c.o.Ahead
	for _, feed := range a.Feeds {
		wg.Go(func() {
			c.every(ahead, a.Poll, "follow "+feed.Name, func(ctx context.Context) error { return c.follow(ctx, feed) })
		})
	}
	for _, catalog := range a.Catalogs {
		wg.Go(func() {
			c.every(ahead, min(a.Every, time.Minute), "walk "+catalog.Name, func(ctx context.Context) error { return c.walk(ctx, catalog) })
		})
	}
	if a.Refresh > 0 {
		wg.Go(func() { c.every(ahead, time.Second, "refresh ahead", c.refreshDue) })
	}
	wg.Wait()
	c.mu.Lock()
	c.running = nil
	c.mu.Unlock()
	c.begun.Wait()
}

// workerName is one that no claim before had: a lease is one worker's.
func (c *Crawler) workerName() string { return fmt.Sprintf("%s/%d", c.o.Name, c.names.Add(1)) }

// The queue is looked at that often, for jobs that others made or left.
const pollEvery = time.Second

// work does jobs of the queue when it is woken, until there is none.
func (c *Crawler) work(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.nudge:
		}
		for ctx.Err() == nil && c.workOnce(ctx) {
		}
	}
}

func (c *Crawler) workOnce(ctx context.Context) bool {
	// Where all places are taken, one job of the queue waits among the requests.
	mayClaim := func() bool { return c.workers.room() || c.claimed.Load() == 0 }
	if !mayClaim() {
		c.starved.Store(true)
		if !mayClaim() { // else it is too late for who left to see that
			return false
		}
	}
	job, err := c.ledger.Claim(ctx, c.workerName(), c.o.Lease)
	if now := time.Now().Unix(); err != nil && ctx.Err() == nil && c.complained.Swap(now) < now-10 { // one worker for all
		c.o.Log.Warn("claim a job", "err", err)
	}
	if job == nil {
		return false
	}
	c.wakeWorker() // where there was one, there may be more
	c.run(ctx, job, func(ctx context.Context) (func(), error) { return c.enterClaimed(ctx, job) })
	return true
}

// How long a job that was claimed waits for its turn: under its lease, in place of
// another that could be claimed.
const (
	claimWait = time.Minute
	briefly   = 250 * time.Millisecond
)

// enterClaimed is enter for a job that was claimed. The jobs of one host that wait are
// not all that this crawler claims: those beyond its part wait briefly, which is enough
// where the host is well, and are held then, out of the way of other hosts' jobs.
func (c *Crawler) enterClaimed(ctx context.Context, job *storage.Job) (leave func(), err error) {
	wait := briefly
	unclaim := c.claims.try(laneOf(job.Key), storage.Demand)
	if unclaim != nil {
		wait = claimWait
	} else {
		unclaim = func() {}
	}
	turn, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	c.claimed.Add(1)
	leaveGates, err := c.enter(turn, job.Key, c.priority(job))
	c.claimed.Add(-1)
	if err != nil {
		unclaim()
		return nil, held(ctx, "turn", time.Second, "%s: others of the same host were fetched for %v", job.Key, wait)
	}
	return func() { leaveGates(); unclaim() }, nil
}

// run does one job under its lease, says how it ended, and returns the error that
// who waits for the job is told. enter waits for the job's turn; nil: it has come.
func (c *Crawler) run(ctx context.Context, job *storage.Job, enter func(context.Context) (leave func(), err error)) error {
	ctx, span := c.trace(ctx, job)
	defer span.End()
	jobCtx, cancel := context.WithCancelCause(ctx)
	var beat sync.WaitGroup
	beat.Go(func() { c.heartbeat(jobCtx, cancel, job) })
	fetchCtx := jobCtx
	if c.priority(job) != storage.Demand {
		fetchCtx = fleet.WithBackground(jobCtx)
	}
	var outcome string
	var err error
	if enter != nil {
		var leave func()
		if leave, err = enter(jobCtx); err == nil {
			defer c.left(leave)
		}
	}
	if err == nil {
		c.busy.Add(1)
		most := atMost(job.Key.File)
		attemptCtx, stop := context.WithTimeout(fetchCtx, most)
		outcome, err = c.attempt(attemptCtx, job)
		if attemptCtx.Err() != nil && jobCtx.Err() == nil && err != nil && outcome == "" {
			err = goproxy.Errorf(http.StatusGatewayTimeout, "%s: given up after %v: %w", job.Key, most, err)
		}
		stop()
		c.busy.Add(-1)
	}
	lost := context.Cause(jobCtx)
	cancel(nil)
	beat.Wait()

	// Ending a job is worth a moment even when the process is told to stop.
	endCtx, end := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer end()
	var ended error
	switch {
	case err == nil:
		ended = c.ledger.Done(endCtx, job, nil)
	case ctx.Err() != nil:
		outcome = "retry"
		err = goproxy.Busy(time.Second, "%s: the crawler is stopping", job.Key)
		ended = c.ledger.Retry(endCtx, job, 0, err)
	case errors.Is(lost, storage.ErrLeaseLost):
		ended = lost
	case isNotSent(err) && time.Since(job.Created) < giveUpAfter:
		outcome = "held"
		job.Attempts-- // it was none
		job.Parked = job.Attempts >= c.o.Attempts
		ended = c.ledger.Retry(endCtx, job, heldFor(job, err), err)
	case outcome == "refused":
		ended = c.ledger.Done(endCtx, job, err)
	case job.Attempts < c.o.Attempts && transient(err) && !panicked(err):
		outcome = "retry"
		ended = c.ledger.Retry(endCtx, job, backOff(job.Attempts, err), err)
	case time.Since(job.Created) < giveUpAfter && transient(err):
		outcome = "parked"
		job.Parked = true
		ended = c.ledger.Retry(endCtx, job, parkFor(job.Attempts-c.o.Attempts, err), err)
	default:
		outcome = "failed"
		ended = c.ledger.Done(endCtx, job, err)
	}
	if ended != nil {
		outcome = "lost"
		c.o.Log.Warn("a job's end was not taken", "job", job.Key.String(), "err", ended)
	}
	c.outcomes.WithLabelValues(string(job.Key.File), outcome).Inc()
	span.SetAttributes(attribute.String("athensctl.outcome", outcome))
	if err != nil && outcome != "refused" {
		span.SetStatus(codes.Error, err.Error())
		c.o.Log.Warn("fetch", "job", job.Key.String(), "attempt", job.Attempts, "outcome", outcome, "err", err)
	} else {
		c.o.Log.Debug("fetch", "job", job.Key.String(), "outcome", outcome)
	}
	return err
}

// atMost is how long one attempt may take, whatever upstream does meanwhile. A git host's
// .info and go.mod file may need a fetch of all of a commit. A zip of the largest size
// that there may be needs 300 KB/s for that.
func atMost(f storage.File) time.Duration {
	switch f {
	case storage.FileList:
		return 2 * time.Minute
	case storage.FileZip:
		return 30 * time.Minute
	}
	return 5 * time.Minute
}

// attempt is fetch, whatever it meets: one upstream's bytes must not end a crawler, and
// then, with the job that comes back, the next.
func (c *Crawler) attempt(ctx context.Context, job *storage.Job) (outcome string, err error) {
	defer func() {
		var p *goproxy.Panic
		if errors.As(err, &p) {
			outcome = ""
			c.o.Log.Error("a bug in athensctl: a fetch panicked; its job is parked", "job", job.Key.String(), "panic", p.Value, "stack", string(p.Stack))
		}
	}()
	defer goproxy.Recover(&err)
	if err := c.spoolDir(); err != nil {
		return "", ours(job.Key, err)
	}
	return c.fetch(ctx, job)
}

// spoolDir makes the folder for temporary files again, should something that cleans up
// have removed it: it is the git hosts' too.
func (c *Crawler) spoolDir() error {
	if c.o.TempDir == "" {
		return nil
	}
	return storage.FullDisk(os.MkdirAll(c.o.TempDir, 0o755))
}

// panicked: not tried again before somebody may have seen it in the log.
func panicked(err error) bool {
	var p *goproxy.Panic
	return errors.As(err, &p)
}

// priority is Ahead, too, for a job that was parked: nobody waits for that.
func (c *Crawler) priority(job *storage.Job) storage.Priority {
	if job.Attempts > c.o.Attempts {
		return storage.Ahead
	}
	return job.Priority
}

// trace begins the span of an attempt: in the trace of who may be waiting for it. One
// that nobody waits for, ahead of demand or of a job that was parked, begins a trace of
// its own, with a link to where the job comes from.
func (c *Crawler) trace(ctx context.Context, job *storage.Job) (context.Context, trace.Span) {
	from := tracing.WithParent(ctx, job.Trace)
	o := []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindConsumer)}
	if c.priority(job) == storage.Demand {
		ctx = from
	} else if o = append(o, trace.WithNewRoot()); job.Trace != "" {
		o = append(o, trace.WithLinks(trace.LinkFromContext(from)))
	}
	ctx, span := tracing.Begin(ctx, c.o.Tracer, "fetch "+string(job.Key.File), o...)
	if span.IsRecording() {
		span.SetAttributes(attribute.String("athensctl.module", job.Key.Path), attribute.String("athensctl.version", job.Key.Query), attribute.Int("athensctl.attempt", job.Attempts))
	}
	return ctx, span
}

func (c *Crawler) heartbeat(ctx context.Context, cancel context.CancelCauseFunc, job *storage.Job) {
	tick := time.NewTicker(c.o.Lease / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := c.ledger.Extend(ctx, job, c.o.Lease); errors.Is(err, storage.ErrLeaseLost) {
				cancel(storage.ErrLeaseLost)
				return
			}
		}
	}
}

// transient says whether another attempt may end otherwise: not when upstream
// refused, with a 403 say, which is a 502 to who asked.
func transient(err error) bool {
	for e := (*goproxy.Error)(nil); errors.As(err, &e); err = e.Err {
		if e.Status < 500 && e.Status != http.StatusTooManyRequests && e.Status != http.StatusRequestTimeout {
			return false
		}
	}
	return true
}

// heldFor is how long a job is left alone that could not be tried: as long again as it is
// old, so that the pauses double; at most a minute, 10 where nobody waits, but as long as
// the host asks for.
func heldFor(job *storage.Job, err error) time.Duration {
	most := time.Minute
	if job.Priority != storage.Demand {
		most = 10 * time.Minute
	}
	d := min(max(time.Since(job.Created), time.Second), most)
	return max(time.Duration(float64(d)*(0.75+rand.Float64()/2)), retryAfter(err))
}

// giveUpAfter is how long a job that fails and fails is kept.
const giveUpAfter = 7 * 24 * time.Hour

// parkFor is 1 minute, 2, 4, … up to 6 hours, and at least what upstream asked for.
func parkFor(more int, err error) time.Duration {
	d := min(time.Minute<<min(max(0, more), 10), 6*time.Hour)
	return max(time.Duration(float64(d)*(0.75+rand.Float64()/2)), retryAfter(err))
}

// retryAfter is how long an error asks to wait; 0: it does not.
func retryAfter(err error) time.Duration {
	var e *goproxy.Error
	if errors.As(err, &e) {
		return e.RetryAfter
	}
	return 0
}

// backOff is 1 s, 2 s, 4 s, … up to 5 minutes, a quarter more or less, and at
// least what upstream asked for.
func backOff(attempt int, err error) time.Duration {
	d := min(time.Second<<min(attempt-1, 9), 5*time.Minute)
	d = time.Duration(float64(d) * (0.75 + rand.Float64()/2))
	return cmp.Or(max(d, retryAfter(err)), time.Second)
}
