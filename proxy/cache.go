package proxy

import (
	"container/list"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/athensctl/athensctl/goproxy"
)

// lru bounds a set of things by the bytes they take. The zero value is not
// ready; see newLRU.
type lru[K comparable, V any] struct {
	mu      sync.Mutex
	max     int64
	used    int64
	order   *list.List // front: used last
	entries map[K]*list.Element
	evicted func(K, V) // called with the lock held; may be nil
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
	for c.used > c.max {
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

func (c *lru[K, V]) bytes() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.used
}

// diskCache keeps files in a folder, bounded in bytes and disposable: whatever
// is in it can be had again. The time of a file is the time of its content.
type diskCache struct {
	dir   string
	files *lru[string, struct{}] // by file name
}

// openDiskCache takes over what a former process left in dir.
func openDiskCache(dir string, maxBytes int64) (*diskCache, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	c := &diskCache{dir: dir}
	c.files = newLRU(maxBytes, func(name string, _ struct{}) { os.Remove(filepath.Join(dir, name)) })
	found, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	var left []os.FileInfo
	for _, f := range found {
		info, err := f.Info()
		if err != nil || len(f.Name()) != 2*sha256.Size {
			os.Remove(filepath.Join(dir, f.Name())) // half a file
			continue
		}
		left = append(left, info)
	}
	slices.SortFunc(left, func(a, b os.FileInfo) int { return a.ModTime().Compare(b.ModTime()) })
	for _, f := range left {
		if f.Size() > maxBytes {
			os.Remove(filepath.Join(dir, f.Name()))
		}
		c.files.put(f.Name(), struct{}{}, f.Size())
	}
	return c, nil
}

func fileName(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:])
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

// put reads r to its end and keeps it. size is what r must have; -1: not known.
func (c *diskCache) put(key string, r io.Reader, size int64, modTime time.Time) error {
	tmp, err := os.CreateTemp(c.dir, "tmp-")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	n, err := io.Copy(tmp, r)
	if err == nil && size >= 0 && n != size {
		err = io.ErrUnexpectedEOF
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	if !modTime.IsZero() {
		if err := os.Chtimes(tmp.Name(), modTime, modTime); err != nil {
			return err
		}
	}
	name := fileName(key)
	if err := os.Rename(tmp.Name(), filepath.Join(c.dir, name)); err != nil {
		return err
	}
	c.files.put(name, struct{}{}, n)
	return nil
}

func (c *diskCache) remove(key string) { c.files.remove(fileName(key)) }
