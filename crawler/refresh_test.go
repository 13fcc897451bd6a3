package crawler

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/memory"
)

// watches is the lists that are looked after.
func (r *refresher) watches() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.lists)
}

// A list that can't be had is not looked after, one that could be had when it is gone
// neither, nor one that has only failed; one that fails for a time is.
func TestRefreshRefused(t *testing.T) {
	answer := map[string]error{
		"gone.example/m": goproxy.NotFound("no such module"), "hg.example/m": goproxy.Errorf(http.StatusNotImplemented, "mercurial"),
		"forbidden.example/m": goproxy.Errorf(http.StatusForbidden, "no"), "away.example/m": goproxy.Errorf(http.StatusBadGateway, "away"),
	}
	var mu sync.Mutex
	counts := map[string]int{}
	o := options(source{list: func(_ context.Context, path string) ([]string, error) {
		mu.Lock()
		defer mu.Unlock()
		counts[path]++
		return []string{"v1.0.0"}, answer[path]
	}})
	asked := func(path string) int {
		mu.Lock()
		defer mu.Unlock()
		return counts[path]
	}
	say := func(path string, err error) {
		mu.Lock()
		defer mu.Unlock()
		answer[path] = err
	}
	o.Attempts = 1
	o.Ahead = Ahead{Refresh: 72 * time.Hour, MaxStale: 10 * time.Minute, Parallel: 8}
	inBubble(t, memory.New(0, nil), o, func(t *testing.T, c *Crawler) {
		for _, path := range slices.Collect(maps.Keys(answer)) {
			for range 2 { // the second is answered from what is known
				if _, err := c.List(t.Context(), path); err == nil {
					t.Errorf("%s has a list", path)
				}
			}
		}
		if n := c.refresh.watches(); n != 0 {
			t.Errorf("%d lists are looked after that nobody has seen", n)
		}
		if _, err := c.List(t.Context(), "fine.example/m"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Minute)
		if n := asked("fine.example/m"); n < 3 || asked("gone.example/m") != 1 || asked("hg.example/m") != 1 || c.refresh.watches() != 1 {
			t.Errorf("one that is there was asked for %d times, one that is gone %d", n, asked("gone.example/m"))
		}
		say("fine.example/m", goproxy.Errorf(http.StatusBadGateway, "away"))
		time.Sleep(20 * time.Minute)
		if c.refresh.watches() != 1 {
			t.Error("a list that fails for a time is looked after no more")
		}
		say("fine.example/m", goproxy.NotFound("it was removed"))
		time.Sleep(3 * time.Hour)
		before := asked("fine.example/m")
		time.Sleep(3 * time.Hour)
		if asked("fine.example/m") != before || c.refresh.watches() != 0 {
			t.Errorf("a list that is gone was asked for %d times more; %d are looked after", asked("fine.example/m")-before, c.refresh.watches())
		}
	})
}

// Of the lists that are looked after it is known whether they have changed, and not what is in
// them: up to 50,000 of any length are.
func TestWatchedMemory(t *testing.T) {
	r := &refresher{lists: map[string]*watched{}}
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	for i := range 20 {
		path := fmt.Sprintf("example.com/m%d", i)
		r.lists[path] = &watched{}
		versions := make([]string, 10_000)
		for j := range versions {
			versions[j] = fmt.Sprintf("v1.%d.%d", i, j)
		}
		r.looked(path, time.Now(), versions, time.Minute, time.Hour)
	}
	if n := heap() - before; n > 1<<20 {
		t.Errorf("20 lists of 10,000 versions: %d bytes are kept", n)
	}
	runtime.KeepAlive(r)
}

