package storagetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/storage"
)

// Run runs the whole suite.
func Run(t *testing.T, b Backend) {
	for name, test := range map[string]func(*testing.T, Backend){
		"Store/Files": files, "Store/ZipReaders": zipReaders, "Store/Conflict": conflict, "Store/ZipH1": zipH1, "Store/Names": names, "Store/Concurrent": concurrent,
		"Store/FailedPut": failedPut, "Store/DeleteDuringPut": deleteDuringPut, "Store/LostAnswer": lostAnswer, "Store/CrashBetweenFiles": crashBetweenFiles,
		"Store/ReaderDuringPut": readerDuringPut, "Store/Cancelled": cancelled, "Store/CancelledPut": cancelledPut, "Store/CancelledReader": cancelledReader, "Store/BigZip": bigZips,
		"Store/Catalog": catalog, "Store/Index": index, "Store/IndexWriters": indexWriters, "Store/Delete": deletes, "Store/Tombstone": tombstone, "Store/Reopen": reopen,
		"Ledger/Known": known, "Ledger/Forget": forget, "Ledger/Queue": queue, "Ledger/Start": start, "Ledger/Parked": parked, "Ledger/Full": full, "Ledger/Lease": lease, "Ledger/ClaimOnce": claimOnce, "Ledger/Wait": wait, "Ledger/Swap": swap,
	} {
		t.Run(name, func(t *testing.T) { test(t, b) })
	}
}

var ctx = context.Background()

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got %v, want %v", what, err, want)
	}
}

func read(t *testing.T, s storage.Store, m module.Version, f storage.File) []byte {
	t.Helper()
	get := s.Mod
	if f == storage.FileZip {
		get = s.Zip
	}
	b, err := get(ctx, m)
	must(t, err)
	content, err := io.ReadAll(b)
	must(t, err)
	must(t, b.Close())
	if b.SizeBytes != int64(len(content)) || b.ModTime.IsZero() {
		t.Errorf("%s (%s): %d bytes, said to be %d, kept %v", m, f, len(content), b.SizeBytes, b.ModTime)
	}
	return content
}

// Each file can be put alone; the version is listed when all are there.
func files(t *testing.T, b Backend) {
	for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 2, 0}, {3}} {
		s, _ := b.open(t, t.TempDir(), time.Now)
		v := New("example.com/m", "v1.2.3", "")
		parts := []storage.Files{{Info: v.Info}, {Mod: v.Mod}, {Zip: bytes.NewReader(v.Zip)}, v.Files()}
		_, err := s.Zip(ctx, v.Version)
		wantErr(t, "Zip of an unknown version", err, fs.ErrNotExist)
		_, err = s.Mod(ctx, v.Version)
		wantErr(t, "Mod of an unknown version", err, fs.ErrNotExist)
		_, err = s.Resolve(ctx, v.Path, "latest")
		wantErr(t, "latest of an unknown module", err, fs.ErrNotExist)
		for i, part := range order {
			list, err := s.List(ctx, v.Path)
			must(t, err)
			page, err := s.Catalog(ctx, "", 10)
			must(t, err)
			if len(list.Versions)+len(page.Versions) != 0 {
				t.Errorf("order %v: listed before it is complete, at %d", order, i)
			}
			must(t, s.Put(ctx, v.Version, parts[part]))
		}
		info, err := s.Resolve(ctx, v.Path, v.Version.Version)
		must(t, err)
		if !bytes.Equal(info.JSON(), v.Info) || info.Kept.IsZero() {
			t.Errorf(".info: %s kept %v", info.JSON(), info.Kept)
		}
		if latest, err := s.Resolve(ctx, v.Path, "latest"); err != nil || latest.Version != "v1.2.3" {
			t.Errorf("latest: %v, %v", latest, err)
		}
		if !bytes.Equal(read(t, s, v.Version, storage.FileMod), v.Mod) || !bytes.Equal(read(t, s, v.Version, storage.FileZip), v.Zip) {
			t.Error("other bytes came back")
		}
		entries, err := s.Index(ctx, time.Time{}, 10)
		must(t, err)
		if len(entries) != 1 || entries[0].Path != v.Path {
			t.Errorf("index: %v", entries)
		}
	}
}

