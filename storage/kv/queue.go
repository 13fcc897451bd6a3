package kv

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
)

// Enqueue implements storage.Ledger.
func (l *Ledger) Enqueue(ctx context.Context, j storage.Job) (added bool, err error) {
	job, err := l.add(ctx, j, "", 0)
	if s, ok := l.queue.(interface{ Sync() error }); ok && err == nil && j.Priority != storage.Demand {
		err = s.Sync()
	}
	return job != nil, err
}

// Start implements storage.Ledger.
func (l *Ledger) Start(ctx context.Context, j storage.Job, worker string, lease time.Duration) (*storage.Job, error) {
	return l.add(ctx, j, worker, lease)
}

// add adds a job, claimed if there is a worker, and returns it; nil when there was one.
func (l *Ledger) add(ctx context.Context, j storage.Job, worker string, lease time.Duration) (added *storage.Job, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	err = l.queue.Update(func(tx Tx) error {
		added = nil
		old, err := getJob(tx, j.Key)
		if err != nil {
			return err
		}
		if old != nil && worker != "" && old.Worker == worker {
			added = old // the answer to it was lost
			return nil
		}
		if old != nil && old.ParkedErr(l.now()) != nil {
			return nil
		}
		if old != nil {
			merged := *old
			if j.Priority < old.Priority {
				merged.Priority, merged.Trace = j.Priority, j.Trace
			}
			if old.Worker == "" && j.NotBefore.Before(old.NotBefore) {
				merged.NotBefore = j.NotBefore
			}
			if merged == *old {
				return nil
			}
			return putJob(tx, old, &merged)
		}
		if n, err := counts(tx); err != nil {
			return err
		} else if !n.Room(j.Priority, l.queueMax) {
			return storage.ErrQueueFull
		}
		added = &storage.Job{Key: j.Key, Priority: j.Priority, Trace: j.Trace, NotBefore: j.NotBefore, Created: l.now().UTC()}
		if worker != "" {
			l.claim(added, worker, lease)
		}
		return putJob(tx, nil, added)
	})
	if err != nil {
		return nil, err
	}
	return added, nil
}

func (l *Ledger) claim(j *storage.Job, worker string, lease time.Duration) {
	j.Worker, j.LeaseEnds, j.Parked = worker, l.now().Add(lease).UTC(), false
	j.Attempts++
	j.Fence++
}

// Claim implements storage.Ledger.
func (l *Ledger) Claim(ctx context.Context, worker string, lease time.Duration) (*storage.Job, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var job *storage.Job
	// Looking first costs no write when there is nothing to do.
	err := l.queue.View(func(tx Tx) (err error) {
		job, err = l.nextDue(tx)
		return err
	})
	if err != nil || job == nil {
		return nil, err
	}
	err = l.queue.Update(func(tx Tx) error {
		job = nil
		old, err := l.nextDue(tx)
		if old == nil || err != nil {
			return err
		}
		claimed := *old
		l.claim(&claimed, worker, lease)
		if err := putJob(tx, old, &claimed); err != nil {
			return err
		}
		job = &claimed
		return nil
	})
	if err != nil {
		return nil, err
	}
	return job, nil
}

func (l *Ledger) nextDue(tx Tx) (*storage.Job, error) {
	now := l.now()
	for _, p := range []storage.Priority{storage.Demand, storage.Ahead} {
		var jk []byte
		prefix := []byte{'q', byte(p)}
		tx.Ascend(prefix, func(k, _ []byte) bool {
			if bytes.HasPrefix(k, prefix) && !readTime(k[2:10]).After(now) {
				jk = bytes.Clone(k[10:])
			}
			return false
		})
		if jk != nil {
			var j storage.Job
			return &j, json.Unmarshal(tx.Get(jk), &j)
		}
	}
	return nil, nil
}

// Extend implements storage.Ledger.
func (l *Ledger) Extend(ctx context.Context, j *storage.Job, lease time.Duration) error {
	return l.queue.Update(func(tx Tx) error {
		old, err := l.held(tx, j)
		if err != nil {
			return err
		}
		extended := *old
		extended.LeaseEnds = l.now().Add(lease).UTC()
		return putJob(tx, old, &extended)
	})
}

// Done implements storage.Ledger.
func (l *Ledger) Done(ctx context.Context, j *storage.Job, cause error) error {
	err := l.queue.Update(func(tx Tx) error {
		old, err := l.held(tx, j)
		if err != nil {
			return err
		}
		return putJob(tx, old, nil)
	})
	if err == nil {
		l.wake(j.Key, cause)
	}
	return err
}

// Retry implements storage.Ledger.
func (l *Ledger) Retry(ctx context.Context, j *storage.Job, delay time.Duration, cause error) error {
	err := l.queue.Update(func(tx Tx) error {
		old, err := l.held(tx, j)
		if err != nil {
			return err
		}
		later := *old
		later.Worker, later.LeaseEnds = "", time.Time{}
		later.NotBefore, later.Parked, later.Attempts = l.now().Add(delay).UTC(), j.Parked, j.Attempts
		later.Failed(cause)
		if later.Parked {
			if n, err := counts(tx); err != nil {
				return err
			} else if !n.MayPark(old, l.queueMax) {
				return putJob(tx, old, nil)
			}
		}
		return putJob(tx, old, &later)
	})
	if err == nil {
		l.wake(j.Key, cause)
	}
	return err
}

