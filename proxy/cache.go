package proxy

import (
	"container/list"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gofrs/flock"

	"github.com/athensctl/athensctl/goproxy"
)

// lru bounds a set of things by the bytes they take. The zero value is not
// ready; see newLRU.
type lru[K comparable, V any] struct {
	mu       sync.Mutex
	max      int64
	most     int // entries; 0: any number
	used     int64
	reserved int64
	order    *list.List // front: used last
	entries  map[K]*list.Element
	evicted  func(K, V) // called with the lock held; may be nil
}

type lruEntry[K comparable, V any] struct {
	key   K
	value V
	bytes int64
}

func newLRU[K comparable, V any](maxBytes int64, evicted func(K, V)) *lru[K, V] {
	return &lru[K, V]{max: maxBytes, order: list.New(), entries: map[K]*list.Element{}, evicted: evicted}
}

func (c *lru[K, V]) get(k K) (v V, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[k]
	if !ok {
		return v, false
	}
	c.order.MoveToFront(e)
	return e.Value.(*lruEntry[K, V]).value, true
}

// put adds or replaces; what was used least lately makes room. Something larger
// than the whole cache is not kept.
func (c *lru[K, V]) put(k K, v V, bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if bytes > c.max {
		return
	}
	if e, ok := c.entries[k]; ok {
		old := e.Value.(*lruEntry[K, V])
		c.used += bytes - old.bytes
		old.value, old.bytes = v, bytes
		c.order.MoveToFront(e)
	} else {
		c.entries[k] = c.order.PushFront(&lruEntry[K, V]{k, v, bytes})
		c.used += bytes
	}
	c.evict()
}

// reserve makes room for bytes that are about to come; false: it would take more than the
// whole cache has, besides what is reserved already. release gives it back.
func (c *lru[K, V]) reserve(bytes int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reserved+bytes > c.max {
		return false
	}
	c.reserved += bytes
	c.evict()
	return true
}

func (c *lru[K, V]) release(bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reserved -= bytes
}

func (c *lru[K, V]) evict() {
	for c.order.Len() > 0 && (c.used+c.reserved > c.max || c.most > 0 && c.order.Len() > c.most) {
		c.removeElement(c.order.Back())
	}
}

func (c *lru[K, V]) remove(k K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.entries[k]; ok {
		c.removeElement(e)
	}
}

func (c *lru[K, V]) removeElement(e *list.Element) {
	old := c.order.Remove(e).(*lruEntry[K, V])
	delete(c.entries, old.key)
	c.used -= old.bytes
	if c.evicted != nil {
		c.evicted(old.key, old.value)
	}
}

// removeOldest removes what was used least lately; false: there is nothing.
func (c *lru[K, V]) removeOldest() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.order.Len() == 0 {
		return false
	}
	c.removeElement(c.order.Back())
	return true
}

func (c *lru[K, V]) bytes() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.used
}

// onDisk is what a file of that many bytes takes of a disk: whole blocks of 4 KiB, and a
// part of one for its name and times.
func onDisk(sizeBytes int64) int64 {
	const block, entry = 4 << 10, 512
	return (sizeBytes+block-1)/block*block + entry
}

// diskCache keeps files in a folder, bounded in bytes of the disk and disposable: whatever
// is in it can be had again, and the folder may be emptied while it is used. The time of a
// file is the time of its content. Other files in the folder are left alone.
type diskCache struct {
	dir   string
	lock  *flock.Flock
	files *lru[string, struct{}] // by file name
}

// Names in the folder besides those of the files, which are hashes.
const (
	tempPrefix = "tmp-"
	lockName   = "lock"   // held by the one process that uses the folder
	seenName   = "looked" // its time: when deletions were looked for last
)

// cacheError is an error of the cache itself: what was to be kept is as good as it was.
type cacheError struct{ err error }

func (e cacheError) Error() string { return "cache: " + e.err.Error() }

// maxCacheFiles bounds the memory that it takes to know the files: some 210 bytes for each, and
// 500 for a moment when the folder is taken over. Most zips are larger than what this leaves
// for one of cache-max-bytes; the answers of a checksum database are small, and anybody may
// ask for millions.
const maxCacheFiles = 200_000

