package storagetest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
)

func jobKey(i int) storage.Key {
	return storage.Key{Path: "example.com/m", Query: fmt.Sprintf("v1.%d.0", i), File: storage.FileZip}
}

func known(t *testing.T, b Backend) {
	_, l := b.open(t, t.TempDir(), time.Now)
	keys := []storage.Key{
		{Path: "example.com/M", File: storage.FileList}, {Path: "example.com/m", File: storage.FileList},
		{Path: "example.com/m", Query: "latest", File: storage.FileInfo}, {Path: "example.com/m", Query: "main", File: storage.FileInfo},
		{Path: "example.com/m", Query: "v1.0.0", File: storage.FileMod}, {Path: "example.com/m", Query: "v1.0.0", File: storage.FileZip},
	}
	for i, k := range keys {
		_, err := l.Known(ctx, k)
		wantErr(t, k.String(), err, fs.ErrNotExist)
		must(t, l.SetKnown(ctx, k, &storage.Known{Checked: time.Unix(int64(i), 0).UTC(), RefusedStatus: 404, Refused: fmt.Sprint(i), Validator: k.Path, Outdated: i%2 == 1}))
	}
	for i, k := range keys {
		if a, err := l.Known(ctx, k); err != nil || a.Refused != fmt.Sprint(i) || a.Validator != k.Path || a.Outdated != (i%2 == 1) || !a.Checked.Equal(time.Unix(int64(i), 0)) {
			t.Errorf("%s: %+v, %v", k, a, err)
		}
	}
}

// A list and the answer to "latest" stay, though upstream had refused them before;
// a refusal stays for an hour, another answer for 30 days.
func forget(t *testing.T, b Backend) {
	c := newClock()
	_, l := b.open(t, t.TempDir(), c.now)
	list, latest, branch, refused := storage.Key{Path: "example.com/m", File: storage.FileList},
		storage.Key{Path: "example.com/m", Query: goproxy.Latest, File: storage.FileInfo},
		storage.Key{Path: "example.com/m", Query: "main", File: storage.FileInfo}, jobKey(1)
	set := func(k storage.Key, a storage.Known) {
		t.Helper()
		a.Checked = c.now()
		must(t, l.SetKnown(ctx, k, &a))
	}
	later := func(d time.Duration, stay ...storage.Key) {
		t.Helper()
		c.advance(d)
		for i := range 20 { // some backends forget when they are written to
			must(t, l.SetKnown(ctx, storage.Key{Path: fmt.Sprint("example.com/other", i), File: storage.FileList}, &storage.Known{Checked: c.now()}))
		}
		for _, k := range stay {
			if a, err := l.Known(ctx, k); err != nil || k != refused && a.RefusedStatus != 0 {
				t.Errorf("%s, after %v: %+v, %v", k, d, a, err)
			}
		}
	}
	for _, k := range []storage.Key{list, latest, branch, refused} {
		set(k, storage.Known{RefusedStatus: 404, Refused: "not yet"})
	}
	c.advance(10 * time.Minute) // it is published
	set(list, storage.Known{Versions: []string{"v1.0.0"}})
	set(latest, storage.Known{Info: []byte(`{"Version":"v1.0.0"}`)})
	set(branch, storage.Known{Info: []byte(`{"Version":"v1.0.0"}`)})
	later(2*time.Hour, list, latest, branch) // upstream is down
	set(refused, storage.Known{RefusedStatus: 404, Refused: "still not"})
	c.advance(30 * time.Minute)
	set(refused, storage.Known{RefusedStatus: 404, Refused: "still not"})
	later(50*time.Minute, list, latest, branch, refused)
	later(29*24*time.Hour, list, latest, branch)
	later(1000*time.Hour, list, latest)
}