// held returns the job as it is kept, if j's holder still is its latest.
func (l *Ledger) held(tx Tx, j *storage.Job) (*storage.Job, error) {
	old, err := getJob(tx, j.Key)
	if err != nil {
		return nil, err
	}
	if old == nil || old.Fence != j.Fence || old.Worker != j.Worker || old.Worker == "" {
		return nil, storage.ErrLeaseLost
	}
	return old, nil
}

// Wait implements storage.Ledger.
func (l *Ledger) Wait(ctx context.Context, k storage.Key) error {
	ch := make(chan error, 1)
	l.mu.Lock()
	l.waiting[k] = append(l.waiting[k], ch)
	l.mu.Unlock()
	defer l.unwait(k, ch)

	var job *storage.Job
	err := l.queue.View(func(tx Tx) (err error) {
		job, err = getJob(tx, k)
		return err
	})
	if err != nil || job == nil {
		return err
	}
	if err := job.ParkedErr(l.now()); err != nil {
		return err
	}
	select {
	case err := <-ch:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Jobs implements storage.Ledger.
func (l *Ledger) Jobs(ctx context.Context, limit int) (jobs []storage.Job, err error) {
	err = l.each(func(j *storage.Job) bool {
		jobs = append(jobs, *j)
		return len(jobs) < limit && ctx.Err() == nil
	})
	return jobs, errors.Join(err, ctx.Err())
}

// Drop implements storage.Ledger.
func (l *Ledger) Drop(ctx context.Context, k storage.Key) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := l.queue.Update(func(tx Tx) error {
		old, err := getJob(tx, k)
		if err != nil {
			return err
		}
		if old == nil {
			return goproxy.NotFound("%s: there is no such job", k)
		}
		return putJob(tx, old, nil)
	})
	if err == nil {
		l.wake(k, storage.ErrDropped)
	}
	return err
}

// each calls f with every job, until it returns false.
func (l *Ledger) each(f func(*storage.Job) bool) error {
	return l.queue.View(func(tx Tx) error { return eachJob(tx, f) })
}

func eachJob(tx Tx, f func(*storage.Job) bool) (bad error) {
	tx.Ascend([]byte{'j'}, func(k, v []byte) bool {
		if k[0] != 'j' {
			return false
		}
		var j storage.Job
		if bad = json.Unmarshal(v, &j); bad != nil {
			return false
		}
		return f(&j)
	})
	return bad
}

func (l *Ledger) unwait(k storage.Key, ch chan error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := l.waiting[k]
	for i, c := range list {
		if c == ch {
			list[i] = list[len(list)-1]
			l.waiting[k] = list[:len(list)-1]
			break
		}
	}
	if len(l.waiting[k]) == 0 {
		delete(l.waiting, k)
	}
}

func (l *Ledger) wake(k storage.Key, cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ch := range l.waiting[k] {
		select {
		case ch <- cause:
		default: // it has one already, and is leaving
		}
	}
}

// Queue implements storage.Ledger.
func (l *Ledger) Queue(ctx context.Context) (storage.QueueStats, error) {
	var s storage.QueueStats
	now := l.now()
	err := l.each(func(j *storage.Job) bool {
		s.Add(j, now)
		return true
	})
	return s, err
}

func getJob(tx Tx, k storage.Key) (*storage.Job, error) {
	b := tx.Get(ledgerKey('j', k))
	if b == nil {
		return nil, nil
	}
	j := new(storage.Job)
	return j, json.Unmarshal(b, j)
}

// putJob replaces old by new, in the jobs, in the order they are due, and in their
// counts; nil is no job.
func putJob(tx Tx, old, new *storage.Job) error {
	n, err := counts(tx)
	errs := []error{err}
	before := n
	if n.Change(old, new); n != before {
		b, err := json.Marshal(n)
		errs = append(errs, err, tx.Put([]byte{'b'}, b))
	}
	if old != nil {
		errs = append(errs, tx.Delete(dueKey(old)))
		if new == nil {
			errs = append(errs, tx.Delete(ledgerKey('j', old.Key)))
		}
	}
	if new != nil {
		b, err := json.Marshal(new)
		errs = append(errs, err, tx.Put(ledgerKey('j', new.Key), b), tx.Put(dueKey(new), nil))
	}
	return errors.Join(errs...)
}

// dueKey orders jobs by priority, then by when they may be claimed: a claimed
// one when its lease ends, another at NotBefore but not before it was made.
func dueKey(j *storage.Job) []byte {
	due := j.NotBefore
	if j.Worker != "" {
		due = j.LeaseEnds
	} else if due.Before(j.Created) {
		due = j.Created
	}
	return append(appendTime([]byte{'q', byte(j.Priority)}, due), ledgerKey('j', j.Key)...)
}

// counts are the jobs as they are noted; where they are not, they are counted.
func counts(tx Tx) (n storage.QueueCounts, err error) {
	if b := tx.Get([]byte{'b'}); b != nil {
		return n, json.Unmarshal(b, &n)
	}
	err = eachJob(tx, func(j *storage.Job) bool {
		n.Change(nil, j)
		return true
	})
	return n, err
}
