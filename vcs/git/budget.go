package git

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/athensctl/athensctl/goproxy"
)

// Budget is an amount of something (places, bytes) that hosts share. One host has a part
// of it at most, so that it holds up nobody but those who want it. nil is without bound.
// It is safe for concurrent use.
type Budget struct {
	total, each int64

	mu      sync.Mutex
	used    int64
	by      map[string]int64 // used, by host
	waiting []*waiter        // who came first in front
}

type waiter struct {
	host  string
	n     int64
	ready chan struct{}
}

// NewBudget returns one of total, of which one host has each at most.
func NewBudget(total, each int64) *Budget {
	return &Budget{total: total, each: each, by: map[string]int64{}}
}

// Half is a budget of which one host has half, and one place at least.
func Half(total int64) *Budget { return NewBudget(total, max(1, total/2)) }

// TryAcquire takes n for a host, if there is as much at once.
func (b *Budget) TryAcquire(host string, n int64) bool {
	if b == nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.take(host, n)
}

func (b *Budget) take(host string, n int64) bool {
	if b.used+n > b.total || b.by[host]+n > b.each {
		return false
	}
	b.used += n
	b.by[host] += n
	return true
}

// Acquire takes n for a host, and waits for it. Those of another host may come first, if
// this one has its part.
func (b *Budget) Acquire(ctx context.Context, host string, n int64) error {
	if b == nil {
		return ctx.Err()
	}
	b.mu.Lock()
	if b.take(host, n) {
		b.mu.Unlock()
		return nil
	}
	w := &waiter{host, n, make(chan struct{})}
	b.waiting = append(b.waiting, w)
	b.mu.Unlock()
	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := slices.Index(b.waiting, w); i >= 0 {
		b.waiting = slices.Delete(b.waiting, i, i+1)
	} else { // it came just now
		b.release(host, n)
	}
	return ctx.Err()
}

// Release gives back what was taken.
func (b *Budget) Release(host string, n int64) {
	if b == nil || n == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.release(host, n)
}

func (b *Budget) release(host string, n int64) {
	b.used -= n
	if b.by[host] -= n; b.by[host] == 0 {
		delete(b.by, host)
	}
	b.waiting = slices.DeleteFunc(b.waiting, func(w *waiter) bool {
		ok := b.take(w.host, w.n)
		if ok {
			close(w.ready)
		}
		return ok
	})
}

// room is what one answer has of its client's budgets. What it takes it gives back when it
// is closed, if not before. nil is without bound.
type room struct {
	c    *Client
	host string

	mu           sync.Mutex
	memory, disk int64
}

// takeMemory takes bytes of memory. There is no waiting for it: who waits may have what
// another waits for.
func (r *room) takeMemory(n int64) error { return r.take(n, false) }

func (r *room) takeDisk(n int64) error { return r.take(n, true) }

func (r *room) take(n int64, disk bool) error {
	if r == nil {
		return nil
	}
	b, what := r.c.Memory, "memory"
	if disk {
		b, what = r.c.Disk, "disk"
	}
	for !b.TryAcquire(r.host, n) {
		if r.c.Evict == nil || !r.c.Evict() {
			if r.c.Refused != nil {
				r.c.Refused(what)
			}
			return goproxy.Busy(5*time.Second, "the %s for what is fetched from git hosts is used up", what)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if disk {
		r.disk += n
	} else {
		r.memory += n
	}
	return nil
}

func (r *room) giveMemory(n int64) {
	if r == nil {
		return
	}
	r.mu.Lock()
	n = min(n, r.memory) // it may be closed
	r.memory -= n
	r.mu.Unlock()
	r.c.Memory.Release(r.host, n)
}

func (r *room) close() {
	if r == nil {
		return
	}
	r.mu.Lock()
	memory, disk := r.memory, r.disk
	r.memory, r.disk = 0, 0
	r.mu.Unlock()
	r.c.Memory.Release(r.host, memory)
	r.c.Disk.Release(r.host, disk)
}

// made takes bytes of memory for objects that are made of deltas, and waits for it; the
// one who has it waits for nothing else.
func (r *room) made(ctx context.Context, n int64) (give func(), err error) {
	if r == nil || r.c.Deltas == nil || n < freeDelta {
		return func() {}, nil
	}
	n = min(n, r.c.Deltas.each)
	if err := r.c.Deltas.Acquire(ctx, r.host, n); err != nil {
		return nil, err
	}
	return sync.OnceFunc(func() { r.c.Deltas.Release(r.host, n) }), nil
}

// freeDelta is below what nobody counts.
const freeDelta = 512 << 10