// Jobs come by priority, then by when they became due; one key is one job.
func queue(t *testing.T, b Backend) {
	c := newClock()
	_, l := b.open(t, t.TempDir(), c.now)
	if j, err := l.Claim(ctx, "w", time.Minute); j != nil || err != nil {
		t.Fatalf("an empty queue has %v, %v", j, err)
	}
	for i, p := range []storage.Priority{storage.Ahead, storage.Demand, storage.Ahead, storage.Demand} {
		c.advance(time.Second)
		added, err := l.Enqueue(ctx, storage.Job{Key: jobKey(i), Priority: p, Trace: fmt.Sprint("made ", i)})
		if !added || err != nil {
			t.Fatalf("job %d: %v, %v", i, added, err)
		}
	}
	for i := 2; i >= 1; i-- { // 2 is urgent now; 1 was
		added, err := l.Enqueue(ctx, storage.Job{Key: jobKey(i), Priority: storage.Demand, Trace: "wanted"})
		if added || err != nil {
			t.Errorf("the same key again: %v, %v", added, err)
		}
	}
	traces := map[int]string{0: "made 0", 1: "made 1", 2: "wanted", 3: "made 3"}
	_, err := l.Enqueue(ctx, storage.Job{Key: jobKey(9), NotBefore: c.now().Add(time.Hour)})
	must(t, err)
	if q, err := l.Queue(ctx); err != nil || q.Jobs != 5 || q.Claimed != 0 || q.Oldest < 3*time.Second {
		t.Errorf("queue: %+v, %v", q, err)
	}
	for _, want := range []int{1, 2, 3, 0} {
		j, err := l.Claim(ctx, "w", time.Minute)
		must(t, err)
		if j == nil || j.Key != jobKey(want) || j.Attempts != 1 || j.Trace != traces[want] {
			t.Fatalf("claimed %+v, want job %d of %q", j, want, traces[want])
		}
		must(t, l.Done(ctx, j, nil))
	}
	if j, _ := l.Claim(ctx, "w", time.Minute); j != nil {
		t.Errorf("claimed %v before its time", j)
	}
	c.advance(2 * time.Hour)
	j, err := l.Claim(ctx, "w", time.Minute)
	if j == nil || err != nil {
		t.Fatalf("the late job: %v, %v", j, err)
	}
	must(t, l.Retry(ctx, j, time.Minute, goproxy.Errorf(502, "broken")))
	if j, _ := l.Claim(ctx, "w", time.Minute); j != nil {
		t.Errorf("claimed %v before its delay", j)
	}
	c.advance(61 * time.Second)
	if j, err = l.Claim(ctx, "w", time.Minute); j == nil || j.LastErr != "broken" || j.Attempts != 2 {
		t.Errorf("after Retry: %+v, %v", j, err)
	}
}

// Start enqueues and claims in one step, and only what was not there.
func start(t *testing.T, b Backend) {
	c := newClock()
	_, l := b.open(t, t.TempDir(), c.now)
	j, err := l.Start(ctx, storage.Job{Key: jobKey(1), Trace: "made"}, "a", time.Minute)
	if j == nil || err != nil || j.Key != jobKey(1) || j.Worker != "a" || j.Attempts != 1 || j.Fence == 0 || j.Trace != "made" {
		t.Fatalf("Start: %+v, %v", j, err)
	}
	if again, err := l.Start(ctx, storage.Job{Key: jobKey(1)}, "b", time.Minute); again != nil || err != nil {
		t.Errorf("Start of a job that is claimed: %+v, %v", again, err)
	}
	if same, err := l.Start(ctx, storage.Job{Key: jobKey(1)}, "a", time.Minute); same == nil || err != nil || *same != *j {
		t.Errorf("Start again, without an answer to the first: %+v, %v, want %+v", same, err, j)
	}
	if other, err := l.Claim(ctx, "b", time.Minute); other != nil || err != nil {
		t.Errorf("claimed although it was started: %+v, %v", other, err)
	}
	must(t, l.Extend(ctx, j, 2*time.Minute))
	c.advance(3 * time.Minute)
	second, err := l.Claim(ctx, "b", time.Minute) // its worker is dead
	if second == nil || err != nil || second.Attempts != 2 {
		t.Fatalf("after the lease: %+v, %v", second, err)
	}
	wantErr(t, "Done of the first", l.Done(ctx, j, nil), storage.ErrLeaseLost)
	must(t, l.Done(ctx, second, nil))

	_, err = l.Enqueue(ctx, storage.Job{Key: jobKey(2), Priority: storage.Ahead})
	must(t, err)
	_, err = l.Enqueue(ctx, storage.Job{Key: jobKey(3), Priority: storage.Ahead})
	must(t, err)
	if j, err := l.Start(ctx, storage.Job{Key: jobKey(3)}, "a", time.Minute); j != nil || err != nil {
		t.Errorf("Start of a job that is queued: %+v, %v", j, err)
	}
	if j, err := l.Claim(ctx, "a", time.Minute); j == nil || err != nil || j.Key != jobKey(3) {
		t.Errorf("the job that Start made urgent is not the first: %+v, %v", j, err)
	}
}

