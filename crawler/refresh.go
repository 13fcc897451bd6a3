package crawler

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/athensctl/athensctl/storage"
)

// refresher keeps the lists from growing old that somebody has asked this crawler for
// lately. It remembers them in memory: what a restart forgets is asked for again.
type refresher struct {
	mu    sync.Mutex
	lists map[string]*watched
}

type watched struct {
	asked    time.Time     // by somebody, last
	next     time.Time     // when to look
	interval time.Duration // between two looks
	versions []string      // when it was looked at last
}

// maxWatched bounds the memory; lists beyond it are as fresh as demand makes them.
const maxWatched = 50_000

// watch notes that somebody has asked for a list.
func (c *Crawler) watch(path string) {
	if c.o.Ahead.Refresh <= 0 {
		return
	}
	r := &c.refresh
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	w := r.lists[path]
	if w == nil {
		if len(r.lists) >= maxWatched {
			return
		}
		w = &watched{interval: c.o.Freshness, next: now.Add(c.o.Freshness)}
		r.lists[path] = w
	}
	w.asked = now
}

// due takes the lists whose time has come, up to limit; the most overdue first.
func (r *refresher) due(now time.Time, keep time.Duration, limit int) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var paths []string
	for path, w := range r.lists {
		switch {
		case now.Sub(w.asked) > keep:
			delete(r.lists, path)
		case !w.next.After(now):
			paths = append(paths, path)
		}
	}
	slices.SortFunc(paths, func(a, b string) int { return r.lists[a].next.Compare(r.lists[b].next) })
	return paths[:min(len(paths), limit)]
}

// looked notes what a look has found: a list that has changed is looked at again as
// soon as it may be, one that has not after twice the time, but before it is so old
// that a reader would have to wait.
func (r *refresher) looked(path string, now time.Time, versions []string, least, most time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.lists[path]
	if w == nil {
		return
	}
	if w.versions != nil && !slices.Equal(w.versions, versions) {
		w.interval = least
	} else {
		w.interval = max(least, min(2*w.interval, most))
	}
	w.versions = append([]string{}, versions...)
	w.next = now.Add(w.interval)
}

// refreshDue looks at the lists whose time has come.
func (c *Crawler) refreshDue(ctx context.Context) error {
	a := c.o.Ahead
	paths := c.refresh.due(time.Now(), a.Refresh, 10*max(1, a.Parallel))
	return c.each(ctx, paths, func(ctx context.Context, path string) error {
		k := storage.Key{Path: path, File: storage.FileList}
		known, err := c.ledger.Known(ctx, k)
		// Somebody else may have looked; a list that is fresh is not asked for.
		if err == nil && time.Since(known.Checked) >= c.o.Freshness {
			err = c.bring(ctx, k)
			c.countAhead(path, err)
			known, err = c.ledger.Known(ctx, k)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var versions []string
		if err == nil {
			versions = known.Versions
		}
		c.refresh.looked(path, time.Now(), versions, c.o.Freshness, a.MaxStale*4/5)
		return nil
	})
}
