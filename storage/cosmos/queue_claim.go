package cosmos

import (
	"context"
	"hash/maphash"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"

	"github.com/athensctl/athensctl/storage"
)

// Claim implements storage.Ledger.
func (s *Store) Claim(ctx context.Context, worker string, lease time.Duration) (*storage.Job, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := s.poll(ctx); err != nil {
		return nil, err
	}
	for {
		j := s.queue.take(micros(s.now()))
		if j == nil {
			return nil, nil
		}
		before := j.Job
		s.claim(&j.Job, worker, lease)
		j.setDue()
		err := s.put(ctx, "claim", j)
		if err == nil {
			s.queue.changed(&before, &j.Job)
			job := j.Job
			return &job, nil
		} else if !changed(err) {
			return nil, err
		}
		// Another replica has it, or has ended it.
	}
}

// take takes the job that should be done next out of what was seen.
func (q *queue) take(now int64) *jobItem {
	q.mu.Lock()
	defer q.mu.Unlock()
	var best *jobItem
	for _, j := range q.jobs {
		if due := max(j.Due0, j.Due1); due > now {
			continue
		}
		if best == nil || q.before(j, best) {
			best = j
		}
	}
	if best == nil {
		return nil
	}
	delete(q.jobs, best.ID)
	taken := *best
	return &taken
}

// before orders jobs by priority, then by when they were due. Those that a look has found, other
// replicas have found too: each takes them in another order, and by when they were due but
// roughly, or else all but one would lose each.
func (q *queue) before(a, b *jobItem) bool {
	if (a.Due0 > 0) != (b.Due0 > 0) {
		return a.Due0 > 0
	}
	x, y, rough := max(a.Due0, a.Due1), max(b.Due0, b.Due1), (10 * time.Second).Microseconds()
	switch {
	case x/rough != y/rough:
		return x < y
	case a.polled != b.polled:
		return b.polled
	case !a.polled:
		return x < y
	}
	return maphash.String(q.seed, a.ID) < maphash.String(q.seed, b.ID)
}

// poll looks for jobs that are due and that other replicas have put in, once in a
// while, whoever asks.
func (s *Store) poll(ctx context.Context) error {
	q := &s.queue
	q.mu.Lock()
	if q.polling || time.Since(q.polled) < pollEvery {
		q.mu.Unlock()
		return nil
	}
	q.polling = true
	q.mu.Unlock()
	defer func() {
		q.mu.Lock()
		q.polling, q.polled = false, time.Now()
		q.mu.Unlock()
	}()
	for _, text := range []string{"SELECT * FROM c WHERE c.due0 > 0 AND c.due0 <= @now", "SELECT * FROM c WHERE c.due1 > 0 AND c.due1 <= @now"} {
		now, demand := micros(s.now()), strings.Contains(text, "due0")
		known, found := q.due(now, demand), map[string]bool{}
		err := s.query(ctx, s.ledger, "poll", "", text, pollMax, map[string]any{"@now": now}, decode(func(j *taggedJob) bool {
			j.jobItem.etag, j.polled = azcore.ETag(j.ETag), true
			q.see(&j.jobItem)
			found[j.ID] = true
			return len(found) < pollMax
		}))
		if err != nil {
			return err
		}
		q.lose(known, found)
		if len(found) >= pollMax {
			return nil
		}
	}
	return nil
}

// due are the jobs of a priority that were seen and are due.
func (q *queue) due(now int64, demand bool) (due []*jobItem) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, j := range q.jobs {
		if (j.Due0 > 0) == demand && max(j.Due0, j.Due1) <= now {
			due = append(due, j)
		}
	}
	return due
}

// lose drops the jobs that were known to be due and are not any more, since another replica
// has claimed them: to try for one costs a write. Where there are more than a look shows, those that
// one has shown are dropped: if they are still due, another will.
func (q *queue) lose(known []*jobItem, found map[string]bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, j := range known {
		if q.jobs[j.ID] == j && !found[j.ID] && (j.polled || len(found) < pollMax) {
			delete(q.jobs, j.ID)
		}
	}
}

// taggedJob is a job as a query returns it.
type taggedJob struct {
	jobItem
	ETag string `json:"_etag"`
}

// change changes a job that is held by j's worker.
func (s *Store) change(ctx context.Context, op string, j *storage.Job, f func(*jobItem)) (*jobItem, error) {
	_, id := jobAt(j.Key)
	s.queue.mu.Lock()
	seen := s.queue.jobs[id]
	s.queue.mu.Unlock()
	for try := 0; ; try++ {
		var item *jobItem
		if try == 0 && seen != nil && holds(seen, j) {
			copied := *seen
			item = &copied
		} else {
			var err error
			if item, err = s.job(ctx, op, j.Key); err == errAbsent {
				return nil, storage.ErrLeaseLost
			} else if err != nil {
				return nil, err
			}
		}
		if !holds(item, j) {
			return nil, storage.ErrLeaseLost
		}
		before := item.Job
		f(item)
		err := s.put(ctx, op, item)
		if err == nil {
			s.queue.changed(&before, item.left())
			return item, nil
		} else if !changed(err) {
			return nil, err
		}
	}
}

func holds(item *jobItem, j *storage.Job) bool {
	return !item.ended() && item.Job.Fence == j.Fence && item.Job.Worker == j.Worker && j.Worker != ""
}

// Extend implements storage.Ledger.
func (s *Store) Extend(ctx context.Context, j *storage.Job, lease time.Duration) error {
	_, err := s.change(ctx, "extend", j, func(item *jobItem) {
		item.Job.LeaseEnds = s.now().Add(lease).UTC()
		item.setDue()
	})
	return err
}

// Done implements storage.Ledger.
func (s *Store) Done(ctx context.Context, j *storage.Job, cause error) error {
	item, err := s.change(ctx, "done", j, func(item *jobItem) {
		item.end(cause)
		item.leave()
	})
	if err != nil {
		return err
	}
	s.queue.wake(j.Key, item.Result.Err())
	return nil
}

// Retry implements storage.Ledger.
func (s *Store) Retry(ctx context.Context, j *storage.Job, delay time.Duration, cause error) error {
	item, err := s.change(ctx, "retry", j, func(item *jobItem) {
		item.end(cause)
		item.Job.Worker, item.Job.LeaseEnds = "", time.Time{}
		item.Job.NotBefore, item.Job.Parked, item.Job.Attempts = s.now().Add(delay).UTC(), j.Parked, j.Attempts
		item.Job.Failed(cause)
		item.setDue()
		if j.Parked && !s.queue.mayPark(&item.Job, s.o.QueueMax) {
			item.leave()
		}
	})
	if err != nil {
		return err
	}
	s.queue.wake(j.Key, item.Result.Err())
	return nil
}