// A parked job is nobody's until its time, whoever asks, and says why; jobs are
// listed, and can be dropped.
func parked(t *testing.T, b Backend) {
	c := newClock()
	_, l := b.open(t, t.TempDir(), c.now)
	j, err := l.Start(ctx, storage.Job{Key: jobKey(1)}, "a", time.Minute)
	if j == nil || err != nil {
		t.Fatalf("Start: %v, %v", j, err)
	}
	j.Parked, j.Attempts = true, 7
	must(t, l.Retry(ctx, j, time.Hour, goproxy.Errorf(502, "broken")))
	if added, err := l.Enqueue(ctx, storage.Job{Key: jobKey(1)}); added || err != nil {
		t.Errorf("Enqueue of a parked job: %v, %v", added, err)
	}
	if j, err := l.Start(ctx, storage.Job{Key: jobKey(1)}, "b", time.Minute); j != nil || err != nil {
		t.Errorf("Start of a parked job: %+v, %v", j, err)
	}
	if j, err := l.Claim(ctx, "b", time.Minute); j != nil || err != nil {
		t.Errorf("claimed a parked job: %+v, %v", j, err)
	}
	wait, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err = l.Wait(wait, jobKey(1))
	var e *goproxy.Error
	if goproxy.Status(err) != 502 || !strings.Contains(err.Error(), "broken (failed 7 times") || !errors.As(err, &e) || e.RetryAfter < 59*time.Minute {
		t.Errorf("Wait for a parked job: %v", err)
	}
	_, err = l.Enqueue(ctx, storage.Job{Key: jobKey(2), Priority: storage.Ahead})
	must(t, err)
	if q, err := l.Queue(ctx); err != nil || q.Jobs != 2 || q.Parked != 1 {
		t.Errorf("queue: %+v, %v", q, err)
	}
	jobs, err := l.Jobs(ctx, 10)
	must(t, err)
	for _, j := range jobs {
		if j.Parked != (j.Key == jobKey(1)) || j.Parked && (j.LastErr != "broken" || j.Attempts != 7) {
			t.Errorf("job %+v", j)
		}
	}
	if some, err := l.Jobs(ctx, 1); len(jobs) != 2 || len(some) != 1 || err != nil {
		t.Errorf("%d jobs, and %d of them when 1 is asked for: %v", len(jobs), len(some), err)
	}
	c.advance(61 * time.Minute)
	if j, err := l.Claim(ctx, "b", time.Minute); j == nil || err != nil || j.Key != jobKey(1) || j.Parked || j.Attempts != 8 {
		t.Fatalf("after its time: %+v, %v", j, err)
	} else {
		must(t, l.Drop(ctx, jobKey(1)))
		wantErr(t, "Done of a job that was dropped", l.Done(ctx, j, nil), storage.ErrLeaseLost)
	}
	must(t, l.Drop(ctx, jobKey(2)))
	wantErr(t, "Drop of no job", l.Drop(ctx, jobKey(2)), fs.ErrNotExist)
	if q, err := l.Queue(ctx); err != nil || q.Jobs != 0 {
		t.Errorf("queue at the end: %+v, %v", q, err)
	}
}

