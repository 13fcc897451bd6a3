package crawler

import (
	"context"
	"time"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/fleet"
	"github.com/athensctl/athensctl/storage"
)

// bounded is a ledger of which each call but Wait ends: a storage process that is gone
// without a word must not keep a worker, nor a heartbeat until the lease is over.
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
	if err != nil && one.Err() != nil && ctx.Err() == nil {
		err = goproxy.Busy(time.Second, "storage does not answer within %v: %w", most, err)
	}
	return v, err
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
