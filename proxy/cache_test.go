package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/labstack/echo/v4"
	"golang.org/x/mod/module"

	"github.com/athensctl/athensctl/goproxy"
	"github.com/athensctl/athensctl/storage"
	"github.com/athensctl/athensctl/storage/storagetest"
)

// put keeps a version in storage.
func (b *bed) put(path, version string) storagetest.Version {
	b.t.Helper()
	v := storagetest.New(path, version, "")
	if err := b.store.Put(b.t.Context(), v.Version, v.Files()); err != nil {
		b.t.Fatal(err)
	}
	return v
}

// get is a request over HTTP.
func (b *bed) get(path string, header ...string) *httptest.ResponseRecorder {
	e := echo.New()
	e.HTTPErrorHandler = goproxy.ErrorHandler
	sumdb := b.ServeSumDB(&SumDB{
		Name: "sum.golang.org", Private: func(path string) bool { return path == "private.example" },
		Get: func(_ context.Context, path string) ([]byte, error) {
			b.up.mu.Lock()
			b.up.asked++
			err, takes := b.up.err, b.up.takes
			b.up.mu.Unlock()
			time.Sleep(takes)
			return []byte("answer to " + path), err
		},
	})
	e.GET("/sumdb/*", sumdb)
	e.GET("/cached-only/sumdb/*", sumdb)
	e.Any("/*", goproxy.Handler(b.Proxy))
	r := httptest.NewRequest("GET", path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	e.ServeHTTP(w, r)
	return w
}

// A cache whose folder was removed, or whose disk takes nothing, is no reason to refuse
// what storage has, and far less to say that there is no such thing.
func TestBrokenCache(t *testing.T) {
	for _, how := range []string{"removed", "unwritable"} {
		t.Run(how, func(t *testing.T) {
			b := newBed(t, Fallback)
			v := b.put(modPath, "v1.0.0")
			if err := os.RemoveAll(b.o.CacheDir); err != nil {
				t.Fatal(err)
			}
			if how == "unwritable" {
				if err := os.WriteFile(b.o.CacheDir, nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			zip := b.get("/" + modPath + "/@v/v1.0.0.zip")
			if zip.Code != 200 || !bytes.Equal(zip.Body.Bytes(), v.Zip) {
				t.Errorf("zip: %d, %d bytes, Cache-Control %q", zip.Code, zip.Body.Len(), zip.Header().Get("Cache-Control"))
			}
			if w := b.get("/sumdb/sum.golang.org/lookup/example.com/m@v1.0.0"); w.Code != 200 || w.Body.String() != "answer to /lookup/example.com/m@v1.0.0" {
				t.Errorf("lookup: %d %q", w.Code, w.Body)
			}
			if kept := b.disk.get(storage.Key{Path: modPath, Query: "v1.0.0", File: storage.FileZip}.String()); (kept != nil) != (how == "removed") {
				t.Errorf("in the cache again: %v", kept != nil)
			}
		})
	}
}

// Other files in the folder are nobody's to remove; half files are.
func TestCacheFolder(t *testing.T) {
	dir := t.TempDir()
	others := []string{"ledger.db", "empty/x", strings.Repeat("z", 64), "lock", "looked"}
	for _, name := range append(others, "tmp-123") {
		name = filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte("precious"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	c, err := openDiskCache(dir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range others {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "tmp-123")); err == nil {
		t.Error("half a file stayed")
	}
	if _, err := openDiskCache(dir, 1<<20); err == nil || !strings.Contains(err.Error(), "used by another process") {
		t.Errorf("a folder that is in use: %v", err)
	}
	if err := c.put("key", strings.NewReader("content"), 7, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	c.close()
	c, err = openDiskCache(dir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	b := c.get("key")
	if b == nil {
		t.Fatal("what was kept is gone after a restart")
	}
	if got, err := b.ReadAll(100); err != nil || string(got) != "content" || !b.ModTime.Equal(time.Unix(1, 0)) {
		t.Errorf("%q, %v, %v", got, b.ModTime, err)
	}
}

// paced is a reader that waits in the middle.
type paced struct {
	r     io.Reader
	begun chan struct{}
	goOn  chan struct{}
	once  sync.Once
}

func (p *paced) Read(b []byte) (int, error) {
	p.once.Do(func() { close(p.begun); <-p.goOn })
	return p.r.Read(b)
}

// The files that are being written count too: at no moment does the folder hold more than
// the bound.
func TestCacheBound(t *testing.T) {
	// Two files of 4,000 bytes, each in one block, and a little more.
	const size, bound = 4000, 10_000
	dir := t.TempDir()
	c, err := openDiskCache(dir, bound)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	content := strings.Repeat("x", size)
	for i := range 2 {
		if err := c.put(fmt.Sprint("old", i), strings.NewReader(content), size, time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	slow := &paced{r: strings.NewReader(content), begun: make(chan struct{}), goOn: make(chan struct{})}
	done := make(chan error)
	go func() { done <- c.put("slow", slow, size, time.Time{}) }()
	<-slow.begun
	if c.get("old0") != nil {
		t.Error("no room was made before writing")
	}
	if err := c.put("second", strings.NewReader(content), size, time.Time{}); err != nil {
		t.Errorf("two at once that fit: %v", err)
	}
	var broken cacheError
	if err := c.put("third", strings.NewReader(strings.Repeat("x", bound-int(onDisk(size)))), bound-onDisk(size), time.Time{}); !errors.As(err, &broken) {
		t.Errorf("one that does not fit beside what is being written: %v", err)
	}
	close(slow.goOn)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	var sum int64
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if st, err := f.Info(); err == nil {
			sum += onDisk(st.Size())
		}
	}
	if sum > bound+2*onDisk(0) || c.files.bytes() > bound { // the two: lock, and looked
		t.Errorf("%d bytes in the folder, %d counted", sum, c.files.bytes())
	}
	if c.get("slow") == nil || c.get("second") == nil {
		t.Error("of two files that fit, one had to go")
	}
	for size, reader := range map[int64]string{-1: "abc", 2 * bound: "abc", 5: "abc"} {
		if err := c.put("odd", strings.NewReader(reader), size, time.Time{}); err == nil || c.get("odd") != nil {
			t.Errorf("size %d of %q was kept: %v", size, reader, err)
		}
	}
	const large = 8000 // more than half of the bound
	if err := c.put("large", strings.NewReader(strings.Repeat("x", large)), large, time.Time{}); err != nil || c.get("large") == nil {
		t.Errorf("one that fits alone was not kept: %v", err)
	}
	if c.files.reserved != 0 {
		t.Errorf("%d bytes are still reserved", c.files.reserved)
	}
}

// The files of a cache are so many at most, however small they are, also after a start.
func TestCacheManyFiles(t *testing.T) {
	dir := t.TempDir()
	for most := 5; most > 2; most -= 2 {
		c, err := openDiskCache(dir, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if c.files.most != maxFiles {
			t.Errorf("%d files at most", c.files.most)
		}
		c.files.most = most
		for i := range 9 {
			if err := c.put(fmt.Sprint("key", i), strings.NewReader("x"), 1, time.Unix(int64(i), 0)); err != nil {
				t.Fatal(err)
			}
		}
		files, err := filepath.Glob(filepath.Join(dir, "*.1"))
		if err != nil || len(files) != most || c.get("key8") == nil || c.get("key0") != nil {
			t.Errorf("%d files of %d at most, %v", len(files), most, err)
		}
		c.close()
	}
}

// A file of which not all is there, since its machine has lost power, is none; also while
// the cache is open. Nor is one of a version that kept no sizes.
func TestCacheDamaged(t *testing.T) {
	dir := t.TempDir()
	c, err := openDiskCache(dir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"whole", "cut", "empty", "cut later", "changed", "changed"} {
		content := strings.Repeat(key, 1+len(c.files.entries)) // the second "changed" has another size
		if err := c.put(key, strings.NewReader(content), int64(len(content)), time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	cut := func(key string, size int64) {
		t.Helper()
		names, err := filepath.Glob(filepath.Join(dir, hashOf(key)+"*"))
		if err != nil || len(names) != 1 {
			t.Fatalf("%s: %q, %v", key, names, err)
		}
		if err := os.Truncate(names[0], size); err != nil {
			t.Fatal(err)
		}
	}
	cut("cut later", 3)
	if c.get("cut later") != nil {
		t.Error("half a file is served")
	}
	cut("cut", 3)
	cut("empty", 0)
	if err := os.WriteFile(filepath.Join(dir, hashOf("old")), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.close()
	if c, err = openDiskCache(dir, 1<<20); err != nil {
		t.Fatal(err)
	}
	defer c.close()
	for key, want := range map[string]bool{"whole": true, "changed": true, "cut": false, "empty": false, "cut later": false, "old": false} {
		names, err := filepath.Glob(filepath.Join(dir, hashOf(key)+"*"))
		if b := c.get(key); (b != nil) != want || (len(names) == 1) != want || err != nil {
			t.Errorf("%s: served %v, files %q, %v", key, b != nil, names, err)
		}
	}
}

// deletedMeanwhile is a store where a version is deleted while it is read.
type deletedMeanwhile struct {
	storage.Store
	after func()
}

func (d deletedMeanwhile) Zip(ctx context.Context, m module.Version) (*goproxy.Blob, error) {
	b, err := d.Store.Zip(ctx, m)
	d.after()
	return b, err
}

func (d deletedMeanwhile) Mod(ctx context.Context, m module.Version) (*goproxy.Blob, error) {
	b, err := d.Store.Mod(ctx, m)
	d.after()
	return b, err
}

// What was read before a deletion was seen is not kept after it.
func TestDeletedWhileRead(t *testing.T) {
	b := newBed(t, Offline)
	v := b.put(modPath, "v1.0.0")
	b.Proxy.store = deletedMeanwhile{b.store, func() {
		b.store.Delete(context.Background(), v.Version)
		b.Forget(v.Version) // as Run does when it sees the tombstone
	}}
	if _, err := b.Mod(t.Context(), v.Version); err != nil {
		t.Fatal(err)
	}
	b.put(modPath, "v1.0.0")
	if _, err := b.Zip(t.Context(), v.Version); goproxy.Status(err) != 404 {
		t.Errorf("a zip that is deleted before it is kept: %v", err)
	}
	b.Proxy.store = b.store
	if _, err := b.Zip(t.Context(), v.Version); err == nil {
		t.Error("the zip is still there after its deletion was seen")
	}
	if _, err := b.Mod(t.Context(), v.Version); err == nil {
		t.Error("the .mod is still there after its deletion was seen")
	}
}

// A deletion whose tombstone is seen before the bytes are gone, and a reader between the
// two: the next looks catch it. And a proxy that was off for longer than tombstones are
// kept trusts nothing that it has.
func TestDeletionSeenEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, Offline)
		v := b.put(modPath, "v1.0.0")
		store := &zipsGo{Store: b.store}
		b.Proxy.store = store
		ctx, stop := context.WithCancel(t.Context())
		go b.Run(ctx, 20*time.Second)
		if err := b.store.Delete(ctx, v.Version); err != nil {
			t.Fatal(err)
		}
		time.Sleep(21 * time.Second)
		synctest.Wait()
		b.put(modPath, "v1.0.0") // the bytes, as a reader finds them once more
		if _, err := b.Zip(ctx, v.Version); err != nil {
			t.Fatal(err)
		}
		store.gone.Store(true) // now they are gone
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if _, err := b.Zip(ctx, v.Version); err == nil {
			t.Error("what was read between tombstone and deletion is served from then on")
		}
		store.gone.Store(false)
		if _, err := b.Zip(ctx, v.Version); err != nil {
			t.Fatal(err)
		}
		stop()
		synctest.Wait()
		store.gone.Store(true)
		again := func() *Proxy {
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			p, err := New(store, b.store, nil, b.o)
			if err != nil {
				t.Fatal(err)
			}
			b.Proxy = p
			return p
		}
		time.Sleep(time.Hour)
		if _, err := again().Zip(t.Context(), v.Version); err != nil {
			t.Errorf("after an hour off: %v", err)
		}
		time.Sleep(storage.TombstoneTTL)
		if _, err := again().Zip(t.Context(), v.Version); err == nil {
			t.Error("after a day off, what may be deleted is served")
		}
	})
}

// A version that was deleted and is put again is cached as any other, once nobody can have
// read it in between; until another is deleted, and after that.
func TestDeletedAndKeptAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, Offline)
		v, other := b.put(modPath, "v1.0.0"), b.put(modPath, "v1.1.0")
		k := storage.Key{Path: modPath, Query: "v1.0.0", File: storage.FileZip}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go b.Run(ctx, 20*time.Second)
		for _, m := range []module.Version{v.Version, other.Version} {
			if err := b.store.Delete(ctx, m); err != nil {
				t.Fatal(err)
			}
			if m == v.Version {
				b.put(modPath, "v1.0.0")
			}
			time.Sleep(5 * time.Minute)
			if _, err := b.Zip(ctx, v.Version); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			synctest.Wait()
			if b.disk.get(k.String()) == nil {
				t.Errorf("after %s was deleted the zip is dropped from the cache again and again", m)
			}
		}
		if err := b.store.Delete(ctx, v.Version); err != nil {
			t.Fatal(err)
		}
		time.Sleep(21 * time.Second)
		synctest.Wait()
		if _, err := b.Zip(ctx, v.Version); err == nil {
			t.Error("what is deleted a second time is served")
		}
	})
}

// A proxy that could not look for deletions for longer than they are told of trusts
// nothing that it has.
func TestDeletionNeverSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, Offline)
		v, other := b.put(modPath, "v1.0.0"), b.put(modPath, "v1.1.0")
		store := &deletionsAway{Store: b.store}
		b.Proxy.store = store
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go b.Run(ctx, 20*time.Second)
		served := func() (n int) {
			if _, err := b.Zip(ctx, v.Version); err == nil {
				n++
			}
			if _, err := b.Mod(ctx, v.Version); err == nil {
				n++
			}
			return n
		}
		if n := served(); n != 2 {
			t.Fatalf("%d of 2", n)
		}
		time.Sleep(time.Second)
		store.away.Store(true)
		if err := b.store.Delete(ctx, v.Version); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * storage.TombstoneTTL)
		if err := b.store.Delete(ctx, other.Version); err != nil { // the older tombstone goes
			t.Fatal(err)
		}
		if n := served(); n != 2 {
			t.Errorf("with storage away %d of 2 are served that the caches have", n)
		}
		store.away.Store(false)
		time.Sleep(21 * time.Second)
		synctest.Wait()
		if n := served(); n != 0 {
			t.Errorf("%d files of a version are served that was deleted three days ago", n)
		}
	})
}