// A zip is what its reader has from where it is, whatever lies before; and it may be a
// file that can't be sought.
func zipReaders(t *testing.T, b Backend) {
	s, _ := b.open(t, t.TempDir(), time.Now)
	v := New("example.com/m", "v1.0.0", "")
	name := filepath.Join(t.TempDir(), "zip")
	must(t, os.WriteFile(name, append([]byte("before it"), v.Zip...), 0o600))
	f, err := os.Open(name)
	must(t, err)
	defer f.Close()
	_, err = f.Seek(int64(len("before it")), io.SeekStart)
	must(t, err)
	must(t, s.Put(ctx, v.Version, storage.Files{Info: v.Info, Mod: v.Mod, Zip: f}))
	if !bytes.Equal(read(t, s, v.Version, storage.FileZip), v.Zip) {
		t.Error("other bytes came back of a part of a file")
	}
	v = New("example.com/m", "v1.1.0", "")
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	go func() {
		w.Write(v.Zip)
		w.Close()
	}()
	must(t, s.Put(ctx, v.Version, storage.Files{Info: v.Info, Mod: v.Mod, Zip: r}))
	if !bytes.Equal(read(t, s, v.Version, storage.FileZip), v.Zip) {
		t.Error("other bytes came back of a pipe")
	}
}

// The hash that came with a zip stays with it, and goes with it.
func zipH1(t *testing.T, b Backend) {
	s, _ := b.Open(t, t.TempDir(), Options{})
	v := New("example.com/M", "v1.0.0", "")
	h1 := func(what, want string) {
		t.Helper()
		if got, err := s.ZipH1(ctx, v.Version); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", what, got, err, want)
		}
	}
	h1("nothing kept", "")
	must(t, s.Put(ctx, v.Version, storage.Files{Info: v.Info, Mod: v.Mod}))
	h1("no zip", "")
	const hash = "h1:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
	files := v.Files()
	files.ZipH1 = hash
	must(t, s.Put(ctx, v.Version, files))
	h1("a zip with its hash", hash)
	must(t, s.Put(ctx, v.Version, v.Files()))
	h1("the same zip without", hash)
	other := New("example.com/M", "v1.0.0", "other").Files()
	other.ZipH1 = "h1:AAAAQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
	wantErr(t, "another zip", s.Put(ctx, v.Version, other), storage.ErrConflict)
	h1("after a conflict", hash)
	must(t, s.Delete(ctx, v.Version))
	h1("deleted", "")
}

// The same bytes again are a success; others a conflict, and the first stay.
func conflict(t *testing.T, b Backend) {
	s, _ := b.open(t, t.TempDir(), time.Now)
	v, other := New("example.com/m", "v1.0.0", "a"), New("example.com/m", "v1.0.0", "b")
	must(t, s.Put(ctx, v.Version, v.Files()))
	must(t, s.Put(ctx, v.Version, v.Files()))
	wantErr(t, "another zip", s.Put(ctx, v.Version, storage.Files{Zip: bytes.NewReader(other.Zip)}), storage.ErrConflict)
	wantErr(t, "another .mod", s.Put(ctx, v.Version, storage.Files{Mod: []byte("module example.com/other\n")}), storage.ErrConflict)
	wantErr(t, "another .info", s.Put(ctx, v.Version, storage.Files{Info: []byte(`{"Version":"v1.0.0","Time":"2020-01-02T03:04:05Z"}`)}), storage.ErrConflict)
	if !bytes.Equal(read(t, s, v.Version, storage.FileZip), v.Zip) || !bytes.Equal(read(t, s, v.Version, storage.FileMod), v.Mod) {
		t.Error("the first bytes did not stay")
	}
	// A Put with a conflict may keep the rest: then the version is complete.
	half := New("example.com/half", "v1.0.0", "a")
	must(t, s.Put(ctx, half.Version, storage.Files{Zip: bytes.NewReader(half.Zip)}))
	wantErr(t, "another zip, and the rest", s.Put(ctx, half.Version, New(half.Path, "v1.0.0", "b").Files()), storage.ErrConflict)
	_, err := s.Mod(ctx, half.Version)
	_, err2 := s.Resolve(ctx, half.Path, "v1.0.0")
	list, err3 := s.List(ctx, half.Path)
	must(t, err3)
	if whole := err == nil && err2 == nil; whole != (len(list.Versions) == 1) {
		t.Errorf("all files are kept: %v; the list is %v", whole, list.Versions)
	}
}

