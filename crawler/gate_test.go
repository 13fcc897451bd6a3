package crawler

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/memory"
)

func fill(g *gate, l lane, p storage.Priority) (leave []func()) {
	for f := g.try(l, p); f != nil; f = g.try(l, p) {
		leave = append(leave, f)
	}
	return leave
}

// However many lanes take all they can get, one after the other, the next finds a place:
// with the default of 256 places more than 20 do, with few places some.
func TestGateShares(t *testing.T) {
	for _, tc := range []struct{ places, first, ahead, lanes int }{{256, 52, 29, 20}, {64, 32, 22, 6}, {8, 4, 3, 3}, {2, 1, 1, 2}, {1, 1, 1, 1}, {0, 1, 1, 1}} {
		g := newGate(tc.places, 0)
		if n := len(fill(newGate(tc.places, 0), lane{host: "a"}, storage.Ahead)); n != tc.ahead {
			t.Errorf("%d places: ahead of demand a lane gets %d, want %d", tc.places, n, tc.ahead)
		}
		lanes := 0
		for ; g.room(); lanes++ {
			n := len(fill(g, lane{host: fmt.Sprint(lanes)}, storage.Demand))
			if n == 0 || lanes == 0 && n != tc.first {
				t.Errorf("%d places: lane %d gets %d, the first is to get %d", tc.places, lanes, n, tc.first)
				break
			}
		}
		if lanes < tc.lanes || g.taken != max(1, tc.places) {
			t.Errorf("%d places: %d lanes took %d", tc.places, lanes, g.taken)
		}
	}
	// Ahead of demand half of all are taken at most, by however many lanes.
	g := newGate(256, 0)
	for i := range 100 {
		fill(g, lane{host: fmt.Sprint(i)}, storage.Ahead)
	}
	if g.taken != 128 || g.ahead != 128 {
		t.Errorf("%d places are taken ahead of demand, %d in all", g.ahead, g.taken)
	}
}

// Who waits has its turn in its order, demand first, at the moment when a place is free.
func TestGateOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(2, 100)
		l := lane{host: "a"}
		first, err := g.enter(t.Context(), l, storage.Demand)
		if err != nil {
			t.Fatal(err)
		}
		var order []string
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		wait := func(ctx context.Context, name string, p storage.Priority) {
			wg.Go(func() {
				leave, err := g.enter(ctx, l, p)
				if err != nil {
					order = append(order, name+" left")
					return
				}
				order = append(order, name)
				time.Sleep(time.Second)
				leave()
			})
			synctest.Wait()
			time.Sleep(time.Millisecond)
		}
		wait(t.Context(), "ahead 1", storage.Ahead)
		wait(ctx, "demand 1", storage.Demand)
		wait(t.Context(), "ahead 2", storage.Ahead)
		wait(t.Context(), "demand 2", storage.Demand)
		wait(t.Context(), "demand 3", storage.Demand)
		if g.waits() != 5 || g.try(l, storage.Demand) != nil {
			t.Errorf("%d wait", g.waits())
		}
		// Another lane is not in that line.
		other := g.try(lane{host: "b"}, storage.Demand)
		if other == nil {
			t.Fatal("another lane finds no place")
		}
		other()
		cancel()
		synctest.Wait()
		began := time.Now()
		first()
		wg.Wait()
		if got := strings.Join(order, ", "); got != "demand 1 left, demand 2, demand 3, ahead 1, ahead 2" || time.Since(began) != 4*time.Second {
			t.Errorf("%s; in %v", got, time.Since(began))
		}
		if g.taken != 0 || g.ahead != 0 || g.waiting != 0 || len(g.lanes) != 0 {
			t.Errorf("what is left: %+v", g)
		}
		ended, stop := context.WithCancel(t.Context())
		stop()
		if _, err := g.enter(ended, l, storage.Demand); !errors.Is(err, context.Canceled) {
			t.Errorf("entered after the end: %v", err)
		}
	})
}