// A proxy that was off for longer than deletions are told of has what was never stored, and
// so cannot have been deleted: with upstream gone nobody else has it.
func TestSumDBAfterADayOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, Fallback)
		v := b.put(modPath, "v1.0.0")
		const lookup = "/sumdb/sum.golang.org/lookup/example.com/m@v1.0.0"
		if w := b.get(lookup); w.Code != 200 {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		if _, err := b.Zip(t.Context(), v.Version); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(b.disk.saw(time.Now()), b.Close()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(storage.TombstoneTTL)
		p, err := New(b.store, b.store, b.up, b.o)
		if err != nil {
			t.Fatal(err)
		}
		b.Proxy = p
		b.up.set(goproxy.Errorf(502, "down"), 0)
		if w := b.get(lookup); w.Code != 200 {
			t.Errorf("a lookup: %d %s", w.Code, w.Body)
		}
		if b.disk.get(storage.Key{Path: modPath, Query: "v1.0.0", File: storage.FileZip}.String()) != nil {
			t.Error("a zip that may be deleted is served")
		}
	})
}

// deletionsAway is a store that can be away for who asks for deletions.
type deletionsAway struct {
	storage.Store
	away atomic.Bool
}

func (s *deletionsAway) Deleted(ctx context.Context, since time.Time, limit int) ([]storage.IndexEntry, error) {
	if s.away.Load() {
		return nil, goproxy.Errorf(502, "away")
	}
	return s.Store.Deleted(ctx, since, limit)
}