var awkward = []module.Version{
	{Path: "github.com/Azure/two", Version: "v1.0.0"}, {Path: "github.com/azure/two", Version: "v1.0.0"},
	{Path: "example.com/two", Version: "v1.0.0"}, {Path: "example.com/two/v2", Version: "v2.0.0"}, {Path: "example.com/two-other", Version: "v1.0.0"},
	{Path: "example.com/two", Version: "v1.1.0-pre"}, {Path: "example.com/two", Version: "v1.1.0-pre.1"},
	{Path: "example.com/two", Version: "v1.1.0-PRE"}, {Path: "example.com/two", Version: "v2.0.0+incompatible"},
	{Path: "example.com/two", Version: "v1.10.0"}, {Path: "example.com/two", Version: "v1.2.0"},
	{Path: "example.com/two", Version: "v0.0.0-20260101000000-0123456789ab"},
	{Path: "example.com/two/sub", Version: "v1.0.0"}, {Path: "gopkg.in/yaml.v3", Version: "v3.0.1"},
}

// Names that are close to each other stay apart.
func names(t *testing.T, b Backend) {
	s, _ := b.open(t, t.TempDir(), time.Now)
	for _, m := range awkward {
		v := New(m.Path, m.Version, m.String())
		must(t, s.Put(ctx, m, v.Files()))
	}
	for _, m := range awkward {
		v := New(m.Path, m.Version, m.String())
		if !bytes.Equal(read(t, s, m, storage.FileMod), v.Mod) {
			t.Errorf("%s has the go.mod of another", m)
		}
	}
	for path, want := range map[string]string{
		"example.com/two":      "v1.0.0 v1.1.0-PRE v1.1.0-pre v1.1.0-pre.1 v1.2.0 v1.10.0 v2.0.0+incompatible",
		"example.com/two/v2":   "v2.0.0",
		"github.com/azure/two": "v1.0.0",
		"example.com/tw":       "",
	} {
		list, err := s.List(ctx, path)
		must(t, err)
		if got := strings.Join(list.Versions, " "); got != want {
			t.Errorf("list of %s: %q, want %q", path, got, want)
		}
	}
	if info, err := s.Resolve(ctx, "example.com/two", "latest"); err != nil || info.Version != "v1.10.0" {
		t.Errorf("latest: %v, %v; want v1.10.0", info, err)
	}
}

func concurrent(t *testing.T, b Backend) {
	s, _ := b.open(t, t.TempDir(), time.Now)
	var wg sync.WaitGroup
	same := New("example.com/same", "v1.0.0", "")
	errs := make([]error, 16)
	for i := range 16 {
		wg.Go(func() { errs[i] = s.Put(ctx, same.Version, same.Files()) })
	}
	wg.Wait()
	must(t, errors.Join(errs...))
	m := module.Version{Path: "example.com/other", Version: "v1.0.0"}
	for i := range 16 {
		wg.Go(func() { errs[i] = s.Put(ctx, m, New(m.Path, m.Version, fmt.Sprint(i)).Files()) })
	}
	wg.Wait()
	won := -1
	for i, err := range errs {
		if err == nil && won < 0 {
			won = i
		} else if !errors.Is(err, storage.ErrConflict) {
			t.Errorf("writer %d: %v, want a conflict", i, err)
		}
	}
	if won < 0 || !bytes.Equal(read(t, s, m, storage.FileZip), New(m.Path, m.Version, fmt.Sprint(won)).Zip) {
		t.Errorf("what is kept is not what writer %d put", won)
	}
}