// A line that is full refuses at once, and leaves room for other lanes' lines.
func TestGateLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(1, 100)
		ctx, cancel := context.WithCancel(t.Context())
		leave := g.try(lane{host: "other"}, storage.Demand)
		var wg sync.WaitGroup
		refused := map[string]int{}
		for _, host := range []string{"a", "b", "c"} {
			for range 100 {
				wg.Go(func() {
					if _, err := g.enter(ctx, lane{host: host}, storage.Demand); goproxy.Status(err) == 503 && retryAfter(err) > 0 {
						refused[host]++
					}
				})
				synctest.Wait()
			}
		}
		if refused["a"] != 50 || refused["b"] != 75 || refused["c"] != 87 {
			t.Errorf("refused: %v", refused)
		}
		cancel()
		wg.Wait()
		leave()
		if g.waiting != 0 || len(g.lanes) != 0 {
			t.Errorf("what is left: %+v", g)
		}
	})
}

// Where all places are taken and many wait, a lane that is new has its turn after as many
// others as there are lanes.
func TestGateRoundRobin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(1, 1000)
		first := g.try(lane{host: "first"}, storage.Demand)
		var mu sync.Mutex
		var order []string
		var wg sync.WaitGroup
		wait := func(host string) {
			wg.Go(func() {
				leave, err := g.enter(t.Context(), lane{host: host}, storage.Demand)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				order = append(order, host)
				mu.Unlock()
				time.Sleep(time.Second)
				leave()
			})
			synctest.Wait()
		}
		for _, host := range []string{"a", "b", "c"} {
			for range 20 {
				wait(host)
				time.Sleep(time.Millisecond)
			}
		}
		first()
		time.Sleep(10 * time.Second)
		wait("new")
		wg.Wait()
		if i := slices.Index(order, "new"); len(order) != 61 || i < 10 || i > 13 {
			t.Errorf("%d had a turn, the new one as number %d", len(order), i)
		}
		if got := strings.Join(order[:6], ""); got != "abcabc" {
			t.Errorf("the first turns: %s", got)
		}
	})
}

// Whatever happens in whatever order: no place is given twice, none is lost, and nobody
// waits who could have one.
func TestGateRandom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(20, 200)
		random := rand.New(rand.NewPCG(1, 2))
		var mu sync.Mutex
		var wg sync.WaitGroup
		in := 0
		for range 3000 {
			l := lane{host: fmt.Sprint(random.IntN(8))}
			p := storage.Priority(random.IntN(2))
			patience, stay := time.Duration(random.IntN(300))*time.Millisecond, time.Duration(random.IntN(100))*time.Millisecond
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				leave, err := g.enter(ctx, l, p)
				if err != nil {
					return
				}
				mu.Lock()
				if in++; in > 20 {
					t.Errorf("%d are in", in)
				}
				mu.Unlock()
				time.Sleep(stay)
				mu.Lock()
				in--
				mu.Unlock()
				leave()
			})
			if random.IntN(4) == 0 {
				time.Sleep(time.Duration(random.IntN(8)) * time.Millisecond)
			}
			synctest.Wait()
			g.mu.Lock()
			for l, q := range g.lanes {
				for p := range q.waiting {
					if len(q.waiting[p]) > 0 && g.may(q, storage.Priority(p)) {
						t.Errorf("%v waits with priority %d though it may enter", l, p)
					}
				}
			}
			g.mu.Unlock()
		}
		wg.Wait()
		if g.taken != 0 || g.ahead != 0 || g.waiting != 0 || len(g.lanes) != 0 {
			t.Errorf("what is left: %+v", g)
		}
	})
}

// slow is an upstream of which some hosts take their time for everything; it counts.
type slow struct {
	takes func(host string) time.Duration
	mu    sync.Mutex
	asked map[string]int
}

