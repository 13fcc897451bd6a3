package proxy

import (
	"context"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/storage"
)

// deletionsOverlap is how long a deletion is looked at again and again: what read a
// version while it was deleted may have cached it after the first time.
const deletionsOverlap = 2 * time.Minute

// Run drops what was deleted in storage from the caches, until ctx ends. It
// looks every interval, which must be well below a minute.
func (p *Proxy) Run(ctx context.Context, interval time.Duration) {
	since := time.Now().Add(-storage.TombstoneTTL)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		now := time.Now()
		last, err := p.forgetDeleted(ctx, since)
		if err == nil {
			since = last.Add(-deletionsOverlap)
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

// forgetDeleted drops what was deleted at or after since, and returns the time of the last.
func (p *Proxy) forgetDeleted(ctx context.Context, since time.Time) (last time.Time, err error) {
	const page = 1000
	last = since.Add(deletionsOverlap)
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
			if d.Timestamp.After(last) {
				last = d.Timestamp
			}
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