// zipsGo is a store whose zips can go.
type zipsGo struct {
	storage.Store
	gone atomic.Bool
}

func (s *zipsGo) Zip(ctx context.Context, m module.Version) (*goproxy.Blob, error) {
	if s.gone.Load() {
		return nil, goproxy.NotFound("deleted")
	}
	return s.Store.Zip(ctx, m)
}

// The checksum database's answers: headers, and what a request may not fetch.
func TestSumDB(t *testing.T) {
	b := newBed(t, Fallback)
	const lookup, tile = "/sumdb/sum.golang.org/lookup/example.com/m@v1.0.0", "/sumdb/sum.golang.org/tile/8/0/001"
	for _, tc := range []struct {
		path, header string
		status       int
		cache, body  string
		asked        int
	}{
		{"/sumdb/sum.golang.org/supported", "", 200, goproxy.CacheBriefly, "", 0},
		{"/cached-only/sumdb/sum.golang.org/supported", "", 200, goproxy.CacheBriefly, "", 0},
		{"/sumdb/other.example/supported", "", 404, goproxy.CacheBriefly, "other.example", 0},
		{"/sumdb/sum.golang.org/lookup/private.example@v1.0.0", "", 403, goproxy.CacheNever, "GONOSUMDB has to have it", 0},
		{"/sumdb/sum.golang.org/lookup/Bad@v1.0.0", "", 400, goproxy.CacheNever, "not a lookup", 0},
		{"/sumdb/sum.golang.org/else", "", 404, goproxy.CacheBriefly, "not a path", 0},
		{"/cached-only" + lookup, "", 404, goproxy.CacheNever, "nothing is fetched", 0},
		{lookup, goproxy.HeaderNoFetch, 404, goproxy.CacheNever, "nothing is fetched", 0},
		{lookup, "", 200, goproxy.CacheBriefly, "answer to /lookup/example.com/m@v1.0.0", 1},
		{lookup, "", 200, goproxy.CacheBriefly, "answer to /lookup/example.com/m@v1.0.0", 0},
		{"/cached-only" + lookup, "", 200, goproxy.CacheNever, "answer to /lookup/example.com/m@v1.0.0", 0},
		{tile, "", 200, goproxy.CacheImmutable, "answer to /tile/8/0/001", 1},
		{tile, "", 200, goproxy.CacheImmutable, "answer to /tile/8/0/001", 0},
		{"/sumdb/sum.golang.org/latest", "", 200, goproxy.CacheBriefly, "answer to /latest", 1},
		{"/sumdb/sum.golang.org/latest", "", 200, goproxy.CacheBriefly, "answer to /latest", 1},
	} {
		b.up.asked = 0
		var header []string
		if tc.header != "" {
			header = []string{tc.header, "true"}
		}
		w := b.get(tc.path, header...)
		if w.Code != tc.status || w.Header().Get("Cache-Control") != tc.cache || !strings.Contains(w.Body.String(), tc.body) || b.up.asked != tc.asked {
			t.Errorf("%s %s: %d, Cache-Control %q, %q, asked %d; want %+v", tc.path, tc.header, w.Code, w.Header().Get("Cache-Control"), w.Body, b.up.asked, tc)
		}
		if etag := w.Header().Get("ETag"); w.Code == 200 && tc.body != "" {
			if again := b.get(tc.path, append(header, "If-None-Match", etag)...); etag == "" || again.Code != 304 {
				t.Errorf("%s: ETag %q, then %d", tc.path, etag, again.Code)
			}
		}
	}
	// A tile never changes, so it has the time when it was kept, that of its file too.
	first := b.get("/sumdb/sum.golang.org/tile/8/0/002").Header().Get("Last-Modified")
	again := b.get("/sumdb/sum.golang.org/tile/8/0/002", "If-Modified-Since", first)
	if whole := b.get("/sumdb/sum.golang.org/tile/8/0/002").Header().Get("Last-Modified"); first == "" || again.Code != 304 || whole != first {
		t.Errorf("a tile: Last-Modified %q; then %d, %q", first, again.Code, whole)
	}
	if w := newBed(t, Offline).get(lookup); w.Code != 404 || !strings.Contains(w.Body.String(), "GOSUMDB=off") {
		t.Errorf("offline: %d %s", w.Code, w.Body) // what a person is shown says what to do
	}
	// What is wrong with a request is no answer for another, who would get it for a year.
	for _, tc := range [][2]string{{"If-Match", `"other"`}, {"If-Unmodified-Since", "Mon, 01 Jan 2001 00:00:00 GMT"}, {"Range", "bytes=1000-"}, {"Range", "bytes=x"}} {
		if w := b.get(tile, tc[0], tc[1]); w.Code/100 != 4 || w.Header().Get("Cache-Control") != goproxy.CacheNever {
			t.Errorf("%s: %s: %d, Cache-Control %q", tc[0], tc[1], w.Code, w.Header().Get("Cache-Control"))
		}
	}
	for _, path := range []string{lookup, "/sumdb/sum.golang.org/latest"} {
		if at := b.get(path).Header().Get("Last-Modified"); at != "" {
			t.Errorf("%s: Last-Modified %q of what may change", path, at)
		}
	}
	// What is kept is answered when the database is away.
	b.up.set(goproxy.Busy(time.Second, "away"), 0)
	if w := b.get("/sumdb/sum.golang.org/latest"); w.Code != 200 {
		t.Errorf("latest, with the database away: %d %s", w.Code, w.Body)
	}
}