// The lists that were asked for longest ago make room.
func TestRefreshForgets(t *testing.T) {
	o := options(source{list: func(context.Context, string) ([]string, error) { return []string{"v1.0.0"}, nil }})
	o.Ahead = Ahead{Refresh: time.Hour}
	s := memory.New(0, nil)
	c := New(s, s, o)
	for i := range maxWatched {
		c.refresh.lists[fmt.Sprintf("old.example/m%d", i)] = &watched{asked: time.Now().Add(time.Duration(i-maxWatched) * time.Millisecond)}
	}
	c.watch("old.example/m3", nil) // by somebody, just now
	c.watch("new.example/m", nil)
	for path, want := range map[string]bool{"new.example/m": true, "old.example/m3": true, "old.example/m0": false, "old.example/m4999": false, "old.example/m5001": true} {
		if _, ok := c.refresh.lists[path]; ok != want {
			t.Errorf("%s is looked after: %v", path, ok)
		}
	}
	if n := c.refresh.watches(); n != maxWatched*9/10+1 {
		t.Errorf("%d lists", n)
	}
}

// waits counts what is waited for, and gives up where that has no end.
type waits struct {
	*memory.Store
	n int
}

func (w *waits) Wait(ctx context.Context, k storage.Key) error {
	if w.n++; w.n > 1000 {
		return goproxy.Errorf(http.StatusInternalServerError, "waited for 1000 times")
	}
	return w.Store.Wait(ctx, k)
}

// Who comes in the last second of a job that is parked for a bound sleeps through it, and
// has the answer of the next attempt.
func TestWaitForParked(t *testing.T) {
	broken := true
	o := options(source{list: func(context.Context, string) ([]string, error) {
		if broken {
			return nil, goproxy.Busy(time.Second, "busy")
		}
		return []string{"v1.0.0"}, nil
	}})
	o.Attempts = 1
	s := &waits{Store: memory.New(0, nil)}
	inBubble(t, s, o, func(t *testing.T, c *Crawler) {
		k := storage.Key{Path: "example.com/m", File: storage.FileList}
		job, err := s.Start(t.Context(), jobOf(t.Context(), k, 0), "w", time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		job.Parked = true
		if err := s.Retry(t.Context(), job, time.Minute, goproxy.Busy(time.Second, "busy")); err != nil {
			t.Fatal(err)
		}
		if _, err := c.List(t.Context(), k.Path); goproxy.Status(err) != 503 || s.n != 1 || !strings.Contains(err.Error(), "busy") {
			t.Errorf("a minute before: %v, waited for %d times", err, s.n)
		}
		time.Sleep(59*time.Second + 300*time.Millisecond)
		broken, s.n = false, 0
		began := time.Now()
		if _, err := c.List(t.Context(), k.Path); err != nil || time.Since(began) > 5*time.Second || s.n > 10 {
			t.Errorf("in the last second: %v after %v, waited for %d times", err, time.Since(began), s.n)
		}
	})
}

// A clock that was an hour ahead, and is set back, leaves answers of an hour to come: lists
// are asked for again, and what is looked after is looked at.
func TestClockSetBack(t *testing.T) {
	var mu sync.Mutex
	asked := 0
	o := options(source{list: func(context.Context, string) ([]string, error) {
		mu.Lock()
		defer mu.Unlock()
		asked++
		return []string{"v1.0.0"}, nil
	}})
	o.Ahead = Ahead{Refresh: 24 * time.Hour, MaxStale: 10 * time.Minute, Parallel: 8}
	s := memory.New(0, nil)
	inBubble(t, s, o, func(t *testing.T, c *Crawler) {
		k := storage.Key{Path: "example.com/m", File: storage.FileList}
		for i, ahead := range []time.Duration{time.Hour, time.Minute} {
			if err := s.SetKnown(t.Context(), k, &storage.Known{Checked: time.Now().Add(ahead).UTC(), Versions: []string{"v0.9.0"}}); err != nil {
				t.Fatal(err)
			}
			l, err := c.List(t.Context(), k.Path)
			if want := []string{"v1.0.0", "v0.9.0"}[i]; err != nil || !slices.Equal(l.Versions, []string{want}) {
				t.Errorf("checked %v from now: %v, %v", ahead, l, err)
			}
		}
		if err := s.SetKnown(t.Context(), k, &storage.Known{Checked: time.Now().Add(24 * time.Hour).UTC()}); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		before := asked
		mu.Unlock()
		time.Sleep(10 * time.Minute)
		mu.Lock()
		defer mu.Unlock()
		if asked == before {
			t.Error("a list that is looked after was not looked at")
		}
	})
}
