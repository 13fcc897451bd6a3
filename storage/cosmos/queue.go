package cosmos

import (
	"context"
	"hash/maphash"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
)

// jobItem is a job. One that ended stays for a minute, so that who waits at another
// replica sees how, and who ended it sees that it was not another.
type jobItem struct {
	ID  string      `json:"id"`
	PK  string      `json:"pk"`
	Job storage.Job `json:"job"`
	// When it may be claimed, µs: Due0 with priority Demand, Due1 with Ahead.
	// Neither: it has ended.
	Due0   int64          `json:"due0,omitempty"`
	Due1   int64          `json:"due1,omitempty"`
	Ends   int            `json:"ends"` // attempts that ended
	Result *storage.Cause `json:"result,omitempty"`
	TTL    int            `json:"ttl,omitempty"` // seconds
	stamp

	etag   azcore.ETag
	polled bool // it was found, and not written here
}

const endedTTL = 60

func jobAt(k storage.Key) (pk, id string) {
	id = hashID(k.String())
	return "j/" + id[:2], id
}

func (j *jobItem) ended() bool { return j.Due0 == 0 && j.Due1 == 0 }

// setDue orders jobs by when they may be claimed: a claimed one when its lease
// ends, another at NotBefore but not before it was made.
func (j *jobItem) setDue() {
	due := j.Job.NotBefore
	if j.Job.Worker != "" {
		due = j.Job.LeaseEnds
	} else if due.Before(j.Job.Created) {
		due = j.Job.Created
	}
	j.Due0, j.Due1 = 0, 0
	if j.Job.Priority == storage.Demand {
		j.Due0 = micros(due)
	} else {
		j.Due1 = micros(due)
	}
}

// end ends an attempt.
func (j *jobItem) end(cause error) {
	j.Ends++
	j.Result = storage.CauseOf(cause)
}

// leave ends the job.
func (j *jobItem) leave() {
	j.Due0, j.Due1, j.Job.Worker, j.TTL = 0, 0, "", endedTTL
}

// left is what is in the queue of it; nil: it has ended.
func (j *jobItem) left() *storage.Job {
	if j.ended() {
		return nil
	}
	return &j.Job
}

// queue is what this replica knows of the queue: the jobs that it has seen, which
// it offers to crawlers without asking the database, and who waits here. That a
// job is still as it was seen is for the database to say, by its ETag.
type queue struct {
	seed    maphash.Seed // of this replica's order, see before
	mu      sync.Mutex
	jobs    map[string]*jobItem // by id; not ended
	polled  time.Time
	polling bool
	counts  storage.QueueCounts // at counted; then as this replica changed it
	counted time.Time           // or when that was begun
	waiting map[waitKey]*waiters
}

const (
	// pollEvery is how often a replica looks for jobs that others have put in.
	pollEvery = time.Second
	// pollMax of each priority are looked at.
	pollMax = 100
	// seenMax bounds what a replica has seen; there may be more, which are due later.
	seenMax = 5000
	// countEvery is how old the number of jobs may be.
	countEvery = 15 * time.Second
)

func (q *queue) see(j *jobItem) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if j.ended() {
		delete(q.jobs, j.ID)
	} else if old, known := q.jobs[j.ID]; known || len(q.jobs) < seenMax || q.makeRoom(j) {
		if known && !old.polled && old.etag == j.etag {
			j.polled = false
		}
		q.jobs[j.ID] = j
	}
}

// makeRoom drops a job that is due later than j, or is less urgent, if there is one: when its time has come a
// look finds it. Jobs that are parked for hours would keep out all others else.
func (q *queue) makeRoom(j *jobItem) bool {
	for id, other := range q.jobs {
		if max(other.Due0, other.Due1) > max(j.Due0, j.Due1) || other.Due0 == 0 && j.Due0 > 0 {
			delete(q.jobs, id)
			return true
		}
	}
	return false
}

func (q *queue) forget(id string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.jobs, id)
}

func (q *queue) mayPark(j *storage.Job, bound int) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.counts.MayPark(j, bound)
}

func (q *queue) changed(old, new *storage.Job) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.counts.Change(old, new)
}

func (s *Store) job(ctx context.Context, op string, k storage.Key) (*jobItem, error) {
	pk, id := jobAt(k)
	j := new(jobItem)
	etag, err := s.get(ctx, s.ledger, op, pk, id, j)
	j.etag = etag
	return j, err
}

// put writes a job that was read, or one that is new when it has no ETag, and sees it.
func (s *Store) put(ctx context.Context, op string, j *jobItem) (err error) {
	j.stamp, j.polled = newStamp(), false
	old := j.etag
	if old == "" {
		j.etag, err = s.create(ctx, s.ledger, op, j.PK, j.ID, j, j.stamp)
	} else {
		j.etag, err = s.replace(ctx, s.ledger, op, j.PK, j.ID, j, j.stamp, old)
	}
	if err != nil {
		s.queue.forget(j.ID)
		return err
	}
	s.queue.see(j)
	return nil
}

func changed(err error) bool { return err == errExists || err == errMoved || err == errAbsent }

// Enqueue implements storage.Ledger.
func (s *Store) Enqueue(ctx context.Context, j storage.Job) (added bool, err error) {
	job, err := s.add(ctx, "enqueue", j, "", 0)
	return job != nil, err
}

// Start implements storage.Ledger.
func (s *Store) Start(ctx context.Context, j storage.Job, worker string, lease time.Duration) (*storage.Job, error) {
	job, err := s.add(ctx, "start", j, worker, lease)
	if job == nil || err != nil {
		return nil, err
	}
	return &job.Job, nil
}

