package cosmos

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/internal/cosmosfake"
	"github.com/athensctl/athensctl/storage/storagetest"
)

// skewed is a clock that a test can set on.
func skewed() (now func() time.Time, later func(time.Duration)) {
	var skew atomic.Int64
	return func() time.Time { return time.Now().Add(time.Duration(skew.Load())) },
		func(d time.Duration) { skew.Add(int64(d)) }
}

// badZips are zips of which some cannot be removed.
type badZips struct{ Zips }

func (z badZips) Delete(ctx context.Context, name string, size int64) error {
	if strings.Contains(name, "poison") {
		return goproxy.Errorf(500, "Blob Storage: delete: 409 SnapshotsPresent")
	}
	return z.Zips.Delete(ctx, name, size)
}

// What always fails holds up nothing else, in Sweep and in Finish.
func TestSweepGoesOn(t *testing.T) {
	ctx := context.Background()
	f, a := fake(t)
	now, later := skewed()
	s := open(t, a, t.TempDir(), Options{Now: now})
	s.zips = badZips{s.zips}
	const poison, good = 6, 24
	var all []storagetest.Version
	for i := range poison + good {
		name := "good"
		if i < poison {
			name = "poison"
		}
		all = append(all, storagetest.New(fmt.Sprintf("example.com/%s%d", name, i), "v1.0.0", ""))
	}
	intents := func() (poison, good int) {
		t.Helper()
		err := s.query(ctx, s.ledger, "test", "", "SELECT * FROM c WHERE c.started > 0", 100, nil, decode(func(i *intent) bool {
			if strings.Contains(i.Path, "good") {
				good++
			} else {
				poison++
			}
			return true
		}))
		if err != nil {
			t.Fatal(err)
		}
		return poison, good
	}
	// Puts whose entry in the catalog failed; that of some goes on failing. (The
	// catalog's partitions are named by 13 bytes of the path.)
	failing := func(pk string) {
		f.SetFault(func(c cosmosfake.Call) *cosmosfake.Fault {
			if c.Op == "create item" && strings.HasPrefix(c.PK, pk) {
				return &cosmosfake.Fault{Status: 400}
			}
			return nil
		})
	}
	failing("c/")
	for _, v := range all {
		if err := s.Put(ctx, v.Version, v.Files()); goproxy.Status(err) != 500 {
			t.Fatalf("Put whose catalog entry is not written: %v", err)
		}
	}
	failing("c/example.com/p")
	later(time.Minute)
	if err := s.Finish(ctx); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("and %d more failed", poison-1)) {
		t.Errorf("Finish: %v", err)
	}
	if p, g := intents(); p != poison || g != 0 {
		t.Errorf("after Finish %d of %d that fail and %d of the others are left", p, poison, g)
	}
	f.SetFault(nil)
	for _, v := range all {
		if err := s.Delete(ctx, v.Version); err != nil {
			t.Fatal(err)
		}
	}
	later(2 * time.Hour)
	err := s.Sweep(ctx)
	if err == nil || !strings.Contains(err.Error(), "SnapshotsPresent") || !strings.Contains(err.Error(), fmt.Sprintf("and %d more failed", poison-1)) {
		t.Errorf("Sweep: %v", err)
	}
	if p, g := intents(); p != poison || g != 0 {
		t.Errorf("after Sweep %d of %d that fail and %d of the others are left", p, poison, g)
	}
}

// A sweep that takes long stops before a Put may write the same bytes again.
func TestSweepTakesLong(t *testing.T) {
	ctx := context.Background()
	f, a := fake(t)
	dir := t.TempDir()
	now, later := skewed()
	s, other := open(t, a, dir, Options{Now: now}), open(t, a, dir, Options{Now: now})
	s.sweepTakes, other.sweepTakes = 3*time.Second, 3*time.Second
	v := storagetest.New("example.com/m", "v1.0.0", "")
	v.Zip = make([]byte, 3*chunkBytes)
	if err := s.Put(ctx, v.Version, v.Files()); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(ctx, v.Version); err != nil {
		t.Fatal(err)
	}
	later(2 * time.Hour)
	var removed atomic.Int64
	put := make(chan struct{})
	f.SetFault(func(c cosmosfake.Call) *cosmosfake.Fault {
		if c.Op != "delete item" || !strings.HasPrefix(c.PK, "z/") {
			return nil
		}
		if removed.Add(1) != 2 {
			return nil
		}
		defer close(put)
		if err := other.Put(ctx, v.Version, v.Files()); goproxy.Status(err) != 503 {
			t.Errorf("Put of what is being removed: %v", err)
		}
		time.Sleep(other.sweepTakes)
		if err := other.Put(ctx, v.Version, v.Files()); err != nil {
			t.Errorf("Put once the sweep has to be over: %v", err)
		}
		return &cosmosfake.Fault{Drop: true}
	})
	if err := s.Sweep(ctx); err == nil {
		t.Error("the sweep was cut, and says nothing")
	}
	<-put
	f.SetFault(nil)
	b, err := s.Zip(ctx, v.Version)
	if err == nil {
		_, err = io.Copy(io.Discard, b)
	}
	if err != nil {
		t.Errorf("a Put that succeeded is not whole: %v", err)
	}
	if err := s.Sweep(ctx); err != nil {
		t.Errorf("the next sweep: %v", err)
	}
}
