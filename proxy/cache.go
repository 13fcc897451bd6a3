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
	"strconv"
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
	most     int // entries; 0: as many as there is room for
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
func (c *lru[K, V]) put(k K, v V, bytes int64) { c.fill(k, v, bytes, 0) }

// fill is put of something for which room was reserved, that is given back in the same step.
func (c *lru[K, V]) fill(k K, v V, bytes, reserved int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reserved -= reserved
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

// clear removes all of which that is true.
func (c *lru[K, V]) clear(which func(V) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for e := c.order.Back(); e != nil; {
		next := e.Prev()
		if which(e.Value.(*lruEntry[K, V]).value) {
			c.removeElement(e)
		}
		e = next
	}
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

// maxFiles bounds what the disk cache's index takes of memory, 50 MB or so. Answers of a
// checksum database, which are small, may be millions before they fill a disk.
const maxFiles = 200_000

// diskCache keeps files in a folder, bounded in bytes of the disk and disposable: whatever
// is in it can be had again, and the folder may be emptied while it is used. The time of a
// file is the time of its content. Its name has its size: a machine that loses its power may
// keep a name and not all that was written. Other files in the folder are left alone.
type diskCache struct {
	dir   string
	lock  *flock.Flock
	files *lru[string, cached] // by the hash of the key
}

// cached is a file of the disk cache; its name says so much.
type cached struct {
	sizeBytes int64
	sumdb     bool // a checksum database's answer: it is never deleted in storage
}

// sumdbPrefix begins the keys of a checksum database's answers. No module path does: its first
// element has a dot.
const sumdbPrefix = "sumdb/"

func isDeletable(f cached) bool { return !f.sumdb }

// Names in the folder besides those of the files.
const (
	tempPrefix = "tmp-"
	lockName   = "lock"   // held by the one process that uses the folder
	seenName   = "looked" // its time: when deletions were looked for last
)

// cacheError is an error of the cache itself: what was to be kept is as good as it was.
type cacheError struct{ err error }

func (e cacheError) Error() string { return "cache: " + e.err.Error() }

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
	c.files = newLRU(maxBytes, func(hash string, f cached) { os.Remove(c.name(hash, f)) })
	c.files.most = maxFiles
	folder, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	defer folder.Close()
	type entry struct {
		hash string
		file cached
		time time.Time
	}
	var left []entry
	var gone []string
	for {
		found, err := folder.ReadDir(1000)
		for _, f := range found {
			if strings.HasPrefix(f.Name(), tempPrefix) {
				gone = append(gone, f.Name()) // half a file
			} else if info, err := f.Info(); err == nil && isFileName(f.Name()) && info.Mode().IsRegular() {
				hash, _, _ := strings.Cut(f.Name(), ".")
				file := cached{info.Size(), strings.HasSuffix(f.Name(), sumdbSuffix)}
				if f.Name() == filepath.Base(c.name(hash, file)) && onDisk(info.Size()) <= maxBytes {
					left = append(left, entry{strings.Clone(hash), file, info.ModTime()})
				} else {
					gone = append(gone, f.Name()) // not whole, or too large, or of a version that kept no sizes
				}
			}
		}
		if err == io.EOF {
			break
		} else if err != nil {
			return nil, fmt.Errorf("cache: %w", err)
		}
	}
	for _, name := range gone {
		os.Remove(filepath.Join(dir, name))
	}
	slices.SortFunc(left, func(a, b entry) int { return a.time.Compare(b.time) })
	for _, f := range left {
		c.files.remove(f.hash) // there is one at most of a key
		c.files.put(f.hash, f.file, onDisk(f.file.sizeBytes))
	}
	return c, nil
}

const sumdbSuffix = ".sumdb"

// name is where a file is.
func (c *diskCache) name(hash string, f cached) string {
	name := hash + "." + strconv.FormatInt(f.sizeBytes, 10)
	if f.sumdb {
		name += sumdbSuffix
	}
	return filepath.Join(c.dir, name)
}

// close lets another process have the folder.
func (c *diskCache) close() error { return c.lock.Close() }

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

func hashOf(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:])
}

// isFileName: a hash, and perhaps a size.
func isFileName(name string) bool {
	hash, _, _ := strings.Cut(name, ".")
	_, err := hex.DecodeString(hash)
	return err == nil && len(hash) == 2*sha256.Size
}

// get opens the file kept for key; nil when there is none, or not all of it.
func (c *diskCache) get(key string) *goproxy.Blob {
	hash := hashOf(key)
	file, ok := c.files.get(hash)
	if !ok {
		return nil
	}
	f, err := os.Open(c.name(hash, file))
	if err != nil {
		c.files.remove(hash)
		return nil
	}
	st, err := f.Stat()
	if err != nil || st.Size() != file.sizeBytes {
		f.Close()
		c.files.remove(hash)
		return nil
	}
	return &goproxy.Blob{ReadCloser: f, SizeBytes: st.Size(), ModTime: st.ModTime()}
}

// put reads r, which has size bytes, to its end and keeps it. Room for it is made before.
// An error is a cacheError, or r's.
func (c *diskCache) put(key string, r io.Reader, size int64, modTime time.Time) error {
	reserved := onDisk(max(0, size))
	if size < 0 || !c.files.reserve(reserved) {
		return cacheError{fmt.Errorf("there is no room for %d bytes", size)}
	}
	defer func() { c.files.release(reserved) }()
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
	hash, file := hashOf(key), cached{size, strings.HasPrefix(key, sumdbPrefix)}
	if err := os.Rename(tmp.Name(), c.name(hash, file)); err != nil {
		return cacheError{err}
	}
	if old, ok := c.files.get(hash); ok && old != file {
		c.files.remove(hash) // it has another name
	}
	c.files.fill(hash, file, reserved, reserved)
	reserved = 0
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

func (c *diskCache) remove(key string) { c.files.remove(hashOf(key)) }
