package cosmos

import (
	"context"
	"time"

	"github.com/athensctl/athensctl/internal/fleet"
	"github.com/athensctl/athensctl/storage"
)

// waitKey is a job that is waited for. Those whose waiting is work in the background wait
// apart: their looks have to wait for units, and the others' don't.
type waitKey struct {
	storage.Key
	background bool
}

// waiters wait for one job, as one group. One of them looks at the database, for all.
type waiters struct {
	ends    chan struct{} // closed when the attempt has ended
	err     error
	looking bool
	n       int
}

// Wait implements storage.Ledger.
func (s *Store) Wait(ctx context.Context, k storage.Key) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	q := &s.queue
	group := waitKey{k, fleet.CallOf(ctx).Background}
	q.mu.Lock()
	w := q.waiting[group]
	if w == nil {
		w = &waiters{ends: make(chan struct{})}
		q.waiting[group] = w
	}
	w.n++
	q.mu.Unlock()
	defer func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if w.n--; w.n == 0 && q.waiting[group] == w {
			delete(q.waiting, group)
		}
	}()
	for {
		q.mu.Lock()
		look := !w.looking
		w.looking = true
		q.mu.Unlock()
		if look {
			err := s.watch(ctx, group, w)
			q.mu.Lock()
			w.looking = false // somebody else does, if this one's time was over
			q.mu.Unlock()
			select {
			case <-w.ends:
				return w.err
			default:
			}
			return err
		}
		select {
		case <-w.ends:
			return w.err
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(watchMost): // look whether somebody still looks
		}
	}
}

const (
	watchFirst = 200 * time.Millisecond
	watchMost  = 2 * time.Second
)

// watch looks at the job in the database until an attempt has ended, here or at
// another replica, and tells all of the group.
func (s *Store) watch(ctx context.Context, group waitKey, w *waiters) error {
	ends := -1
	for pause := watchFirst; ; pause = min(pause*3/2, watchMost) {
		j, err := s.job(ctx, "wait", group.Key)
		switch {
		case err == errAbsent, err == nil && j.ended() && ends < 0:
			s.queue.end(group, nil)
			return nil
		case err != nil:
			return err
		case ends < 0 && j.Job.ParkedErr(s.now()) != nil:
			s.queue.end(group, j.Job.ParkedErr(s.now()))
			return nil
		case ends >= 0 && (j.Ends != ends || j.ended()):
			s.queue.end(group, j.Result.Err())
			return nil
		}
		ends = j.Ends
		select {
		case <-w.ends:
			return w.err
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// wake tells all who wait here how an attempt ended.
func (q *queue) wake(k storage.Key, err error) {
	q.end(waitKey{k, false}, err)
	q.end(waitKey{k, true}, err)
}

func (q *queue) end(group waitKey, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if w := q.waiting[group]; w != nil {
		w.err = err
		close(w.ends)
		delete(q.waiting, group)
	}
}