func readerDuringPut(t *testing.T, b Backend) {
	s, _ := b.open(t, t.TempDir(), time.Now)
	m := module.Version{Path: "example.com/m", Version: "v1.0.0"}
	var want bytes.Buffer
	must(t, bigZip(&want, m, 2<<20))
	done := make(chan error, 1)
	go func() { done <- s.Put(ctx, m, storage.Files{Zip: bytes.NewReader(want.Bytes())}) }()
	for put := false; !put; {
		select {
		case err := <-done:
			must(t, err)
			put = true
		default:
		}
		blob, err := s.Zip(ctx, m)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		must(t, err)
		got, err := io.ReadAll(blob)
		must(t, err)
		blob.Close()
		if !bytes.Equal(got, want.Bytes()) {
			t.Fatalf("a reader saw %d of %d bytes", len(got), want.Len())
		}
	}
}

// A 100 MB zip goes in and out without being held in memory.
func bigZips(t *testing.T, b Backend) {
	if b.InMemory {
		t.Log("this backend holds zips in memory: only their content is compared")
	}
	s, _ := b.open(t, t.TempDir(), time.Now)
	m := module.Version{Path: "example.com/big", Version: "v1.0.0"}
	size := 100 << 20
	if b.InMemory {
		size = 8 << 20
	}
	r, w := io.Pipe()
	in, out := sha256.New(), sha256.New()
	go func() { w.CloseWithError(bigZip(io.MultiWriter(w, in), m, size)) }()
	stop, peak := make(chan bool), make(chan uint64)
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	go func() {
		var most uint64
		for {
			select {
			case <-stop:
				peak <- most
				return
			case <-time.After(20 * time.Millisecond):
				var now runtime.MemStats
				runtime.ReadMemStats(&now)
				most = max(most, now.HeapInuse)
			}
		}
	}()
	must(t, s.Put(ctx, m, storage.Files{Zip: r}))
	blob, err := s.Zip(ctx, m)
	must(t, err)
	n, err := io.Copy(out, blob)
	must(t, err)
	blob.Close()
	close(stop)
	grown := int64(<-peak) - int64(before.HeapInuse)
	if n < int64(size) || n != blob.SizeBytes {
		t.Errorf("%d bytes came out, %d are said to be there", n, blob.SizeBytes)
	}
	if !bytes.Equal(in.Sum(nil), out.Sum(nil)) {
		t.Error("other bytes came out than went in")
	}
	if !b.InMemory && grown > 24<<20 {
		t.Errorf("memory grew by %d MB", grown>>20)
	}
}

