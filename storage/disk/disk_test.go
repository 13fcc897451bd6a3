package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/kv"
	"github.com/athensctl/athensctl/storage/storagetest"
)

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir, Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// openFailing opens a store whose ledger fails to write while fail is set.
func openFailing(t *testing.T, dir string) (s *Store, fail *atomic.Bool) {
	t.Helper()
	s = open(t, dir)
	s.reconcile.Wait()
	db := &failing{DB: s.db}
	s.Ledger = kv.NewLedger(db, queue{s.jobs}, 0, nil)
	return s, &db.fail
}

type failing struct {
	kv.DB
	fail atomic.Bool
}

var errFailing = errors.New("input/output error")

func (f *failing) Update(fn func(kv.Tx) error) error {
	if f.fail.Load() {
		return errFailing
	}
	return f.DB.Update(fn)
}

func put(t *testing.T, s *Store, v storagetest.Version) {
	t.Helper()
	if err := s.Put(context.Background(), v.Version, v.Files()); err != nil {
		t.Fatal(err)
	}
}

// wantCatalog closes the store, opens it again, and looks for the versions that are to
// be there.
func wantCatalog(t *testing.T, s *Store, dir string, want ...storagetest.Version) *Store {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	s.reconcile.Wait()
	page, err := s.Catalog(context.Background(), "", 10_000)
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, m := range page.Versions {
		have[m.String()] = true
	}
	for _, v := range want {
		if !have[v.String()] {
			t.Errorf("%s is not in the catalog", v)
		}
	}
	if len(have) != len(want) {
		t.Errorf("the catalog has %d versions, want %d", len(have), len(want))
	}
	return s
}

