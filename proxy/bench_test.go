package proxy

import (
	"context"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/memory"
)

// BenchmarkHit answers from memory: a .mod file, and a list.
func BenchmarkHit(b *testing.B) {
	store := memory.New(0, nil)
	p, err := New(store, store, &fetcher{ledger: store}, Options{
		Mode: Fallback, Freshness: time.Hour, ListMaxStale: time.Hour, FetchTimeout: time.Minute, MaxWaiting: 20, CacheDir: b.TempDir(), CacheBytes: 1 << 20, MemoryBytes: 1 << 20,
		Metrics: prometheus.NewRegistry(), Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx := context.WithValue(context.Background(), bed{}, 1)
	m := module.Version{Path: modPath, Version: "v1.0.0"}
	if err := store.Put(ctx, m, storage.Files{Mod: []byte("module x\n")}); err != nil {
		b.Fatal(err)
	}
	b.Run("mod", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := p.Mod(ctx, m); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("list", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := p.List(ctx, modPath); err != nil {
				b.Fatal(err)
			}
		}
	})
}
