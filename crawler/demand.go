package crawler

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"time"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/fleet"
	"github.com/athensctl/athensctl/internal/tracing"
	"github.com/athensctl/athensctl/storage"
)

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