// A bound on the queue: who waits is not kept out by work ahead of demand or by what is
// parked, and a job that is there is joined, however full the queue is.
func full(t *testing.T, b Backend) {
	const bound = 6
	c := newClock()
	_, l := b.Open(t, t.TempDir(), Options{Now: c.now, QueueMax: bound})
	key := func(kind string, i int) storage.Key {
		return storage.Key{Path: "example.com/" + kind, Query: fmt.Sprintf("v1.%d.0", i), File: storage.FileZip}
	}
	// fill puts in jobs until there is no room for more.
	fill := func(kind string, p storage.Priority, want int) {
		t.Helper()
		n := 0
		for {
			added, err := l.Enqueue(ctx, storage.Job{Key: key(kind, n), Priority: p})
			if err != nil {
				wantErr(t, "a full queue", err, storage.ErrQueueFull)
				break
			}
			if !added || n > 2*bound {
				t.Fatalf("%s job %d: added %v", kind, n, added)
			}
			n++
		}
		if n != want {
			t.Errorf("room for %d jobs (%s), want %d", n, kind, want)
		}
	}
	// park parks whatever can be claimed.
	park := func(want int) {
		t.Helper()
		n := 0
		for ; ; n++ {
			j, err := l.Claim(ctx, "w", time.Minute)
			must(t, err)
			if j == nil {
				break
			}
			j.Parked = true
			must(t, l.Retry(ctx, j, time.Hour, goproxy.Errorf(502, "broken")))
		}
		if n != want {
			t.Errorf("%d jobs were to be parked, want %d", n, want)
		}
	}
	size := func(jobs, parked int) {
		t.Helper()
		if q, err := l.Queue(ctx); err != nil || q.Jobs != jobs || q.Parked != parked {
			t.Errorf("queue %+v, want %d jobs, %d parked: %v", q, jobs, parked, err)
		}
	}
	fill("ahead", storage.Ahead, bound/2)
	fill("demand", storage.Demand, bound/2)
	fill("more-ahead", storage.Ahead, 0)
	for _, k := range []storage.Key{key("demand", 0), key("ahead", 0)} {
		if added, err := l.Enqueue(ctx, storage.Job{Key: k}); added || err != nil {
			t.Errorf("%s is there already: %v, %v", k, added, err)
		}
		if j, err := l.Start(ctx, storage.Job{Key: k}, "w", time.Minute); j != nil || err != nil {
			t.Errorf("start of %s, which is there already: %v, %v", k, j, err)
		}
	}
	size(bound, 0)
	// Now 4 of them are Demand's; when all are parked 3 of those are remembered.
	park(bound)
	size(bound-1, bound-1)
	fill("second", storage.Demand, bound)
	park(bound)
	size(bound-1, bound-1)
	wantErr(t, "a parked job that was forgotten", l.Drop(ctx, key("second", 0)), fs.ErrNotExist)
	fill("third-ahead", storage.Ahead, 1)
	fill("third", storage.Demand, bound-1)
	// What is parked comes back when its time has come, and ends.
	c.advance(2 * time.Hour)
	for range 2*bound - 1 {
		j, err := l.Claim(ctx, "w", time.Minute)
		if j == nil || err != nil {
			t.Fatalf("a job whose time has come: %v, %v", j, err)
		}
		must(t, l.Done(ctx, j, nil))
	}
	size(0, 0)
	fill("fourth-ahead", storage.Ahead, bound/2)
	must(t, l.Drop(ctx, key("fourth-ahead", 0)))
	fill("fifth-ahead", storage.Ahead, 1)
	fill("fifth", storage.Demand, bound/2)
}

// A lease that ended lets another have the job; the first holder is fenced off.
func lease(t *testing.T, b Backend) {
	c := newClock()
	_, l := b.open(t, t.TempDir(), c.now)
	_, err := l.Enqueue(ctx, storage.Job{Key: jobKey(1)})
	must(t, err)
	first, err := l.Claim(ctx, "a", time.Minute)
	must(t, err)
	c.advance(50 * time.Second)
	must(t, l.Extend(ctx, first, time.Minute))
	c.advance(50 * time.Second)
	if j, _ := l.Claim(ctx, "b", time.Minute); j != nil {
		t.Fatal("claimed although the lease was extended")
	}
	c.advance(11 * time.Second)
	second, err := l.Claim(ctx, "b", time.Minute)
	if second == nil || err != nil || second.Fence <= first.Fence || second.Attempts != 2 {
		t.Fatalf("after the lease: %+v, %v", second, err)
	}
	wantErr(t, "Done of the first", l.Done(ctx, first, nil), storage.ErrLeaseLost)
	wantErr(t, "Retry of the first", l.Retry(ctx, first, 0, nil), storage.ErrLeaseLost)
	wantErr(t, "Extend of the first", l.Extend(ctx, first, time.Minute), storage.ErrLeaseLost)
	c.advance(2 * time.Minute) // late, but nobody has claimed it
	must(t, l.Done(ctx, second, nil))
	wantErr(t, "Done twice", l.Done(ctx, second, nil), storage.ErrLeaseLost)
}

