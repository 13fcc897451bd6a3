package crawler

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
)

// lane is whose work is kept apart from others': that for one host, as the modules' paths
// begin, and of that the lists, which are quick, from the files, which may not be.
type lane struct {
	host string
	list bool
}

func laneOf(k storage.Key) lane {
	host, _, _ := strings.Cut(k.Path, "/")
	return lane{host, k.File == storage.FileList}
}

// gate hands out places, and never all of them to some: a lane gets another place only
// while it has fewer than are free. So however many hosts are slow, the next one finds a
// place. Where there are many places, a lane gets another while it has fewer than a part
// of the free ones, which lets many more hosts be slow at the same time. What is ahead of
// demand gets half of what demand would, and half of all places at most.
//
// Who finds no place waits in its lane's line: demand before the rest, and each in its
// order. Lines are bounded in the same way: one grows only while it is shorter than what
// is left of line.
type gate struct {
	places int
	line   int // most that wait, in all lanes

	mu                    sync.Mutex
	taken, ahead, waiting int
	turns                 int             // places that were given
	lanes                 map[lane]*queue // those that are not empty
}

type queue struct {
	taken   int
	last    int          // its last turn
	waiting [2][]*waiter // by priority
}

type waiter struct {
	since time.Time
	ready chan struct{} // closed when it has a place
}

// manyPlaces: a lane is not to have more than about that many; no host is asked as much at
// once.
const manyPlaces = 64

func newGate(places, line int) *gate {
	return &gate{places: max(1, places), line: line, lanes: map[lane]*queue{}}
}

// may reports whether a lane gets another place.
func (g *gate) may(q *queue, p storage.Priority) bool {
	part := max(1, g.places/manyPlaces)
	if p != storage.Demand {
		if g.ahead >= max(1, g.places/2) {
			return false
		}
		part *= 2
	}
	return q.taken*part < g.places-g.taken
}

// room reports whether there is a free place for somebody.
func (g *gate) room() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.taken < g.places
}

// waits is how many wait.
func (g *gate) waits() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.waiting
}

// try is enter for who does not wait; nil: there is no place.
func (g *gate) try(l lane, p storage.Priority) (leave func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.take(g.queue(l), l, p)
}

func (g *gate) queue(l lane) *queue {
	q := g.lanes[l]
	if q == nil {
		q = &queue{}
		g.lanes[l] = q
	}
	return q
}

// take takes a place if there is one and nobody was there before; else nil.
func (g *gate) take(q *queue, l lane, p storage.Priority) (leave func()) {
	if len(q.waiting[storage.Demand]) > 0 || p != storage.Demand && len(q.waiting[p]) > 0 || !g.may(q, p) {
		g.clean(q, l)
		return nil
	}
	g.add(q, p, 1)
	return g.leave(q, l, p)
}

func (g *gate) add(q *queue, p storage.Priority, n int) {
	if n > 0 {
		g.turns++
		q.last = g.turns
	}
	q.taken += n
	g.taken += n
	if p != storage.Demand {
		g.ahead += n
	}
}

func (g *gate) clean(q *queue, l lane) {
	if q.taken == 0 && len(q.waiting[storage.Demand])+len(q.waiting[storage.Ahead]) == 0 {
		delete(g.lanes, l)
	}
}

func (g *gate) leave(q *queue, l lane, p storage.Priority) func() {
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.add(q, p, -1)
		g.grant()
		g.clean(q, l)
	}
}

// enter waits for a place. leave gives it back, once. A line that is full is a 503 at
// once; else the error is the context's.
func (g *gate) enter(ctx context.Context, l lane, p storage.Priority) (leave func(), err error) {
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	g.mu.Lock()
	q := g.queue(l)
	if leave := g.take(q, l, p); leave != nil {
		g.mu.Unlock()
		return leave, nil
	}
	if n := len(q.waiting[storage.Demand]) + len(q.waiting[storage.Ahead]); n >= g.line-g.waiting {
		g.mu.Unlock()
		return nil, goproxy.Busy(lineFull, "%s: %d fetches wait for their turn already", l.host, n)
	}
	g.lanes[l] = q
	w := &waiter{time.Now(), make(chan struct{})}
	q.waiting[p] = append(q.waiting[p], w)
	g.waiting++
	g.mu.Unlock()
	select {
	case <-w.ready:
		return g.leave(q, l, p), nil
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if i := slices.Index(q.waiting[p], w); i >= 0 {
		q.waiting[p] = slices.Delete(q.waiting[p], i, i+1)
		g.waiting--
	} else { // it got its place in the meantime
		g.add(q, p, -1)
	}
	g.grant() // who was behind it
	g.clean(q, l)
	return nil, ctx.Err()
}

// lineFull is when to come again to a line that is full.
const lineFull = 5 * time.Second

// grant gives the free places to who waits: demand first; of the lanes that get another
// the one with the fewest; of those the one that had none for longest, so that where all
// places are taken a lane waits for as many others as there are lanes, and no more.
func (g *gate) grant() {
	for g.waiting > 0 {
		var best *queue
		var p storage.Priority
		for _, p = range []storage.Priority{storage.Demand, storage.Ahead} {
			for _, q := range g.lanes {
				if len(q.waiting[p]) == 0 || !g.may(q, p) {
					continue
				}
				if best == nil || cmp.Or(q.taken-best.taken, q.last-best.last, q.waiting[p][0].since.Compare(best.waiting[p][0].since)) < 0 {
					best = q
				}
			}
			if best != nil {
				break
			}
		}
		if best == nil {
			return
		}
		close(best.waiting[p][0].ready)
		best.waiting[p] = best.waiting[p][1:]
		g.waiting--
		g.add(best, p, 1)
	}
}