func (s *slow) wait(ctx context.Context, path, what string) error {
	s.mu.Lock()
	if s.asked == nil {
		s.asked = map[string]int{}
	}
	s.asked[path+what]++
	s.mu.Unlock()
	host, _, _ := strings.Cut(path, "/")
	timer := time.NewTimer(s.takes(host))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *slow) source() goproxy.Source {
	return source{
		list: func(ctx context.Context, path string) ([]string, error) {
			return []string{"v1.0.0"}, s.wait(ctx, path, " list")
		},
		resolve: func(ctx context.Context, path, query string) error { return s.wait(ctx, path, "@"+query+".info") },
		mod:     func(ctx context.Context, m module.Version) error { return s.wait(ctx, m.Path, "@"+m.Version+".mod") },
		zip:     func(ctx context.Context, m module.Version) error { return s.wait(ctx, m.Path, "@"+m.Version+".zip") },
	}
}

// asks is some of what clients ask for, who wait as long as clients do.
func asks(ctx context.Context, wg *sync.WaitGroup, n int, f func(ctx context.Context, i int)) {
	for i := range n {
		wg.Go(func() {
			one, stop := context.WithTimeout(ctx, 50*time.Second)
			defer stop()
			f(one, i)
		})
	}
}

// slowHosts are as slow as their name says; all others answer at once.
func slowHosts(host string) time.Duration {
	if strings.HasPrefix(host, "slow") {
		return 20 * time.Second
	}
	return 0
}

func promptly(t *testing.T, what string, f func() error) {
	t.Helper()
	began := time.Now()
	if err := f(); err != nil || time.Since(began) > 10*time.Millisecond {
		t.Errorf("%s took %v: %v", what, time.Since(began), err)
	}
}

// However many requests there are for hosts that are slow, one for a host that is not
// is answered at once; and so is a list of a host whose files are slow to come.
func TestSlowHosts(t *testing.T) {
	s := memory.New(20_000, nil)
	up := &slow{takes: slowHosts}
	o := options(up.source())
	o.Workers = 256 // the default
	inBubble(t, s, o, func(t *testing.T, c *Crawler) {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for host := range 8 {
			asks(ctx, &wg, 100, func(ctx context.Context, i int) { c.List(ctx, fmt.Sprintf("slow%d.example/m%d", host, i)) })
			asks(ctx, &wg, 100, func(ctx context.Context, i int) {
				c.Mod(ctx, module.Version{Path: fmt.Sprintf("slow%d.example/m%d", host, i), Version: "v1.0.0"})
			})
			asks(ctx, &wg, 30, func(ctx context.Context, i int) {
				c.Zip(ctx, module.Version{Path: fmt.Sprintf("slow%d.example/m%d", host, i), Version: "v1.0.0"})
			})
			time.Sleep(time.Second)
		}
		for i := range 10 {
			m := module.Version{Path: fmt.Sprintf("fast.example/m%d", i), Version: "v1.0.0"}
			promptly(t, "a list", func() error { _, err := c.List(t.Context(), m.Path); return err })
			promptly(t, "a version", func() error { _, err := c.Resolve(t.Context(), m.Path, m.Version); return err })
			promptly(t, "a go.mod file", func() error { _, err := c.Mod(t.Context(), m); return err })
			time.Sleep(3 * time.Second)
		}
		cancel()
		wg.Wait()
	})
	for what, n := range up.asked {
		if n != 1 {
			t.Errorf("%s was asked for %d times", what, n)
		}
	}
}

// Zips take their time: neither the lists of their own host nor another host's zips wait
// for them.
func TestSlowZips(t *testing.T) {
	s := memory.New(20_000, nil)
	up := &slow{takes: slowHosts}
	inBubble(t, s, options(up.source()), func(t *testing.T, c *Crawler) {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		asks(ctx, &wg, 120, func(ctx context.Context, i int) {
			c.Zip(ctx, module.Version{Path: fmt.Sprintf("slow.example/m%d", i), Version: "v1.0.0"})
		})
		time.Sleep(time.Second)
		promptly(t, "another host's zip", func() error {
			b, err := c.Zip(t.Context(), module.Version{Path: "fast.example/m", Version: "v1.0.0"})
			if err == nil {
				b.Close()
			}
			return err
		})
		promptly(t, "another host's list", func() error { _, err := c.List(t.Context(), "fast.example/m"); return err })
		began := time.Now()
		if _, err := c.List(t.Context(), "slow.example/m"); err != nil || time.Since(began) > 21*time.Second {
			t.Errorf("a list of the same host took %v: %v", time.Since(began), err)
		}
		cancel()
		wg.Wait()
	})
}

