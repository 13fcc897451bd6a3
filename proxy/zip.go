package proxy

import (
	"context"
	"errors"
	"io"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
)

// Zip implements goproxy.Source.
func (p *Proxy) Zip(ctx context.Context, m module.Version) (*goproxy.Blob, error) {
	start := time.Now()
	b, tier, err := p.zip(ctx, m)
	p.metrics.answered(ctx, start, tier, storage.FileZip)
	return b, err
}

func (p *Proxy) zip(ctx context.Context, m module.Version) (b *goproxy.Blob, tier string, err error) {
	k := storage.Key{Path: m.Path, Query: m.Version, File: storage.FileZip}
	if b := p.disk.get(k.String()); b != nil {
		return b, fromDisk, nil
	}
	if p.local.Load() {
		if b, err := p.store.Zip(ctx, m); err == nil {
			return b, fromStorage, nil
		}
	}
	for range 2 {
		// One reader brings it into the disk cache; the others wait and open the file.
		_, tier, err = p.fetch(ctx, k, func(ctx context.Context, s goproxy.Source) (any, error) {
			return nil, p.spool(ctx, k, s, m)
		})
		if err != nil {
			return nil, tier, err
		}
		if b := p.disk.get(k.String()); b != nil {
			return b, tier, nil
		}
		// Storage has it as a local file, or it can't be cached.
		b, err = p.store.Zip(ctx, m)
		if err == nil {
			return b, tier, nil
		} else if !goproxy.IsAbsent(err) {
			return nil, "", err
		}
	}
	return nil, tier, goproxy.NotFound("%s (zip): it was deleted", m)
}

// spoolTimeout bounds a zip whose bytes go on coming.
const spoolTimeout = 30 * time.Minute

// spool brings a zip into the disk cache. ctx's deadline is for its beginning: from then on it
// goes on as long as bytes come. A cache that does not work is no error: the zip is
// then read without it.
func (p *Proxy) spool(ctx context.Context, k storage.Key, s goproxy.Source, m module.Version) error {
	generation := p.generation.Load()
	reading, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	reading, stop := context.WithTimeout(reading, max(spoolTimeout, 2*p.o.FetchTimeout))
	defer stop()
	begun := context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })
	b, err := s.Zip(reading, m)
	if err != nil {
		return err
	}
	defer b.Close()
	begun()
	if isLocalFile(b) {
		p.local.Store(true)
		return nil
	}
	if err := p.cache(k.String(), b, b.SizeBytes, b.ModTime); err != nil {
		return err
	}
	if p.generation.Load() != generation {
		p.disk.remove(k.String())
	}
	return nil
}

// cache keeps what r has in the disk cache, if that works. An error is r's.
func (p *Proxy) cache(key string, r io.Reader, size int64, modTime time.Time) error {
	err := p.disk.put(key, r, size, modTime)
	var broken cacheError
	if !errors.As(err, &broken) {
		return err
	}
	p.metrics.uncached.Inc()
	p.o.Log.Warn("not cached", "key", key, "err", err)
	return nil
}
