package proxy

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
)

// heap is what is live.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// Whoever reads large .mod files, as slowly as they like, holds none of them in memory. They
// are forgotten when they are deleted, also while they are read.
func TestLargeMods(t *testing.T) {
	const size = 512 << 10
	b := newBed(t, Offline)
	b.disk.files.max = 1 << 30
	content := append([]byte("module "+modPath+"\n"), bytes.Repeat([]byte("//\n"), size/3)...)
	version := func(i int) module.Version {
		return module.Version{Path: modPath, Version: fmt.Sprintf("v1.0.%d", i)}
	}
	for i := range 20 {
		// The store, which is in memory, has one content for all.
		if err := b.store.Put(t.Context(), version(i), storage.Files{Mod: content}); err != nil {
			t.Fatal(err)
		}
	}
	before := heap()
	var held []*goproxy.Blob
	for i := range 20 {
		for range 2 {
			blob, err := b.Mod(t.Context(), version(i))
			if err != nil {
				t.Fatal(err)
			}
			held = append(held, blob)
		}
	}
	if n := heap() - before; n > 2*size {
		t.Errorf("%d readers of 20 files of %d bytes hold %d bytes", len(held), size, n)
	}
	for _, blob := range held {
		if got, err := blob.ReadAll(2 * size); err != nil || !bytes.Equal(got, content) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	}
	b.Forget(version(0))
	b.Proxy.store = deletedMeanwhile{b.store, func() {
		b.store.Delete(context.Background(), version(1))
		b.Forget(version(1))
	}}
	b.disk.remove(storage.Key{Path: modPath, Query: "v1.0.1", File: storage.FileMod}.String())
	if blob, err := b.Mod(t.Context(), version(1)); err == nil {
		blob.Close()
	}
	b.Proxy.store = b.store
	if err := b.store.Delete(t.Context(), version(0)); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		if _, err := b.Mod(t.Context(), version(i)); goproxy.Status(err) != 404 {
			t.Errorf("v1.0.%d after its deletion: %v", i, err)
		}
	}
}

// slowLedger answers when it is told.
type slowLedger struct {
	storage.Ledger
	answer chan struct{}
}

func (l slowLedger) Known(ctx context.Context, k storage.Key) (*storage.Known, error) {
	<-l.answer
	return l.Ledger.Known(ctx, k)
}

// Those who wait for the same list share it: it is sorted and written out once.
func TestListMadeOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, Fallback)
		if err := b.store.SetKnown(t.Context(), storage.Key{Path: modPath, File: storage.FileList}, &storage.Known{Checked: time.Now(), Versions: []string{"v1.0.0", "v1.1.0"}}); err != nil {
			t.Fatal(err)
		}
		answer := make(chan struct{})
		b.Proxy.ledger = slowLedger{b.store, answer}
		lists := make([]*goproxy.VersionList, 50)
		var wg sync.WaitGroup
		for i := range lists {
			wg.Go(func() {
				var err error
				if lists[i], err = b.List(t.Context(), modPath); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		close(answer)
		wg.Wait()
		made := map[*goproxy.VersionList]bool{}
		for _, l := range lists {
			made[l] = true
		}
		if len(made) != 1 {
			t.Errorf("%d clients have %d lists", len(lists), len(made))
		}
	})
}

// What the cache in memory keeps takes about as much as it may.
func TestMemoryCacheBound(t *testing.T) {
	b := newBed(t, Fallback)
	const most = 4 << 20
	b.memory.max = most
	before := heap()
	for i := range 400 {
		known := &storage.Known{Checked: time.Now()}
		for j := range 1000 {
			known.Versions = append(known.Versions, fmt.Sprintf("v1.%d.%d", i%10, j))
		}
		k := storage.Key{Path: fmt.Sprintf("%s/m%d", modPath, i), File: storage.FileList}
		b.rememberChanging(k, changingOf(k, known))
	}
	if n := heap() - before; n < most/2 || n > most*5/4 {
		t.Errorf("%d bytes are kept where %d may be", n, most)
	}
	runtime.KeepAlive(b)
}