// openDiskCache takes over what a former process left in dir.
func openDiskCache(dir string, maxBytes int64) (*diskCache, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	c := &diskCache{dir: dir, lock: flock.New(filepath.Join(dir, lockName))}
	if ok, err := c.lock.TryLock(); err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	} else if !ok {
		return nil, fmt.Errorf("cache: folder %s is used by another process: give each proxy a cache-dir of its own", dir)
	}
	c.files = newLRU(maxBytes, func(name string, _ struct{}) { os.Remove(filepath.Join(dir, name)) })
	c.files.most = maxCacheFiles
	found, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	var left []os.FileInfo
	for _, f := range found {
		if strings.HasPrefix(f.Name(), tempPrefix) {
			os.Remove(filepath.Join(dir, f.Name())) // half a file
		} else if info, err := f.Info(); err == nil && isFileName(f.Name()) && info.Mode().IsRegular() {
			left = append(left, info)
		}
	}
	slices.SortFunc(left, func(a, b os.FileInfo) int { return a.ModTime().Compare(b.ModTime()) })
	for _, f := range left {
		if onDisk(f.Size()) > maxBytes {
			os.Remove(filepath.Join(dir, f.Name()))
		}
		c.files.put(f.Name(), struct{}{}, onDisk(f.Size()))
	}
	return c, nil
}

// close lets another process have the folder.
func (c *diskCache) close() error { return c.lock.Close() }

// clear forgets all.
func (c *diskCache) clear() {
	for c.files.removeOldest() {
	}
}

// seen is when saw was called last, by any process; the zero time: never.
func (c *diskCache) seen() time.Time {
	st, err := os.Stat(filepath.Join(c.dir, seenName))
	if err != nil {
		return time.Time{}
	}
	return st.ModTime()
}

// saw notes that all deletions up to now are known.
func (c *diskCache) saw(now time.Time) error {
	name := filepath.Join(c.dir, seenName)
	err := os.Chtimes(name, now, now)
	if errors.Is(err, fs.ErrNotExist) {
		err = errors.Join(os.MkdirAll(c.dir, 0o755), os.WriteFile(name, nil, 0o644), os.Chtimes(name, now, now))
	}
	return err
}

func fileName(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:])
}

func isFileName(name string) bool {
	_, err := hex.DecodeString(name)
	return err == nil && len(name) == 2*sha256.Size
}

// get opens the file kept for key; nil when there is none.
func (c *diskCache) get(key string) *goproxy.Blob {
	name := fileName(key)
	if _, ok := c.files.get(name); !ok {
		return nil
	}
	f, err := os.Open(filepath.Join(c.dir, name))
	if err != nil {
		c.files.remove(name)
		return nil
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil
	}
	return &goproxy.Blob{ReadCloser: f, SizeBytes: st.Size(), ModTime: st.ModTime()}
}

// put reads r, which has size bytes, to its end and keeps it. Room for it is made before.
// An error is a cacheError, or r's.
func (c *diskCache) put(key string, r io.Reader, size int64, modTime time.Time) error {
	if size < 0 || !c.files.reserve(onDisk(size)) {
		return cacheError{fmt.Errorf("there is no room for %d bytes", size)}
	}
	defer c.files.release(onDisk(size))
	tmp, err := c.temp()
	if err != nil {
		return cacheError{err}
	}
	defer os.Remove(tmp.Name())
	w := &diskWriter{w: tmp}
	n, err := io.Copy(w, io.LimitReader(r, size))
	if w.err != nil {
		err = cacheError{w.err}
	} else if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	if closeErr := tmp.Close(); err == nil && closeErr != nil {
		err = cacheError{closeErr}
	}
	if err != nil {
		return err
	}
	if !modTime.IsZero() {
		if err := os.Chtimes(tmp.Name(), modTime, modTime); err != nil {
			return cacheError{err}
		}
	}
	name := fileName(key)
	if err := os.Rename(tmp.Name(), filepath.Join(c.dir, name)); err != nil {
		return cacheError{err}
	}
	c.files.put(name, struct{}{}, onDisk(n))
	return nil
}

// temp makes a temporary file, and the folder where it is gone.
func (c *diskCache) temp() (*os.File, error) {
	f, err := os.CreateTemp(c.dir, tempPrefix)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(c.dir, 0o755); err == nil {
			f, err = os.CreateTemp(c.dir, tempPrefix)
		}
	}
	return f, err
}

// diskWriter remembers why writing failed, and keeps io.Copy's ways.
type diskWriter struct {
	w   *os.File
	err error
}

func (w *diskWriter) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	w.err = err
	return n, err
}

func (c *diskCache) remove(key string) { c.files.remove(fileName(key)) }