func claimOnce(t *testing.T, b Backend) {
	_, l := b.open(t, t.TempDir(), time.Now)
	const jobs = 60
	for i := range jobs {
		_, err := l.Enqueue(ctx, storage.Job{Key: jobKey(i)})
		must(t, err)
	}
	var mu sync.Mutex
	seen := map[storage.Key]int{}
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for {
				j, err := l.Claim(ctx, fmt.Sprint(w), time.Minute)
				if err != nil {
					t.Error(err)
				}
				if j == nil || err != nil {
					return
				}
				mu.Lock()
				seen[j.Key]++
				mu.Unlock()
				if err := l.Done(ctx, j, nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for i := range jobs {
		if seen[jobKey(i)] != 1 {
			t.Errorf("job %d was claimed %d times", i, seen[jobKey(i)])
		}
	}
}

func wait(t *testing.T, b Backend) {
	_, l := b.open(t, t.TempDir(), time.Now)
	must(t, l.Wait(ctx, jobKey(1))) // no such job
	for _, tc := range []struct {
		name string
		end  func(*storage.Job) error
	}{
		{"done", func(j *storage.Job) error { return l.Done(ctx, j, nil) }},
		{"failed", func(j *storage.Job) error { return l.Done(ctx, j, goproxy.NotFound("no such thing")) }},
		{"retry", func(j *storage.Job) error { return l.Retry(ctx, j, time.Hour, goproxy.NotFound("no such thing")) }},
	} {
		name, end := tc.name, tc.end
		_, err := l.Enqueue(ctx, storage.Job{Key: jobKey(1)})
		must(t, err)
		j, err := l.Claim(ctx, "w", time.Minute)
		must(t, err)
		results := make(chan error, 5)
		for range cap(results) {
			go func() { results <- l.Wait(ctx, jobKey(1)) }()
		}
		time.Sleep(100 * time.Millisecond) // let them wait; those that come late miss the end
		must(t, end(j))
		for range cap(results) {
			select {
			case err := <-results:
				if name == "done" && err != nil {
					t.Errorf("%s: %v", name, err)
				}
				if name != "done" && (goproxy.Status(err) != 404 || err.Error() != "not found: no such thing") {
					t.Errorf("%s: %v", name, err)
				}
			case <-time.After(20 * time.Second):
				t.Fatalf("%s: a waiter was not woken", name)
			}
		}
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if err := l.Wait(short, jobKey(1)); err == nil { // it waits for its retry
		t.Error("Wait ended without a reason")
	}
}

func swap(t *testing.T, b Backend) {
	_, l := b.open(t, t.TempDir(), time.Now)
	if v, err := l.Load(ctx, "k"); v != nil || err != nil {
		t.Errorf("Load of nothing: %v, %v", v, err)
	}
	wantErr(t, "a value that is not there", l.CompareAndSwap(ctx, "k", []byte("x"), []byte("y")), storage.ErrSwapped)
	must(t, l.CompareAndSwap(ctx, "k", nil, []byte("1")))
	wantErr(t, "nothing, but there is", l.CompareAndSwap(ctx, "k", nil, []byte("y")), storage.ErrSwapped)
	if v, err := l.Load(ctx, "k"); string(v) != "1" || err != nil {
		t.Errorf("Load: %q, %v", v, err)
	}
	must(t, l.CompareAndSwap(ctx, "k", []byte("1"), nil))
	if v, err := l.Load(ctx, "k"); v != nil || err != nil {
		t.Errorf("Load after removal: %v, %v", v, err)
	}
}