func (s *Store) claim(j *storage.Job, worker string, lease time.Duration) {
	j.Worker, j.LeaseEnds, j.Parked = worker, s.now().Add(lease).UTC(), false
	j.Attempts++
	j.Fence++
}

func (s *Store) add(ctx context.Context, op string, j storage.Job, worker string, lease time.Duration) (*jobItem, error) {
	room, err := s.room(ctx, j.Priority)
	if err != nil {
		return nil, err
	}
	pk, id := jobAt(j.Key)
	item := &jobItem{ID: id, PK: pk}
	for {
		if room {
			item.Job = storage.Job{Key: j.Key, Priority: j.Priority, Trace: j.Trace, NotBefore: j.NotBefore, Created: s.now().UTC(), Fence: item.Job.Fence}
			item.Result, item.TTL = nil, 0
			if worker != "" {
				s.claim(&item.Job, worker, lease)
			}
			item.setDue()
			err := s.put(ctx, op, item)
			if err == nil {
				s.queue.changed(nil, &item.Job)
				return item, nil
			} else if !changed(err) {
				return nil, err
			}
		}
		// There is one, or without room there may be: that is joined, however full it is.
		old, err := s.job(ctx, op, j.Key)
		if err != nil && err != errAbsent {
			return nil, err
		}
		if err == errAbsent || old.ended() {
			if !room {
				return nil, storage.ErrQueueFull
			}
			if item = old; err == errAbsent {
				item = &jobItem{ID: id, PK: pk}
			}
			continue
		}
		if worker != "" && old.Job.Worker == worker {
			return old, nil // the answer to it was lost
		}
		if old.Job.ParkedErr(s.now()) != nil {
			s.queue.see(old)
			return nil, nil
		}
		merged := *old
		if j.Priority < old.Job.Priority {
			merged.Job.Priority, merged.Job.Trace = j.Priority, j.Trace
		}
		if old.Job.Worker == "" && j.NotBefore.Before(old.Job.NotBefore) {
			merged.Job.NotBefore = j.NotBefore
		}
		if merged.Job == old.Job {
			s.queue.see(old)
			return nil, nil
		}
		merged.setDue()
		err = s.put(ctx, op, &merged)
		if err == nil {
			s.queue.changed(&old.Job, &merged.Job)
		}
		if !changed(err) {
			return nil, err
		}
	}
}

// room reports whether there is room for another job, as far as this replica knows. It
// counts first where it never has, and anew before it says no, where the last count is not new;
// Run counts now and then.
func (s *Store) room(ctx context.Context, p storage.Priority) (bool, error) {
	q := &s.queue
	look := func() (room, count bool) {
		q.mu.Lock()
		defer q.mu.Unlock()
		room = q.counts.Room(p, s.o.QueueMax)
		if s.o.QueueMax <= 0 {
			return room, false
		} else if q.counted.IsZero() { // what is there was put in before this process began
			return room, true
		} else if !room && time.Since(q.counted) > countEvery {
			q.counted, count = time.Now(), true // whoever comes now need not
		}
		return room, count
	}
	room, count := look()
	if count {
		if _, err := s.Queue(ctx); err != nil {
			return false, err
		}
		room, _ = look()
	}
	return room, nil
}

// Queue implements storage.Ledger.
func (s *Store) Queue(ctx context.Context) (storage.QueueStats, error) {
	var stats storage.QueueStats
	now := s.now()
	var counts storage.QueueCounts
	const some = "SELECT c.job.Created, c.job.LeaseEnds, c.job.Worker, c.job.Parked, c.job.NotBefore, c.job.Priority FROM c WHERE "
	for _, text := range []string{some + "c.due0 > 0", some + "c.due1 > 0"} {
		err := s.query(ctx, s.ledger, "count", "", text, 1000, nil, decode(func(j *storage.Job) bool {
			stats.Add(j, now)
			counts.Change(nil, j)
			return true
		}))
		if err != nil {
			return stats, err
		}
	}
	s.queue.mu.Lock()
	s.queue.counts, s.queue.counted = counts, time.Now()
	s.queue.mu.Unlock()
	return stats, nil
}

// Jobs implements storage.Ledger.
func (s *Store) Jobs(ctx context.Context, limit int) ([]storage.Job, error) {
	var jobs []storage.Job
	for _, text := range []string{"SELECT * FROM c WHERE c.due0 > 0", "SELECT * FROM c WHERE c.due1 > 0"} {
		if len(jobs) >= limit {
			break
		}
		err := s.query(ctx, s.ledger, "jobs", "", text, 1000, nil, decode(func(j *jobItem) bool {
			jobs = append(jobs, j.Job)
			return len(jobs) < limit
		}))
		if err != nil {
			return nil, err
		}
	}
	return jobs, nil
}

// Drop implements storage.Ledger.
func (s *Store) Drop(ctx context.Context, k storage.Key) error {
	for {
		j, err := s.job(ctx, "drop", k)
		if err == errAbsent || err == nil && j.ended() {
			return goproxy.NotFound("%s: there is no such job", k)
		} else if err != nil {
			return err
		}
		before := j.Job
		j.end(storage.ErrDropped)
		j.leave()
		if err := s.put(ctx, "drop", j); err == nil {
			s.queue.changed(&before, nil)
			s.queue.wake(k, storage.ErrDropped)
			return nil
		} else if !changed(err) {
			return err
		}
	}
}