func deletes(t *testing.T, b Backend) {
	s, _ := b.open(t, t.TempDir(), time.Now)
	v := New("example.com/m", "v1.0.0", "a")
	wantErr(t, "Delete of an unknown version", s.Delete(ctx, v.Version), fs.ErrNotExist)
	must(t, s.Put(ctx, v.Version, v.Files()))
	start := time.Now().Add(-time.Minute)
	must(t, s.Delete(ctx, v.Version))
	_, err := s.Zip(ctx, v.Version)
	wantErr(t, "Zip after Delete", err, fs.ErrNotExist)
	_, err = s.Resolve(ctx, v.Path, v.Version.Version)
	wantErr(t, "Resolve after Delete", err, fs.ErrNotExist)
	list, err := s.List(ctx, v.Path)
	must(t, err)
	entries, err := s.Index(ctx, time.Time{}, 10)
	must(t, err)
	if len(list.Versions)+len(entries) != 0 {
		t.Errorf("after Delete: list %v, index %v", list.Versions, entries)
	}
	gone, err := s.Deleted(ctx, start, 10)
	must(t, err)
	if len(gone) != 1 || gone[0].Path != v.Path || gone[0].Version != v.Version.Version {
		t.Errorf("Deleted: %v", gone)
	}
	again := New("example.com/m", "v1.0.0", "b")
	must(t, s.Put(ctx, again.Version, again.Files()))
	if !bytes.Equal(read(t, s, again.Version, storage.FileZip), again.Zip) {
		t.Error("the old bytes came back")
	}
}

// Who sees a tombstone and asks again gets nothing.
func tombstone(t *testing.T, b Backend) {
	s, _ := b.open(t, t.TempDir(), time.Now)
	for i := range 8 {
		v := New("example.com/m", fmt.Sprintf("v1.%d.0", i), "")
		must(t, s.Put(ctx, v.Version, v.Files()))
		done := make(chan error, 1)
		go func() { done <- s.Delete(ctx, v.Version) }()
		for deadline := time.Now().Add(30 * time.Second); ; {
			gone, err := s.Deleted(ctx, time.Time{}, 100)
			must(t, err)
			if len(gone) == i+1 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("there is no tombstone")
			}
		}
		_, err := s.Mod(ctx, v.Version)
		wantErr(t, "Mod once there is a tombstone", err, fs.ErrNotExist)
		_, err = s.Resolve(ctx, v.Path, v.Version.Version)
		wantErr(t, "Resolve once there is a tombstone", err, fs.ErrNotExist)
		must(t, <-done)
	}
}

// What was kept and queued is found again, after an orderly end and after none.
func reopen(t *testing.T, b Backend) {
	if b.Volatile {
		t.Log("this backend keeps nothing: there is nothing to find again")
		return
	}
	for _, killed := range []bool{false, true} {
		dir := t.TempDir()
		s, l := b.open(t, dir, time.Now)
		v := New("example.com/m", "v1.0.0", "")
		must(t, s.Put(ctx, v.Version, v.Files()))
		k := storage.Key{Path: "example.com/m", File: storage.FileList}
		must(t, l.SetKnown(ctx, k, &storage.Known{Checked: time.Now(), Versions: []string{"v1.0.0"}}))
		must(t, l.CompareAndSwap(ctx, "state", nil, []byte("1")))
		_, err := l.Enqueue(ctx, storage.Job{Key: k})
		must(t, err)
		if killed {
			s, l = b.crash(t, dir)
		} else {
			must(t, s.(io.Closer).Close())
			s, l = b.open(t, dir, time.Now)
		}
		if !bytes.Equal(read(t, s, v.Version, storage.FileZip), v.Zip) {
			t.Errorf("killed %v: other bytes came back", killed)
		}
		page, err := s.Catalog(ctx, "", 10)
		must(t, err)
		entries, err := s.Index(ctx, time.Time{}, 10)
		must(t, err)
		if len(page.Versions) != 1 || len(entries) != 1 {
			t.Errorf("killed %v: catalog: %v, index: %v", killed, page, entries)
		}
		if known, err := l.Known(ctx, k); err != nil || !slices.Equal(known.Versions, []string{"v1.0.0"}) {
			t.Errorf("killed %v: Known: %v, %v", killed, known, err)
		}
		if state, err := l.Load(ctx, "state"); err != nil || string(state) != "1" {
			t.Errorf("killed %v: state: %q, %v", killed, state, err)
		}
		if j, err := l.Claim(ctx, "w", time.Minute); err != nil || j == nil || j.Key != k {
			t.Errorf("killed %v: the job is %v, %v", killed, j, err)
		}
	}
}
