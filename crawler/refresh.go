package crawler

import (
	"cmp"
	"context"
	"hash/fnv"
	"io"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/athensctl/athensctl/goproxy"
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
	state    uint64        // a hash of the versions when it was looked at last; 0: there are none, or it is not known
	looking  bool          // somebody looks
}

// maxWatched bounds the memory. One more takes the place of those that were asked for
// longest ago, which are as fresh as demand makes them.
const maxWatched = 50_000

// watch notes that somebody has asked for a list, and how that ended. Only what there is,
// is looked after: the go command asks for each parent of a path, and others for what they
// make up.
func (c *Crawler) watch(path string, err error) {
	if c.o.Ahead.Refresh <= 0 {
		return
	}
	r := &c.refresh
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	w := r.lists[path]
	switch {
	case isRefusal(err):
		delete(r.lists, path)
		return
	case w == nil && err != nil:
		return
	case w == nil:
		if len(r.lists) >= maxWatched {
			r.forget()
		}
		w = &watched{interval: c.o.Freshness, next: now.Add(c.o.Freshness)}
		r.lists[path] = w
	}
	w.asked = now
}

// forget makes room: for a tenth, so that it is not done for each.
func (r *refresher) forget() {
	paths := slices.SortedFunc(maps.Keys(r.lists), func(a, b string) int { return r.lists[a].asked.Compare(r.lists[b].asked) })
	for _, path := range paths[:(len(paths)+9)/10] {
		delete(r.lists, path)
	}
}

// isRefusal reports whether an error says that a list can't be had, whoever asked for it;
// not that it is not there yet.
func isRefusal(err error) bool {
	switch goproxy.Status(err) {
	case http.StatusNotFound, http.StatusGone, http.StatusForbidden, http.StatusNotImplemented:
		return !isPending(err)
	}
	return isRefused(err)
}

// due are the lists whose time has come; the most overdue first.
func (r *refresher) due(now time.Time, keep time.Duration) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var paths []string
	for path, w := range r.lists {
		switch {
		case w.looking:
		case now.Sub(w.asked) > keep:
			delete(r.lists, path)
		case !w.next.After(now):
			paths = append(paths, path)
		}
	}
	slices.SortFunc(paths, func(a, b string) int { return r.lists[a].next.Compare(r.lists[b].next) })
	return paths
}

// look notes that somebody looks at a list, until looked.
func (r *refresher) look(path string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if w := r.lists[path]; w != nil {
		w.looking = true
	}
}

// looked notes what a look has found: a list that has changed is looked at again as
// soon as it may be, one that has not, or that could not be had, after twice the time, but
// before it is so old that a reader would have to wait.
func (r *refresher) looked(path string, now time.Time, versions []string, least, most time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.lists[path]
	if w == nil {
		return
	}
	w.looking = false
	state := stateOf(versions)
	if w.state != 0 && state != 0 && w.state != state {
		w.interval = least
	} else {
		w.interval = max(least, min(2*w.interval, most))
	}
	w.state = cmp.Or(state, w.state)
	w.next = now.Add(w.interval)
}

// stateOf tells lists apart; the lists themselves, of all that is watched, may be any number
// of bytes. 0: nil.
func stateOf(versions []string) uint64 {
	if versions == nil {
		return 0
	}
	h := fnv.New64a()
	for _, v := range versions {
		io.WriteString(h, v+"\n")
	}
	return max(1, h.Sum64())
}

// refreshDue begins to look at the lists whose time has come, some at once, and of those
// of one host half as many: it waits for none, so that one that hangs does not keep
// the others waiting.
func (c *Crawler) refreshDue(ctx context.Context) error {
	for _, path := range c.refresh.due(time.Now(), c.o.Ahead.Refresh) {
		if !c.refreshes.room() {
			break
		}
		leave := c.refreshes.try(laneOf(storage.Key{Path: path, File: storage.FileList}), storage.Demand)
		if leave == nil {
			continue
		}
		c.refresh.look(path)
		c.begun.Go(func() {
			defer leave()
			c.refreshList(ctx, path)
		})
	}
	return nil
}

// refreshList looks at a list: somebody else may have done it, and one that is fresh is
// not asked for. One that is gone is looked after no more.
func (c *Crawler) refreshList(ctx context.Context, path string) {
	k := storage.Key{Path: path, File: storage.FileList}
	known, err := c.ledger.Known(ctx, k)
	if err == nil && (known.Outdated || storage.Age(known.Checked, time.Now()) >= c.o.Freshness) {
		err = c.bring(ctx, k)
		if ctx.Err() != nil {
			return
		}
		c.countAhead(path, err)
		if err == nil {
			known, err = c.ledger.Known(ctx, k)
		}
	}
	var versions []string
	if err == nil {
		versions, err = known.Versions, Refusal(known)
	}
	if isRefusal(err) {
		c.refresh.mu.Lock()
		delete(c.refresh.lists, path)
		c.refresh.mu.Unlock()
		return
	}
	c.refresh.looked(path, time.Now(), versions, c.o.Freshness, c.o.Ahead.MaxStale*4/5)
}
