package proxy

import (
	"context"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/storage"
)

const (
	// deletionsOverlap is how long a deletion is looked at again and again: what read a
	// version while it was deleted may have cached it after the first time.
	deletionsOverlap = 2 * time.Minute
	// deletionsKnown is how long the caches are good without a look: after it there may be
	// deletions that storage tells of no more.
	deletionsKnown = storage.TombstoneTTL - time.Hour
)

// Run drops what was deleted in storage from the caches, until ctx ends. It
// looks every interval, which must be well below a minute.
func (p *Proxy) Run(ctx context.Context, interval time.Duration) {
	start := time.Now()
	since := start.Add(-storage.TombstoneTTL)
	looked := p.disk.seen()
	if start.Sub(looked) > deletionsKnown {
		looked = start.Round(0) // New has emptied the cache
	}
	var newest, found time.Time // the last deletion, and when it was seen first
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		now := time.Now()
		last, err := p.forgetDeleted(ctx, since)
		if err == nil {
			if now.Sub(looked) > deletionsKnown { // storage was away, or this machine slept
				p.o.Log.Warn("the caches are emptied: there may have been deletions that nobody tells of any more", "last", looked)
				p.forgetAll()
			}
			looked = now.Round(0) // by the clock, which goes on while a machine sleeps
			if last.After(newest) {
				newest, found = last, now
			}
			switch {
			case newest.IsZero():
			case now.Sub(found) > deletionsOverlap:
				since = newest.Add(time.Microsecond)
			default:
				since = newest.Add(-deletionsOverlap)
			}
			if err := p.disk.saw(now); err != nil {
				p.o.Log.Warn("the cache's folder cannot be written", "err", err)
			}
		} else if ctx.Err() == nil {
			p.o.Log.Warn("deletions cannot be read", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// forgetDeleted drops what was deleted at or after since, and returns the time of the last;
// zero: there is none.
func (p *Proxy) forgetDeleted(ctx context.Context, since time.Time) (last time.Time, err error) {
	const page = 1000
	for {
		one, cancel := context.WithTimeout(ctx, deletionsTimeout)
		deleted, err := p.store.Deleted(one, since, page)
		cancel()
		if err != nil {
			return last, err
		}
		for _, d := range deleted {
			p.Forget(module.Version{Path: d.Path, Version: d.Version})
			since = d.Timestamp.Add(time.Microsecond)
			last = d.Timestamp
		}
		if len(deleted) < page {
			return last, nil
		}
	}
}

const deletionsTimeout = 15 * time.Second

// Forget drops a version from the caches.
func (p *Proxy) Forget(m module.Version) {
	p.generation.Add(1)
	for _, f := range []storage.File{storage.FileInfo, storage.FileMod, storage.FileZip} {
		k := storage.Key{Path: m.Path, Query: m.Version, File: f}
		p.memory.remove(k)
		p.disk.remove(k.String())
	}
	p.memory.remove(storage.Key{Path: m.Path, File: storage.FileList})
}

// forgetAll empties the caches of all that can be deleted.
func (p *Proxy) forgetAll() {
	p.generation.Add(1)
	p.memory.clear(func(any) bool { return true })
	p.disk.files.clear(isDeletable)
}