// Those who wait for the checksum database are bounded as those who wait for a module, by
// the same max-waiting; what is kept is no wait.
func TestSumDBBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, Fallback) // 20 may wait
		const kept, latest = "/sumdb/sum.golang.org/lookup/example.com/kept@v1.0.0", "/sumdb/sum.golang.org/latest"
		for _, path := range []string{kept, latest} {
			if w := b.get(path); w.Code != 200 {
				t.Fatalf("%s: %d %s", path, w.Code, w.Body)
			}
		}
		b.up.set(nil, 30*time.Second)
		answers := make(chan *httptest.ResponseRecorder, 20)
		for i := range 20 { // two for each
			go func() { answers <- b.get(fmt.Sprintf("/sumdb/sum.golang.org/lookup/example.com/m%d@v1.0.0", i/2)) }()
		}
		synctest.Wait()
		if n := b.waiting.Load(); n != 20 {
			t.Errorf("%d wait", n)
		}
		began := time.Now()
		for _, path := range []string{"/sumdb/sum.golang.org/lookup/example.com/m0@v1.0.0", "/sumdb/sum.golang.org/tile/8/0/003"} {
			if w := b.get(path); w.Code != 503 || w.Header().Get("Retry-After") == "" || w.Header().Get("Cache-Control") != goproxy.CacheNever {
				t.Errorf("one too many, %s: %d %v", path, w.Code, w.Header())
			}
		}
		if _, err := b.List(t.Context(), modPath); goproxy.Status(err) != 503 {
			t.Errorf("a list, when too many wait for the checksum database: %v", err)
		}
		for _, path := range []string{kept, latest} {
			if w := b.get(path); w.Code != 200 {
				t.Errorf("what is kept, %s: %d %s", path, w.Code, w.Body)
			}
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("that took %v", took)
		}
		for range 20 {
			if w := <-answers; w.Code != 200 {
				t.Errorf("who waited: %d %s", w.Code, w.Body)
			}
		}
		if n := b.waiting.Load(); n != 0 {
			t.Errorf("%d wait, when all have their answers", n)
		}
	})
}
