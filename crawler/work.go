package crawler

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/fleet"
	"github.com/athensctl/athensctl/internal/tracing"
	"github.com/athensctl/athensctl/storage"
)

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
		why := "the crawler is stopping"
		if cause := context.Cause(ctx); cause != context.Canceled {
			why = "its zip's job is over: " + cause.Error() // see complete
		}
		err = goproxy.Busy(time.Second, "%s: %s", job.Key, why)
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