// What a rebuild did not come to before an orderly stop, the next does.
func TestRebuildCut(t *testing.T) {
	dir := t.TempDir()
	var all []storagetest.Version
	for i := range 200 {
		v := storagetest.New(fmt.Sprintf("example.com/m%03d", i), "v1.0.0", "")
		folder := filepath.Join(dir, "modules", v.Path, "@v")
		if err := os.MkdirAll(folder, 0o755); err != nil {
			t.Fatal(err)
		}
		for ext, content := range map[string][]byte{".info": v.Info, ".mod": v.Mod, ".zip": v.Zip} {
			if err := os.WriteFile(filepath.Join(folder, "v1.0.0"+ext), content, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		all = append(all, v)
	}
	s := open(t, dir) // and it is closed at once
	wantCatalog(t, s, dir, all...)
}

// What a rebuild could not do, the next does.
func TestRebuildFails(t *testing.T) {
	dir := t.TempDir()
	v, gone := storagetest.New("example.com/m", "v1.0.0", ""), storagetest.New("example.com/gone", "v1.0.0", "")
	s, fail := openFailing(t, dir)
	put(t, s, gone)
	fail.Store(true)
	if err := s.Put(context.Background(), v.Version, v.Files()); !errors.Is(err, errFailing) {
		t.Fatalf("Put without a ledger: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "modules/example.com/gone/@v/v1.0.0.zip")); err != nil {
		t.Fatal(err)
	}
	if s.rebuild(context.Background()) {
		t.Error("a rebuild without a ledger is said to have gone well")
	}
	fail.Store(false)
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	if s.rebuild(cancelled) {
		t.Error("a rebuild that was cut is said to have gone well")
	}
	wantCatalog(t, s, dir, v)
}

// A version whose entry in the catalog failed is entered by the next Put, though it has
// nothing to keep, or by the next start.
func TestPutWithoutLedger(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	s, fail := openFailing(t, dir)
	fail.Store(true)
	again, never := storagetest.New("example.com/again", "v1.0.0", ""), storagetest.New("example.com/never", "v1.0.0", "")
	for _, v := range []storagetest.Version{again, never} {
		if err := s.Put(ctx, v.Version, v.Files()); !errors.Is(err, errFailing) {
			t.Fatalf("Put without a ledger: %v", err)
		}
	}
	fail.Store(false)
	if err := s.Put(ctx, again.Version, storage.Files{Mod: again.Mod}); err != nil {
		t.Fatal(err)
	}
	if ok, err := s.IsComplete(again.Version); !ok || err != nil {
		t.Errorf("after another Put: in the catalog %v, %v", ok, err)
	}
	wantCatalog(t, s, dir, again, never)
}

// A deletion that failed or was cut on its way is ended by the next Delete, with a
// tombstone; or, for what the catalog has, by the next start.
func TestDeleteWithoutLedger(t *testing.T) {
	ctx := context.Background()
	for _, again := range []bool{true, false} {
		dir := t.TempDir()
		s, fail := openFailing(t, dir)
		whole, part := storagetest.New("example.com/whole", "v1.0.0", ""), storagetest.New("example.com/part", "v1.0.0", "")
		put(t, s, whole)
		if err := s.Put(ctx, part.Version, storage.Files{Mod: part.Mod}); err != nil {
			t.Fatal(err)
		}
		fail.Store(true)
		if err := s.Delete(ctx, whole.Version); !errors.Is(err, errFailing) {
			t.Fatalf("Delete without a ledger: %v", err)
		}
		if _, err := s.Zip(ctx, whole.Version); err != nil {
			t.Errorf("the deletion was not noted, and yet the zip is gone: %v", err)
		}
		fail.Store(false)
		for _, v := range []storagetest.Version{whole, part} { // noted, and one file removed
			if err := s.CompareAndSwap(ctx, deletingKey(v.Version), nil, []byte("1")); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range []string{"whole/@v/v1.0.0.zip", "part/@v/v1.0.0.mod"} {
			if err := os.Remove(filepath.Join(dir, "modules/example.com", name)); err != nil {
				t.Fatal(err)
			}
		}
		fail.Store(true)
		for _, v := range []storagetest.Version{whole, part} {
			if err := s.Delete(ctx, v.Version); !errors.Is(err, errFailing) {
				t.Fatalf("Delete without a ledger: %v", err)
			}
		}
		fail.Store(false)
		want := 1
		if again {
			want = 2
			for _, v := range []storagetest.Version{whole, part} {
				if err := s.Delete(ctx, v.Version); err != nil {
					t.Errorf("Delete of %s, again: %v", v, err)
				}
				if err := s.Delete(ctx, v.Version); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("Delete of %s, a third time: %v", v, err)
				}
			}
		}
		s = wantCatalog(t, s, dir)
		gone, err := s.Deleted(ctx, time.Time{}, 10)
		if err != nil || len(gone) != want {
			t.Errorf("deleted again %v: tombstones %v, want %d: %v", again, gone, want, err)
		}
		for _, name := range []string{"v1.0.0.zip", "v1.0.0.mod", "v1.0.0.info"} {
			if isThere(filepath.Join(dir, "modules/example.com/whole/@v", name)) {
				t.Errorf("deleted again %v: %s is there still", again, name)
			}
		}
	}
}

// A start ends a deletion that a crash cut: what is left of the version goes too. A file
// that went otherwise takes nothing else with it.
func TestCrashInDelete(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	s := open(t, dir)
	s.reconcile.Wait()
	cut, lost, kept := storagetest.New("example.com/cut", "v1.0.0", ""), storagetest.New("example.com/lost", "v1.0.0", ""), storagetest.New("example.com/kept", "v1.0.0", "")
	for _, v := range []storagetest.Version{cut, lost, kept} {
		put(t, s, v)
	}
	if err := s.CompareAndSwap(ctx, deletingKey(cut.Version), nil, []byte("1")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"cut", "lost"} {
		if err := os.Remove(filepath.Join(dir, "modules/example.com", name, "@v/v1.0.0.zip")); err != nil {
			t.Fatal(err)
		}
	}
	s.differs.Store(true) // a crash leaves no sign of an orderly stop
	s = wantCatalog(t, s, dir, kept)
	if _, err := s.Mod(ctx, cut.Version); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("go.mod of a version whose deletion was cut: %v", err)
	}
	if b, err := s.Mod(ctx, lost.Version); err != nil {
		t.Errorf("go.mod of a version whose zip was lost: %v", err)
	} else {
		b.Close()
	}
}

// A Delete that failed behind its first files is ended by the Put that comes then: who keeps what
// there was is told of it, and the next start takes nothing of what was put.
func TestPutAfterFailedDelete(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	s, fail := openFailing(t, dir)
	gone, whole := storagetest.New("example.com/gone", "v1.0.0", ""), storagetest.New("example.com/whole", "v1.0.0", "")
	for _, v := range []storagetest.Version{gone, whole} {
		put(t, s, v)
		if err := s.CompareAndSwap(ctx, deletingKey(v.Version), nil, []byte("1")); err != nil {
			t.Fatal(err)
		}
	}
	fail.Store(true)
	if err := s.Delete(ctx, gone.Version); !errors.Is(err, errFailing) {
		t.Fatalf("Delete without a ledger: %v", err)
	}
	fail.Store(false)
	others := storagetest.New(gone.Path, "v1.0.0", "others")
	put(t, s, others)
	put(t, s, whole) // of which nothing had been removed
	tombstones, err := s.Deleted(ctx, time.Time{}, 10)
	if err != nil || len(tombstones) != 1 || tombstones[0].Path != gone.Path {
		t.Errorf("tombstones %v, %v; want one of %s", tombstones, err, gone)
	}
	for _, v := range []storagetest.Version{gone, whole} {
		if begun, err := s.Load(ctx, deletingKey(v.Version)); begun != nil || err != nil {
			t.Errorf("the deletion of %s is noted still: %v", v, err)
		}
	}
	s.differs.Store(true)
	wantCatalog(t, s, dir, others, whole)
}

// held is a reader that is released.
type held struct {
	io.Reader
	reached, release chan struct{}
}

func (h held) Read(p []byte) (int, error) {
	select {
	case <-h.reached:
	default:
		close(h.reached)
	}
	<-h.release
	return h.Reader.Read(p)
}

// A Put that goes on while the store is closed, since the server has cut its caller off, keeps
// nothing that the next start would not find.
func TestPutDuringClose(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	s.reconcile.Wait()
	v := storagetest.New("example.com/m", "v1.0.0", "")
	zip := held{bytes.NewReader(v.Zip), make(chan struct{}), make(chan struct{})}
	done := make(chan error, 1)
	go func() {
		done <- s.Put(context.Background(), v.Version, storage.Files{Info: v.Info, Mod: v.Mod, Zip: zip})
	}()
	<-zip.reached
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	close(zip.release)
	if err := <-done; err == nil {
		t.Error("it succeeded")
	}
	s = open(t, dir)
	s.reconcile.Wait()
	listed, err := s.IsComplete(v.Version)
	if err != nil {
		t.Fatal(err)
	}
	if kept := isThere(filepath.Join(dir, "modules", v.Path, "@v/v1.0.0.zip")); kept != listed {
		t.Errorf("kept %v, in the catalog %v", kept, listed)
	}
}