// The jobs that are in the queue, whose clients have left or that others have put there,
// are no more in the way than clients are: not of other hosts' jobs, and not of requests.
// Each is done, once, though there are more than go on at once, and two crawlers.
func TestSlowHostQueued(t *testing.T) {
	s := memory.New(20_000, nil)
	up := &slow{takes: slowHosts}
	inBubble(t, s, options(up.source()), func(t *testing.T, c *Crawler) {
		o := c.o
		o.Name = "another"
		another := New(s, s, o)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { another.Run(ctx) })
		key := func(host string, i int) storage.Key {
			return storage.Key{Path: fmt.Sprintf("%s/m%d", host, i), Query: "v1.0.0", File: storage.FileInfo}
		}
		for i := range 400 {
			if _, err := s.Enqueue(ctx, storage.Job{Key: key("slow.example", i), Priority: storage.Priority(i % 2)}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second) // they are claimed
		if _, err := s.Enqueue(ctx, storage.Job{Key: key("fast.example", 0), Priority: storage.Ahead}); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := s.Wait(ctx, key("fast.example", 0)); err != nil || time.Since(began) > 5*time.Second {
			t.Errorf("another host's job took %v: %v", time.Since(began), err)
		}
		promptly(t, "another host's list", func() error { _, err := c.List(ctx, "fast.example/m"); return err })
		// 400 jobs of 20 s, by two crawlers with 32 places, or 22 ahead of demand.
		for range 60 {
			if n, err := s.Queue(ctx); err != nil || n.Jobs == 0 {
				break
			}
			time.Sleep(10 * time.Second)
		}
		if jobs, err := s.Jobs(ctx, 500); err != nil || len(jobs) != 0 {
			t.Errorf("%d jobs are left: %v", len(jobs), err)
		}
		cancel()
		wg.Wait()
	})
	for what, n := range up.asked {
		if n != 1 {
			t.Errorf("%s was asked for %d times", what, n)
		}
	}
	if len(up.asked) != 402 {
		t.Errorf("%d things were asked for", len(up.asked))
	}
}

// Requests have their turn in their order, without a pause; what was asked for by who has
// left is fetched all the same; more than a line takes are refused at once.
func TestTurns(t *testing.T) {
	s := memory.New(20_000, nil)
	var mu sync.Mutex
	var order []string
	now, most := 0, 0
	o := options(source{list: func(ctx context.Context, path string) ([]string, error) {
		mu.Lock()
		order = append(order, path)
		now++
		most = max(most, now)
		mu.Unlock()
		time.Sleep(time.Second)
		mu.Lock()
		now--
		mu.Unlock()
		return []string{"v1.0.0"}, nil
	}})
	o.Workers = 4 // of which one host has two
	inBubble(t, s, o, func(t *testing.T, c *Crawler) {
		var wg sync.WaitGroup
		began := time.Now()
		for i := range 100 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 30500*time.Millisecond)
				defer cancel()
				if _, err := c.List(ctx, fmt.Sprintf("a.example/m%02d", i)); (err != nil) != (i >= 60) {
					t.Errorf("%d: %v after %v", i, err, time.Since(began))
				}
			})
			synctest.Wait()
		}
		wg.Wait()
		time.Sleep(21 * time.Second)
		synctest.Wait()
		if len(order) != 100 || most != 2 {
			t.Errorf("%d lists were fetched, %d at once", len(order), most)
		}
		for i := 0; i < len(order); i += 2 { // two begin at the same moment
			slices.Sort(order[i : i+2])
		}
		if !slices.IsSorted(order) {
			t.Errorf("the order is %v", order)
		}
		c.workers.line = 10
		refused := 0
		for i := range 20 {
			wg.Go(func() {
				began := time.Now()
				_, err := c.List(t.Context(), fmt.Sprintf("b.example/m%d", i))
				if err == nil {
					return
				}
				mu.Lock()
				defer mu.Unlock()
				if refused++; goproxy.Status(err) != 503 || retryAfter(err) != lineFull || time.Since(began) != 0 {
					t.Errorf("%d after %v: %v", goproxy.Status(err), time.Since(began), err)
				}
			})
			synctest.Wait()
		}
		wg.Wait()
		if refused != 13 { // two go on, five wait
			t.Errorf("%d were refused", refused)
		}
	})
}

