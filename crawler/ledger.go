package crawler

import (
	"context"
	"errors"
	"net/url"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/fleet"
	"github.com/athensctl/athensctl/storage"
)

// bounded is a ledger of which each call but Wait ends: a storage process that is gone
// without a word must not keep a worker, nor a heartbeat until the lease is over. One that
// cannot be reached, since it restarts, is asked again for as long.
type bounded struct {
	storage.Ledger
}

// How long a call may take. One in the background may have to wait for a database's units.
const (
	ledgerTimeout      = 10 * time.Second
	ledgerTimeoutAhead = time.Minute
)

func call[T any](ctx context.Context, most time.Duration, f func(context.Context) (T, error)) (T, error) {
	one, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	v, err := f(one)
	for isAway(err) && sleep(one, awayPause) {
		v, err = f(one)
	}
	if err != nil && one.Err() != nil && ctx.Err() == nil {
		err = goproxy.Busy(time.Second, "storage does not answer within %v: %w", most, err)
	}
	return v, err
}

// isAway reports whether a process of storage could not be reached, or broke off: its own
// answers, and those to a job's attempt that it keeps, are none of that.
func isAway(err error) bool {
	var u *url.Error
	return errors.As(err, &u)
}

const (
	awayPause  = 500 * time.Millisecond
	awayAtMost = 20 * time.Second // as long as a proxy waits for it
)

// steady is a store of which a process that cannot be reached, since it restarts, is asked
// again for a time.
type steady struct {
	storage.Store
}

// again calls f until storage is there, for awayAtMost.
func again[T any](ctx context.Context, f func() (T, error)) (T, error) {
	v, err := f()
	for end := time.Now().Add(awayAtMost); isAway(err) && time.Now().Before(end) && sleep(ctx, awayPause); {
		v, err = f()
	}
	return v, err
}

func (s steady) List(ctx context.Context, path string) (*goproxy.VersionList, error) {
	return again(ctx, func() (*goproxy.VersionList, error) { return s.Store.List(ctx, path) })
}

func (s steady) Resolve(ctx context.Context, path, query string) (*goproxy.Info, error) {
	return again(ctx, func() (*goproxy.Info, error) { return s.Store.Resolve(ctx, path, query) })
}

func (s steady) Mod(ctx context.Context, m module.Version) (*goproxy.Blob, error) {
	return again(ctx, func() (*goproxy.Blob, error) { return s.Store.Mod(ctx, m) })
}

func (s steady) Zip(ctx context.Context, m module.Version) (*goproxy.Blob, error) {
	return again(ctx, func() (*goproxy.Blob, error) { return s.Store.Zip(ctx, m) })
}

func bound(ctx context.Context) time.Duration {
	if fleet.CallOf(ctx).Background {
		return ledgerTimeoutAhead
	}
	return ledgerTimeout
}

// do is call for what has no result.
func do(ctx context.Context, most time.Duration, f func(context.Context) error) error {
	_, err := call(ctx, most, func(ctx context.Context) (struct{}, error) { return struct{}{}, f(ctx) })
	return err
}

func (b bounded) Known(ctx context.Context, k storage.Key) (*storage.Known, error) {
	return call(ctx, bound(ctx), func(ctx context.Context) (*storage.Known, error) { return b.Ledger.Known(ctx, k) })
}

func (b bounded) SetKnown(ctx context.Context, k storage.Key, a *storage.Known) error {
	return do(ctx, bound(ctx), func(ctx context.Context) error { return b.Ledger.SetKnown(ctx, k, a) })
}

func (b bounded) Enqueue(ctx context.Context, j storage.Job) (bool, error) {
	return call(ctx, bound(ctx), func(ctx context.Context) (bool, error) { return b.Ledger.Enqueue(ctx, j) })
}

func (b bounded) Start(ctx context.Context, j storage.Job, worker string, lease time.Duration) (*storage.Job, error) {
	return call(ctx, bound(ctx), func(ctx context.Context) (*storage.Job, error) { return b.Ledger.Start(ctx, j, worker, lease) })
}

func (b bounded) Claim(ctx context.Context, worker string, lease time.Duration) (*storage.Job, error) {
	return call(ctx, bound(ctx), func(ctx context.Context) (*storage.Job, error) { return b.Ledger.Claim(ctx, worker, lease) })
}

// Extend leaves time for another before the lease that is to be extended ends.
func (b bounded) Extend(ctx context.Context, j *storage.Job, lease time.Duration) error {
	return do(ctx, lease/3, func(ctx context.Context) error { return b.Ledger.Extend(ctx, j, lease) })
}

func (b bounded) Done(ctx context.Context, j *storage.Job, cause error) error {
	return do(ctx, bound(ctx), func(ctx context.Context) error { return b.Ledger.Done(ctx, j, cause) })
}

func (b bounded) Retry(ctx context.Context, j *storage.Job, delay time.Duration, cause error) error {
	return do(ctx, bound(ctx), func(ctx context.Context) error { return b.Ledger.Retry(ctx, j, delay, cause) })
}

func (b bounded) Load(ctx context.Context, key string) ([]byte, error) {
	return call(ctx, bound(ctx), func(ctx context.Context) ([]byte, error) { return b.Ledger.Load(ctx, key) })
}

func (b bounded) CompareAndSwap(ctx context.Context, key string, old, new []byte) error {
	return do(ctx, bound(ctx), func(ctx context.Context) error { return b.Ledger.CompareAndSwap(ctx, key, old, new) })
}
