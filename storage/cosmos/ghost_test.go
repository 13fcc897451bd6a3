package cosmos

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/athensctl/athensctl/internal/cosmosfake"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/storagetest"
)

// A version is deleted while its entry of the index waits, or is being written, and whoever puts
// it leaves, before that or when the entry is written and nothing else is: the entry comes no
// more, or goes again.
func TestNoGhosts(t *testing.T) {
	ctx := context.Background()
	for _, when := range []string{"it waits", "it is being written", "it is written"} {
		t.Run(when, func(t *testing.T) {
			f, a := fake(t)
			dir := t.TempDir()
			s, other := open(t, a, dir, Options{}), open(t, a, dir, Options{})
			first := storagetest.New("example.com/first", "v1.0.0", "")
			if err := s.Put(ctx, first.Version, first.Files()); err != nil { // the page is there
				t.Fatal(err)
			}
			held, release := make(chan struct{}), make(chan struct{})
			leaves, leave := context.WithCancel(ctx)
			defer leave()
			var once sync.Once
			f.SetFault(func(c cosmosfake.Call) *cosmosfake.Fault {
				switch {
				case c.Op == "batch" && strings.HasPrefix(c.PK, "f/i/"):
					once.Do(func() { close(held); <-release })
				case when == "it is written" && c.Op == "create item" && strings.HasPrefix(c.PK, "c/"):
					leave()
					return &cosmosfake.Fault{Delay: time.Minute}
				}
				return nil
			})
			var wg sync.WaitGroup
			busy := storagetest.New("example.com/busy", "v1.0.0", "")
			if when == "it waits" {
				wg.Go(func() {
					if err := s.Put(ctx, busy.Version, busy.Files()); err != nil {
						t.Error(err)
					}
				})
				<-held
			}
			v := storagetest.New("example.com/m", "v1.0.0", "")
			failed := make(chan error, 1)
			go func() { failed <- s.Put(leaves, v.Version, v.Files()) }()
			<-held
			if when == "it waits" {
				for began := time.Now(); ; time.Sleep(time.Millisecond) {
					s.index.mu.Lock()
					n := len(s.index.pending)
					s.index.mu.Unlock()
					if n == 1 {
						break
					} else if time.Since(began) > 10*time.Second {
						t.Fatal("the entry does not wait")
					}
				}
			}
			left := func() {
				if err := <-failed; err == nil {
					t.Error("the Put that was left succeeded")
				}
			}
			if when != "it is written" {
				leave()
				left()
			}
			if err := other.Delete(ctx, v.Version); err != nil {
				t.Fatal(err)
			}
			close(release)
			if when == "it is written" {
				left()
			}
			wg.Wait()
			// What is written or looked after behind takes a moment.
			for began := time.Now(); time.Since(began) < 10*time.Second; time.Sleep(50 * time.Millisecond) {
				s.index.mu.Lock()
				idle := !s.index.writing
				s.index.mu.Unlock()
				if n, err := count(ctx, other, v); err != nil {
					t.Fatal(err)
				} else if idle && n == 0 && time.Since(began) > lookAfterPause+500*time.Millisecond {
					break
				}
			}
			wantAgree(t, other, v, when)
		})
	}
}

// count is how many entries of the index a version has.
func count(ctx context.Context, s *Store, v storagetest.Version) (n int, err error) {
	entries, err := s.Index(ctx, time.Time{}, 1000)
	for _, e := range entries {
		if e.Path == v.Path && e.Version == v.Version.Version {
			n++
		}
	}
	return n, err
}

// A replica that has begun anew counts the queue that there is, and while it runs what
// others do with it.
func TestQueueMaxAfterRestart(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	_, a := fake(t)
	dir := t.TempDir()
	job := func(i int) storage.Job {
		return storage.Job{Key: storage.Key{Path: fmt.Sprintf("example.com/m%d", i), Query: "v1.0.0", File: storage.FileMod}}
	}
	s := open(t, a, dir, Options{QueueMax: 5})
	for i := range 5 {
		if added, err := s.Enqueue(ctx, job(i)); !added || err != nil {
			t.Fatalf("job %d: %v, %v", i, added, err)
		}
	}
	again := open(t, a, dir, Options{QueueMax: 5})
	for i := 5; i < 8; i++ {
		if added, err := again.Enqueue(ctx, job(i)); added || err != storage.ErrQueueFull {
			t.Errorf("job %d after a restart: %v, %v; want that the queue is full", i, added, err)
		}
	}
	if added, err := again.Enqueue(ctx, job(0)); added || err != nil { // is joined
		t.Errorf("a job that is there: %v, %v", added, err)
	}
	// Run counts at its start: another has emptied the queue, and filled it again.
	for i := range 5 {
		if err := s.Drop(ctx, job(i).Key); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() { again.Run(ctx) })
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		again.queue.mu.Lock()
		n := again.queue.counts.Demand
		again.queue.mu.Unlock()
		if n == 0 {
			break
		} else if time.Since(began) > 5*time.Second {
			t.Fatalf("Run has not counted: %d jobs", n)
		}
	}
	cancel()
	wg.Wait()
}

// However many jobs a replica has seen whose time is to come, those that are due are offered, those that
// others have put in too, and the urgent ones first.
func TestManyJobsToCome(t *testing.T) {
	ctx := context.Background()
	_, a := fake(t)
	dir := t.TempDir()
	s, other := open(t, a, dir, Options{}), open(t, a, dir, Options{})
	job := func(i int, p storage.Priority) storage.Job {
		return storage.Job{Key: storage.Key{Path: fmt.Sprintf("example.com/m%d", i), Query: "v1.0.0", File: storage.FileMod}, Priority: p}
	}
	now := time.Now()
	for i := range seenMax {
		j := &jobItem{ID: fmt.Sprint(i), Job: job(i, storage.Ahead)}
		j.Job.NotBefore, j.Job.Parked = now.Add(time.Hour), true
		j.setDue()
		s.queue.see(j)
	}
	want := []storage.Job{job(seenMax+1, storage.Demand), job(seenMax, storage.Ahead)}
	for i, to := range []*Store{other, s} {
		if added, err := to.Enqueue(ctx, want[i]); !added || err != nil {
			t.Fatal(added, err)
		}
	}
	for _, want := range want {
		if j, err := s.Claim(ctx, "w", time.Minute); err != nil || j == nil || j.Key != want.Key {
			t.Errorf("claimed %v, %v; want %v", j, err, want.Key)
		}
	}
	if n := len(s.queue.jobs); n > seenMax {
		t.Errorf("%d jobs are seen, at most %d are to be", n, seenMax)
	}
}

// A replica that has seen as many jobs as it may, all of them due, makes room for one that
// somebody waits for, and for no other.
func TestUrgentJobIsSeen(t *testing.T) {
	_, a := fake(t)
	s := open(t, a, t.TempDir(), Options{})
	now := time.Now()
	see := func(id string, p storage.Priority, due time.Time) {
		j := &jobItem{ID: id, Job: storage.Job{Priority: p, NotBefore: due}}
		j.setDue()
		s.queue.see(j)
	}
	for i := range seenMax {
		see(fmt.Sprint(i), storage.Ahead, now.Add(-time.Hour))
	}
	see("urgent", storage.Demand, now)
	see("another", storage.Ahead, now)
	if s.queue.jobs["urgent"] == nil || s.queue.jobs["another"] != nil || len(s.queue.jobs) != seenMax {
		t.Errorf("urgent is seen: %v; another: %v; %d jobs", s.queue.jobs["urgent"] != nil, s.queue.jobs["another"] != nil, len(s.queue.jobs))
	}
}