// A crawler that is told to stop leaves what waits for its turn to another; so nobody who
// waits notices.
func TestTurnsGoOn(t *testing.T) {
	s := memory.New(20_000, nil)
	up := &slow{takes: func(string) time.Duration { return time.Second }}
	o := options(up.source())
	inBubble(t, s, o, func(t *testing.T, c *Crawler) {
		o.Name = "another"
		another := New(s, s, o)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan bool)
		go func() { another.Run(ctx); close(ended) }()
		synctest.Wait()
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				path := fmt.Sprintf("a.example/m%d", i)
				_, err := another.List(t.Context(), path)
				if goproxy.Status(err) == 503 { // it was being fetched
					_, err = c.List(t.Context(), path)
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		time.Sleep(500 * time.Millisecond)
		stop()
		<-ended
		began := time.Now()
		wg.Wait()
		if d := time.Since(began); d > 25*time.Second { // clients wait for 50
			t.Errorf("it took another %v", d)
		}
	})
}

// The queue's jobs have their turns among the requests, however many there are of these.
func TestQueueAmongRequests(t *testing.T) {
	s := memory.New(20_000, nil)
	o := options((&slow{takes: func(string) time.Duration { return time.Second }}).source())
	o.Workers = 4
	inBubble(t, s, o, func(t *testing.T, c *Crawler) {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for host := range 10 {
			asks(ctx, &wg, 100, func(ctx context.Context, i int) { c.List(ctx, fmt.Sprintf("host%d.example/m%d", host, i)) })
		}
		time.Sleep(5 * time.Second)
		began := time.Now()
		var keys []storage.Key
		for i := range 5 {
			keys = append(keys, storage.Key{Path: fmt.Sprintf("other%d.example/m", i), File: storage.FileList})
			if _, err := s.Enqueue(ctx, storage.Job{Key: keys[i], Priority: storage.Demand}); err != nil {
				t.Fatal(err)
			}
		}
		for _, k := range keys {
			if err := s.Wait(ctx, k); err != nil {
				t.Error(err)
			}
		}
		if d := time.Since(began); d > 30*time.Second || c.workers.waits() < 100 {
			t.Errorf("5 jobs of the queue took %v, with %d requests that wait", d, c.workers.waits())
		}
		cancel()
		wg.Wait()
	})
}

// No more wait than MaxWaiting says, of one host half as many; the next is told at once.
func TestMaxWaiting(t *testing.T) {
	o := options(source{list: func(ctx context.Context, path string) ([]string, error) {
		return []string{"v1.0.0"}, pause(ctx, time.Second)
	}})
	o.Workers, o.MaxWaiting = 1, 10
	inBubble(t, memory.New(0, nil), o, func(t *testing.T, c *Crawler) {
		var wg sync.WaitGroup
		var refused, waited atomic.Int64
		for i := range 20 {
			wg.Go(func() {
				began := time.Now()
				_, err := c.List(t.Context(), fmt.Sprintf("a.example/m%d", i))
				switch {
				case err == nil:
					waited.Add(1)
				case goproxy.Status(err) == 503 && retryAfter(err) == lineFull && time.Since(began) == 0:
					refused.Add(1)
				default:
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		if n := c.workers.waits(); n != 5 {
			t.Errorf("%d wait", n)
		}
		wg.Wait()
		if waited.Load() != 6 || refused.Load() != 14 {
			t.Errorf("%d were fetched, %d refused", waited.Load(), refused.Load())
		}
	})
}
